"""Misspellings: a table of common ones, and rules for other words. Knows words, nothing of scenes or models."""

from __future__ import annotations

import random
import re

from atp.evals.robustness.words import Perturbed, is_word, pieces, still_reads, wanted

# What people write: ordinary slips of spelling, collected by us.
_TABLE = """
the teh hte;are aer
there ther thier their;their thier there;many meny manny;color coler collor;image imige immage;what waht wat;any eny
picture pitcure picutre;object objact obejct;above abbove;below beelow;bigger biger;smaller smaler;left lefft;right rigth
leftmost leftmoast;rightmost rigthmost;highest heighest highst;lowest lowwest;largest largist;smallest smalest;more moore
between betwen beetween;behind behing;next nexst;which wich whitch;where wher;wearing waering wareing;doing dooing
people poeple;person persun;bicycle bycicle bicicle;bicycles bycicles;motorcycle motercycle;airplane airplain;truck truk
traffic trafic;bird brid burd;sheep sheap;elephant elefant elephent;elephants elefants;zebra zeebra;giraffe girafe giraf
giraffes girafes;backpack bakpack;umbrella umbrela umberella;umbrellas umbrelas;handbag hanbag;suitcase suitecase
bottle bottel botle;bottles bottels;banana bannana;bananas bannanas;apple appel aple;apples appels;carrot carot
carrots carots;pizza piza pitza;donut doenut;chair chiar;chairs chiars;couch cowch;couches cowches;toilet tolet
laptop labtop;clock clok;vase vaze;vases vazes;circle cirkle circel;circles cirkles;square sqaure squre;squares sqaures
triangle triangel;triangles triangels;heart hart;diamond dimond;diamonds dimonds;orange ornage orenge;green grean
purple purpel;black blak;building bulding;animal aminal;animals aminals;beautiful beautifull;believe beleive;holding holdding
kitchen kichen;street streat;surface surfice;material materiel;weather wether;vehicle vehical;vehicles vehicals;device devise
furniture furnature;table tabel;window windo;shirt shrit;woman womman;hair hare;food fude;room rume;wooden woden
children childern;friend freind"""
TABLE = {row.split()[0]: tuple(row.split()[1:]) for line in _TABLE.split("\n")[1:] for row in line.split(";")}
_RULES = (  # what people do to words that are in no table
    (r"(\w)\1", r"\1"),  # a doubled letter written once
    (r"ie", "ei"),
    (r"ei", "ie"),
    (r"(?<=\w)e$", ""),
    (r"(?<=\w)ea(?=\w)", "ee"),
    (r"(?<=\w)ou(?=\w)", "uo"),
    (r"(?<=[aeiou])([lmnprst])(?=[aeiou])", r"\1\1"),  # and a single one doubled
    (r"(?<=\w)a(?=\w)", "e"),
    (r"(?<=\w)e(?=\w)", "a"),
    (r"(?<=\w)i(?=\w)", "e"),
    (r"(?<=\w)o(?=\w)", "u"),
    (r"(?<=\w)([aeiou])([a-z])(?=\w)", r"\2\1"),
)


def misspellings(word: str) -> list[str]:
    """Return ways to misspell a lower-case word, the table's first, none that reads as another word."""
    ruled = [re.sub(pattern, new, word, count=1) for pattern, new in _RULES] if len(word) > 3 else []
    found = TABLE.get(word) or ruled
    return [other for other in dict.fromkeys(found) if other != word and still_reads(word, other)]


def spelling(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Misspell words; a higher severity holds the misspellings of the lower ones."""
    parts = pieces(text)
    words = [number for number, part in enumerate(parts) if is_word(part)]
    limit, made = wanted(severity, len(words)), 0
    for number in rng.sample(words, len(words)):
        word = parts[number]
        choices = misspellings(word.lower())
        if not choices:
            continue
        new = rng.choice(choices)
        if made == limit:
            break
        parts[number] = new.capitalize() if word[0].isupper() else new
        made += 1
    return Perturbed("".join(parts), made)
