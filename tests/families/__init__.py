"""Tiny random models of the true transformers classes, one entry a family, and inputs as the family's processor makes them."""

from families import flamingos, gemmas, llavas, packed, queries, shuffled
from families.base import Family, Inputs

FAMILIES: dict[str, Family] = {
    family.name: family for module in (llavas, packed, shuffled, gemmas, queries, flamingos) for family in module.FAMILIES
}

__all__ = ["FAMILIES", "Family", "Inputs"]
