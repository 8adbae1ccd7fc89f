from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, mined, strategies
from instructpt.synthesis.rules import Mine, MinedPair
from instructpt.synthesis.strategies import Strategy


def test_known_strategies():
    assert strategies.names() == ["instruction-synthesizer", "mined"]
    for name in strategies.names():
        strategy = strategies.load(name)
        assert strategy.name == name
        assert "arXiv" in strategy.paper
        assert strategy.deduplicate == "document"
        strategy.check_engine(strategy.engines[0])


def test_wrong_engine_names_the_right_ones():
    with pytest.raises(ConfigError, match="use vllm or openai or transformers"):
        strategies.load().check_engine("mined")
    with pytest.raises(ConfigError, match="use mined"):
        strategies.load("mined").check_engine("vllm")


def test_an_engine_of_another_distribution_can_carry_out_what_a_model_writes():
    strategies.load().check_engine("sglang")
    with pytest.raises(ConfigError, match="use mined"):
        strategies.load("mined").check_engine("sglang")


def test_unknown_strategy():
    with pytest.raises(ConfigError, match="known: instruction-synthesizer, mined"):
        strategies.load("other")


def test_rules_are_behind_the_interface_and_a_model_is_not():
    assert strategies.load().mine is None
    rules = strategies.load("mined").mine
    assert rules is not None
    text = "A lamp is a source of light. It shines because it is hot."
    found = rules(text, 1, forbidden=("<QUE>",))
    assert [one.pair for one in found] == mined.mine(text, 1, forbidden=("<QUE>",)) != []


def echo(document: str, seed: int, *, forbidden: Any) -> list[MinedPair]:
    return [MinedPair(family="echo", task="echo", pair=Pair("What?", document))]


def make(engines: tuple[str, ...], mine: Mine | None) -> Strategy:
    return Strategy(name="x", paper="arXiv 1", engines=engines, deduplicate="document", summary="x", mine=mine)


@pytest.mark.parametrize(
    ("engines", "mine"), [(("mined",), None), (("vllm",), echo), (("mined", "vllm"), echo), ((), None)]
)
def test_engines_that_cannot_carry_out_the_strategy(engines: tuple[str, ...], mine: Mine | None):
    with pytest.raises(ConfigError, match="engines="):
        make(engines, mine)
    assert make(("mined",), echo).mine is echo
    assert make(("vllm", "openai"), None).mine is None


def test_a_plug_in_that_offers_no_strategy(monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint(name="odd", value="json:dumps", group=strategies.ENTRY_POINT_GROUP)
    monkeypatch.setattr(strategies.registry, "_discover", lambda group: [point])
    assert strategies.names() == ["instruction-synthesizer", "mined", "odd"]
    with pytest.raises(ConfigError, match="offers function, not an object of type Strategy"):
        strategies.load("odd")
