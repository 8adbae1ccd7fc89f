from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from instructpt.errors import ConfigError
from instructpt.synthesis.registry import Registry, installed


def plug_in(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="instructpt.things")


def make(*points: EntryPoint) -> Registry[object]:
    registry: Registry[object] = Registry("thing", "instructpt.things", lambda group: list(points))
    registry.register("own", 1)
    return registry


def test_own_entry_and_plug_in():
    registry = make(plug_in("dumps", "json:dumps"))
    assert registry.get("own") == 1
    assert callable(registry.get("dumps"))
    assert registry.names() == ["dumps", "own"]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown thing; known: dumps, own"):
        make(plug_in("dumps", "json:dumps")).get("other")


def test_a_plug_in_cannot_replace_what_ships_here():
    assert make(plug_in("own", "json:dumps")).get("own") == 1


def test_register_twice():
    with pytest.raises(ConfigError, match="registered already"):
        make().register("own", 2)


def test_two_plug_ins_of_one_name():
    with pytest.raises(ConfigError, match="two plug-ins claim"):
        make(plug_in("x", "json:dumps"), plug_in("x", "json:loads")).get("x")


@pytest.mark.parametrize("value", ["json:absent", "no_such_module_at_all:x"])
def test_plug_in_that_cannot_be_imported(value: str):
    with pytest.raises(ConfigError, match="cannot be imported"):
        make(plug_in("x", value)).get("x")


def test_installed_reads_entry_points():
    assert any(point.name for point in installed("console_scripts"))
    assert installed("instructpt.no-such-group") == []
