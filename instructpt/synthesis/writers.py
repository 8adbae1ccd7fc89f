"""Writers: what becomes of one document, by rules or by a model."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.corpus.augmented import Verdict
from instructpt.corpus.contamination import EvaluationNgrams
from instructpt.corpus.document import Document
from instructpt.errors import ConfigError, EnvironmentNotReadyError, InstructPTError
from instructpt.synthesis import chains, filters, judges, mined
from instructpt.synthesis.chains import Step
from instructpt.synthesis.engine import Completion, Engine, GenerationRequest, RequestFailedError
from instructpt.synthesis.judges import JUDGE_ERROR, PairJudge
from instructpt.synthesis.model import Pair, Shot
from instructpt.synthesis.profiles import Profile
from instructpt.synthesis.prompts import ChainPrompts
from instructpt.synthesis.rules import Mine
from instructpt.synthesis.templates import Templates

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
ENGINE_ERROR = "engine-error"
RULE_ERROR = "rule-error"
# Where no tokenizer is at hand, English text has about four bytes a token (protocols.md 1).
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one document that was to be converted.

    Attributes:
        pairs: Its pairs.
        verdict: ``augmented``, ``raw`` or ``dead-letter``.
        reason: Why not ``augmented``.
        afresh: Whether its prompt held no earlier shot.
        attempts: Times that the engine was asked.
        prompt_tokens: Of its prompt; 0 without a model.
        completion_tokens: Of its completion; 0 without a model.
        completion: The completion; empty without a model.
        cached_tokens: Of its prompt, those that the engine had already; stands in no row.
    """

    pairs: tuple[Pair, ...] = ()
    verdict: Verdict = "augmented"
    reason: str = ""
    afresh: bool = True
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion: str = ""
    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a micro-shard beside its documents and the model.

    Attributes:
        settings: Of the spec.
        profile: Wire format of the synthesizer.
        templates: How chains become text.
        deduplicate: The strategy's; the spec may turn it off.
        evaluation: N-grams that no pair may share, where the spec names evaluation sets.
        mine: The strategy's rules, where it has no model.
    """

    settings: SynthesisSettings
    profile: Profile
    templates: Templates
    deduplicate: filters.Deduplicate = "document"
    evaluation: EvaluationNgrams | None = None
    mine: Mine = mined.mine_tasks

    @property
    def digests(self) -> dict[str, str]:
        """Of profile and templates; every commit has them, so that all micro-shards are known to have the same."""
        return {"profile": self.profile.digest, "templates": self.templates.digest}

    @cached_property
    def filter_settings(self) -> filters.FilterSettings:
        """The spec's filters as the filters take them."""
        found = filters.FilterSettings.of(self.settings.filters, self.deduplicate)
        as_reference = self.profile.compat == "reference"
        return replace(found, keep_empty_questions=as_reference, evaluation=self.evaluation)


class ChainWriter(Protocol):
    """Writes the pairs of one chain's documents, one after another."""

    async def write(self, chain: Sequence[Shot], document: Document, counts: Counter[str]) -> Outcome:
        """What becomes of ``document`` (its tags neutralised) after ``chain``."""


