"""Strategies: what is synthesized from a document, with which engines, after which paper.

A strategy is a declaration; the engines do the work. Another distribution adds one through the entry-point group
``instructpt.strategies`` (an object of type ``Strategy``).
"""

from __future__ import annotations

from dataclasses import dataclass

from instructpt.errors import ConfigError
from instructpt.synthesis.filters import Deduplicate
from instructpt.synthesis.registry import Registry

ENTRY_POINT_GROUP = "instructpt.strategies"
DEFAULT_STRATEGY = "instruction-synthesizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What is synthesized.

    Attributes:
        name: The name users write in a spec.
        paper: Where the method comes from.
        engines: The engines that can carry it out, the default first.
        deduplicate: Where a question is asked once, unless the spec turns that off (``filters.FilterSettings``).
        summary: One sentence for users.
    """

    name: str
    paper: str
    engines: tuple[str, ...]
    deduplicate: Deduplicate
    summary: str

    def check_engine(self, engine: str) -> None:
        """Refuse an engine that cannot carry out this strategy.

        Raises:
            ConfigError: Naming the engines that can.
        """
        if engine not in self.engines:
            raise ConfigError(
                f"the strategy {self.name} cannot run on this engine",
                field="engine.name",
                value=engine,
                fix=f"use {' or '.join(self.engines)}",
            )


registry: Registry[Strategy] = Registry("strategy", ENTRY_POINT_GROUP)
registry.register(
    DEFAULT_STRATEGY,
    Strategy(
        name=DEFAULT_STRATEGY,
        paper="Instruction Pre-Training, arXiv 2406.14491",
        engines=("vllm", "openai", "transformers"),
        deduplicate="document",
        summary="A tuned synthesizer reads each document and writes instruction-response pairs.",
    ),
)
registry.register(
    "mined",
    Strategy(
        name="mined",
        paper="Adapting Large Language Models via Reading Comprehension (AdaptLLM), arXiv 2309.09530",
        engines=("mined",),
        deduplicate="document",
        summary="Rules mine reading-comprehension tasks from each document; no model, no GPU.",
    ),
)


def load(name: str = DEFAULT_STRATEGY) -> Strategy:
    """The strategy called ``name``.

    Raises:
        ConfigError: The name is unknown; the message lists what is known.
    """
    return registry.get(name)


def names() -> list[str]:
    """The names ``load`` knows."""
    return registry.names()
