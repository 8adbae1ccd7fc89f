"""Generated worlds: short texts of several domains with questions, in an open vocabulary.

They are what the tiny synthesizer is tuned on, and by which any synthesizer's answers can be judged: whoever made a
document knows every answer. Names are invented, so they must be copied from the text. Training and held-out sides share
no name, and each attribute has a wording that training never shows.
"""

from __future__ import annotations

from instructpt.synthesis.worlds.collection import Score, score, write_collection, write_corpus
from instructpt.synthesis.worlds.example import Example, Fact, Judgement, judge, make_example, make_examples

__all__ = [
    "Example",
    "Fact",
    "Judgement",
    "Score",
    "judge",
    "make_example",
    "make_examples",
    "score",
    "write_collection",
    "write_corpus",
]