class Writer(Protocol):
    """Writes pairs for any number of chains at the same time."""

    def open(self, priority: int) -> ChainWriter:
        """A writer for one chain; of two that wait for the engine, the one with the lower ``priority`` goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWriter:
    """Strategies of rules, such as ``mined``. A chain ends where its text would exceed the context, by estimate."""

    recipe: Recipe
    judges: Sequence[PairJudge] = ()

    def open(self, priority: int) -> ChainWriter:
        """Rules have no state."""
        return self

    async def write(self, chain: Sequence[Shot], document: Document, counts: Counter[str]) -> Outcome:
        """Mine ``document``; whether it continues ``chain`` goes by its estimated length."""
        await asyncio.sleep(0)  # lets a request to stop be seen between documents
        settings, profile = self.recipe.settings, self.recipe.profile
        step = chains.advance(
            chain,
            document.text,
            shots=settings.shots,
            render=profile.render,
            count_tokens=lambda text: len(text.encode("utf-8", "surrogatepass")) / _BYTES_PER_TOKEN,
            max_prompt_tokens=settings.sampling.context_window - settings.sampling.max_tokens,
        )
        afresh = step.verdict != "continue"
        try:
            found = list(self.recipe.mine(document.text, settings.seed, forbidden=profile.forbidden_tags))
        # Also what a plug-in's rules raise: whatever it is, it concerns this document alone.
        except Exception as error:
            log.warning("the rules failed on document %s: %s: %s", document.id, type(error).__name__, error)
            return Outcome(verdict="dead-letter", reason=RULE_ERROR, afresh=afresh, attempts=1)
        families = {profile.neutralise(one.pair.question)[0]: one.family for one in reversed(found)}
        pairs = await keep([one.pair for one in found], document.text, self.recipe, counts, self.judges)
        if pairs is None:
            return Outcome(verdict="dead-letter", reason=JUDGE_ERROR, afresh=afresh, attempts=1)
        add_reasons(counts, "mined", Counter(families[pair.question] for pair in pairs))
        if not pairs:
            return Outcome(verdict="raw", reason=chains.NO_PAIRS, afresh=afresh)
        return Outcome(pairs=pairs, afresh=afresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWriter:
    """Strategies with a model: prompt, completion, pairs."""

    recipe: Recipe
    engine: Engine
    judges: Sequence[PairJudge] = ()

    def open(self, priority: int) -> ChainWriter:
        """A writer that remembers what the engine has seen of its chain."""
        profile = self.recipe.profile
        prompts = ChainPrompts(
            self.engine.tokenizer, eos=profile.eos, add_special_tokens=profile.bos_policy == "reference"
        )
        return _ModelChain(
            recipe=self.recipe, engine=self.engine, judges=self.judges, prompts=prompts, priority=priority
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelChain:
    """One chain that a model writes."""

    recipe: Recipe
    engine: Engine
    judges: Sequence[PairJudge]
    prompts: ChainPrompts
    priority: int

    async def write(self, chain: Sequence[Shot], document: Document, counts: Counter[str]) -> Outcome:
        """Ask the engine, up to ``MAX_ATTEMPTS`` times.

        Raises:
            EnvironmentNotReadyError: The engine is gone.
            ConfigError: The engine refuses every request.
        """
        step, ids = self._prompt(chain, document.text)
        afresh = step.verdict != "continue"
        if step.verdict == "too-long":
            return Outcome(verdict="raw", reason=chains.TOO_LONG)
        profile, sampling = self.recipe.profile, self.recipe.settings.sampling
        request = GenerationRequest(
            prompt_ids=ids,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed_of(self.recipe.settings.seed, document.id),
            stop_ids=(self.engine.tokenizer.id_of(profile.eos),),
            priority=self.priority,
        )
        completion, attempts = await self._ask(request, document.id, counts)
        counts["retries"] += attempts - 1
        if completion is None:
            return Outcome(
                verdict="dead-letter", reason=ENGINE_ERROR, afresh=afresh, attempts=attempts, prompt_tokens=len(ids)
            )
        self.prompts.took(step.prompt, ids, completion)
        counts[f"finish_{completion.finish_reason}"] += 1
        report = profile.parse_report(completion.text)
        counts["pieces"] += report.pieces
        add_reasons(counts, "unparsed", report.dropped_by_reason)
        pairs = await keep(report.pairs, document.text, self.recipe, counts, self.judges)
        verdict, reason = _verdict(pairs)
        return Outcome(
            pairs=pairs or (),
            verdict=verdict,
            reason=reason,
            afresh=afresh,
            attempts=attempts,
            prompt_tokens=len(ids),
            completion_tokens=len(completion.token_ids),
            completion=completion.text,
            cached_tokens=completion.cached_tokens,
        )

    async def _ask(
        self, request: GenerationRequest, document: str, counts: Counter[str]
    ) -> tuple[Completion | None, int]:
        """The completion, or None when the engine failed on this request for good; and the attempts."""
        attempt = 0
        while True:
            attempt += 1
            counts["requests"] += 1
            try:
                completion = await self.engine.generate(request)
            except (EnvironmentNotReadyError, ConfigError):
                raise
            # Also what a plug-in engine raises: whatever it is, it concerns this document alone.
            except Exception as error:
                log.warning("the engine failed on document %s, attempt %d: %s", document, attempt, error)
                if isinstance(error, RequestFailedError):
                    return None, attempt - 1 + error.attempts
                if not (isinstance(error, InstructPTError) and error.retryable) or attempt >= MAX_ATTEMPTS:
                    return None, attempt
            else:
                return completion, attempt - 1 + completion.attempts

    def _prompt(self, chain: Sequence[Shot], document: str) -> tuple[Step, tuple[int, ...]]:
        """Whether the chain goes on, by exact token counts, and the prompt's ids."""
        settings, profile = self.recipe.settings, self.recipe.profile
        limit = settings.sampling.context_window - settings.sampling.max_tokens
        encoded: dict[str, tuple[int, ...]] = {}

        def count(text: str) -> float:
            ids = self.prompts.ids(text)
            encoded[text] = ids
            return len(ids)

        step = chains.advance(
            chain,
            document,
            shots=settings.shots,
            render=profile.render,
            count_tokens=count,
            max_prompt_tokens=limit,
            estimate_tokens=chains.estimate_tokens_reference if settings.layout == "reference" else None,
        )
        return step, encoded.get(step.prompt, ())


