"""Strategies: what is synthesized from a document, with which engines, after which paper.

A strategy is a declaration. Where it asks a model, the engines do the work in a profile's format; where it has rules,
they are its function ``mine``, and its engine is ``mined``. Another distribution adds one through the entry-point group
``instructpt.strategies`` (an object of type ``Strategy``).
"""

from __future__ import annotations

from dataclasses import dataclass

from instructpt.errors import ConfigError
from instructpt.synthesis import mined
from instructpt.synthesis.filters import Deduplicate
from instructpt.synthesis.registry import Registry
from instructpt.synthesis.rules import Mine

ENTRY_POINT_GROUP = "instructpt.strategies"
DEFAULT_STRATEGY = "instruction-synthesizer"
RULES_ENGINE = "mined"
BUILTIN_ENGINES = ("vllm", "openai", "transformers", RULES_ENGINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What is synthesized.

    Attributes:
        name: The name users write in a spec.
        paper: Where the method comes from.
        engines: The engines that can carry it out, the default first. Those of other distributions, too, unless it
            goes by rules.
        deduplicate: Where a question is asked once, unless the spec turns that off (``filters.FilterSettings``).
        summary: One sentence for users.
        mine: Its rules; ``None`` where it asks a model.

    Raises:
        ConfigError: It has rules and an engine for models, or the other way round.
    """

    name: str
    paper: str
    engines: tuple[str, ...]
    deduplicate: Deduplicate
    summary: str
    mine: Mine | None = None

    def __post_init__(self) -> None:
        """Refuse a strategy whose engines cannot carry it out."""
        if not self.engines or any((engine == RULES_ENGINE) != (self.mine is not None) for engine in self.engines):
            raise ConfigError(
                f"the strategy {self.name} has {'rules' if self.mine else 'no rules'}",
                field="engines",
                value=self.engines,
                fix=f"a strategy has rules (mine) and the engine {RULES_ENGINE} alone, or no rules and other engines",
            )

    def check_engine(self, engine: str) -> None:
        """Refuse an engine that cannot carry out this strategy.

        Raises:
            ConfigError: Naming the engines that can.
        """
        brought = engine not in BUILTIN_ENGINES and self.mine is None
        if engine not in self.engines and not brought:
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
        engines=(RULES_ENGINE,),
        deduplicate="document",
        summary="Rules mine reading-comprehension tasks of six families from each document; no model, no GPU.",
        mine=mined.mine_tasks,
    ),
)


def load(name: str = DEFAULT_STRATEGY) -> Strategy:
    """The strategy called ``name``.

    Raises:
        ConfigError: The name is unknown (the message lists what is known), or a plug-in's object is no strategy.
    """
    found = registry.get(name)
    # A plug-in's object may be of any type, whatever the annotation says.
    if not isinstance(found, Strategy):
        raise ConfigError(
            f"the plug-in offers {type(found).__name__}, not an object of type Strategy",
            field="strategy",
            value=name,
            fix=f"repair or uninstall the distribution that offers it in the group {ENTRY_POINT_GROUP}",
        )
    return found


def names() -> list[str]:
    """The names ``load`` knows."""
    return registry.names()
