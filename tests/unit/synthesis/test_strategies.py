from __future__ import annotations

import pytest

from instructpt.errors import ConfigError
from instructpt.synthesis import strategies


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


def test_unknown_strategy():
    with pytest.raises(ConfigError, match="known: instruction-synthesizer, mined"):
        strategies.load("other")