def _verdict(pairs: tuple[Pair, ...] | None) -> tuple[Verdict, str]:
    """Verdict and reason of a document whose completion was parsed."""
    if pairs is None:
        return "dead-letter", JUDGE_ERROR
    return ("augmented", "") if pairs else ("raw", chains.NO_PAIRS)


async def keep(
    found: Iterable[Pair], document: str, recipe: Recipe, counts: Counter[str], asked: Sequence[PairJudge] = ()
) -> tuple[Pair, ...] | None:
    """The pairs that filters and judges let through, tags neutralised; None where a judge failed.

    The dropped are counted by reason.
    """
    kept = _filtered(found, document, recipe, counts)
    if not asked or not kept:
        return kept
    result = await judges.judge(kept, asked, document, counts)
    if result is None:
        add_reasons(counts, "filtered", {JUDGE_ERROR: len(kept)})
        return None
    add_reasons(counts, "filtered", result.dropped_by_reason)
    return result.kept


def _filtered(found: Iterable[Pair], document: str, recipe: Recipe, counts: Counter[str]) -> tuple[Pair, ...]:
    result = filters.apply(found, recipe.filter_settings, document)
    counts["parsed_pairs"] += result.num_pairs
    add_reasons(counts, "filtered", result.dropped_by_reason)
    kept: list[Pair] = []
    for pair in result.kept:
        question, in_question = recipe.profile.neutralise(pair.question)
        answer, in_answer = recipe.profile.neutralise(pair.answer)
        counts["neutralised_pairs"] += bool(in_question + in_answer)
        kept.append(Pair(question, answer, pair.kind) if in_question + in_answer else pair)
    return tuple(kept)


def seed_of(seed: int, name: str) -> int:
    """A seed for one thing of many: the spec's seed plus 32 bits of the sha256 of its name."""
    return seed + int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)


def add_reasons(counts: Counter[str], prefix: str, reasons: Any) -> None:
    """Add counts by reason under names such as ``unparsed_no_answer_tag``."""
    for reason, number in reasons.items():
        counts[count_name(prefix, reason)] += number


def count_name(prefix: str, reason: str) -> str:
    """The name of a count by reason."""
    return f"{prefix}_{reason.replace('-', '_')}"
