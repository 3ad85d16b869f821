"""Names, near misses, plug-ins."""

from __future__ import annotations

from typing import Any

import pytest

from atp import registry
from atp.errors import AtpError, UnknownMethod
from atp.registry import Registry, did_you_mean


def make() -> Registry[Any]:
    found: Registry[Any] = Registry("method", UnknownMethod)
    found.register("alpha")(type("Alpha", (), {}))
    found.register("beta")(type("Beta", (), {}))
    return found


def test_get_and_list() -> None:
    names = make()
    assert names.names() == ["alpha", "beta"]
    assert names.get("beta").name == "beta"


def test_unknown_names_say_the_nearest() -> None:
    with pytest.raises(UnknownMethod, match=r"unknown method 'alhpa'\. Did you mean 'alpha'\? Known: alpha, beta"):
        make().get("alhpa")
    with pytest.raises(UnknownMethod, match=r"unknown method 7\. Known"):
        make().get(7)  # type: ignore[arg-type]
    assert did_you_mean("zzzz", ["alpha"]) == ""


def test_a_name_is_taken_once() -> None:
    with pytest.raises(AtpError, match=r"already registered by .*Alpha; choose another name"):
        make().register("alpha")(type("Other", (), {}))


class Entry:
    value = "plugin:Class"

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.loaded = name, loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_plug_ins_are_found_and_a_broken_one_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("gamma", type("Gamma", (), {})), Entry("broken", ImportError("no such thing"))]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: entries)
    names: Registry[Any] = Registry("method", UnknownMethod, "atp.methods")
    with pytest.warns(UserWarning, match="plug-in 'broken' .* was left out: no such thing"):
        assert names.names() == ["gamma"]
