"""Synthesis: raw documents become instruction-response pairs, and chains of them become pre-training text.

Everything imported from this package by name is pure Python and deterministic; the engines, which need heavy
libraries, are modules of their own that are imported where they are used.

Read in this order: ``model`` (the words), ``profiles`` (the wire format), ``chains`` (M-shot order and the state of a
chain), ``templates`` (chain -> text), ``mined`` (rules instead of a model), ``filters`` and ``strategies``.
"""

from __future__ import annotations

from instructpt.synthesis.model import Pair, Shot, kind_of, make_pair

__all__ = ["Pair", "Shot", "kind_of", "make_pair"]
