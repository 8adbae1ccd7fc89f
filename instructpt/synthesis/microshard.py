"""One micro-shard: its documents become chains, each document gets a verdict, and every count adds up.

What comes out is a function of (documents, settings, profile, templates, model): chains are worked on at the same
time, results are put together in the order of the documents. A document that fails, is too long or yields no pair
never takes its neighbours with it (arXiv 2406.14491, section 2.2, for chains; the verdicts are this project's).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, Verdict
from instructpt.corpus.document import Document
from instructpt.errors import ConfigError, EnvironmentNotReadyError, InstructPTError
from instructpt.synthesis import chains, filters, mined
from instructpt.synthesis.chains import ChainState, Entry, Step
from instructpt.synthesis.engine import Completion, Engine, GenerationRequest, RequestFailedError
from instructpt.synthesis.model import Pair, Shot
from instructpt.synthesis.profiles import Profile
from instructpt.synthesis.templates import Templates

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
MAX_EXAMPLES = 3
EXAMPLE_CHARACTERS = 200
NOT_CONVERTED = "not-converted"
ENGINE_ERROR = "engine-error"
NOT_GROUNDED = "not-grounded"
# Where no tokenizer is at hand, English text has about four bytes a token (protocols.md 1).
_BYTES_PER_TOKEN = 4
_WORD = re.compile(r"\w+")


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
    """

    pairs: tuple[Pair, ...] = ()
    verdict: Verdict = "augmented"
    reason: str = ""
    afresh: bool = True
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroShard:
    """A synthesized micro-shard.

    Attributes:
        rows: In the order of the documents.
        counts: Of everything that happened; ``documents == augmented + raw + dead_letters``.
        examples: The first completions, cut.
    """

    rows: tuple[ChainRow, ...]
    counts: dict[str, int]
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What decides a micro-shard beside its documents and the model.

    Attributes:
        settings: Of the spec.
        profile: Wire format of the synthesizer.
        templates: How chains become text.
        deduplicate: The strategy's; the spec may turn it off.
    """

    settings: SynthesisSettings
    profile: Profile
    templates: Templates
    deduplicate: filters.Deduplicate = "document"

    @property
    def filter_settings(self) -> filters.FilterSettings:
        """The spec's filters as the filters take them."""
        given = self.settings.filters
        return filters.FilterSettings(
            deduplicate=self.deduplicate if given.deduplicate_questions else "none",
            max_question_chars=given.max_question_characters,
            max_answer_chars=given.max_answer_characters,
        )


class Writer(Protocol):
    """Writes the pairs of a document that follows a chain."""

    async def write(self, chain: Sequence[Shot], document: Document, counts: Counter[str]) -> Outcome:
        """What becomes of ``document`` (its tags neutralised) after ``chain``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWriter:
    """Strategy ``mined``: rules, no model. A chain ends where its text would exceed the context, by estimate."""

    recipe: Recipe

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
        found = mined.mine(document.text, settings.seed, forbidden=profile.forbidden_tags)
        pairs = keep(found, document.text, self.recipe, counts)
        afresh = step.verdict != "continue"
        if not pairs:
            return Outcome(verdict="raw", reason=chains.NO_PAIRS, afresh=afresh)
        return Outcome(pairs=pairs, afresh=afresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWriter:
    """Strategies with a model: prompt, completion, pairs."""

    recipe: Recipe
    engine: Engine

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
            prompt_ids=tuple(ids),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed_of(self.recipe.settings.seed, document.id),
            stop_ids=(self.engine.tokenizer.id_of(profile.eos),),
        )
        completion, attempts = await self._ask(request, document.id, counts)
        counts["retries"] += attempts - 1
        if completion is None:
            return Outcome(
                verdict="dead-letter", reason=ENGINE_ERROR, afresh=afresh, attempts=attempts, prompt_tokens=len(ids)
            )
        counts[f"finish_{completion.finish_reason}"] += 1
        report = profile.parse_report(completion.text)
        counts["pieces"] += report.pieces
        add_reasons(counts, "unparsed", report.dropped_by_reason)
        pairs = keep(report.pairs, document.text, self.recipe, counts)
        return Outcome(
            pairs=pairs,
            verdict="augmented" if pairs else "raw",
            reason="" if pairs else chains.NO_PAIRS,
            afresh=afresh,
            attempts=attempts,
            prompt_tokens=len(ids),
            completion_tokens=len(completion.token_ids),
            completion=completion.text,
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

    def _prompt(self, chain: Sequence[Shot], document: str) -> tuple[Step, list[int]]:
        """Whether the chain goes on, by exact token counts, and the prompt's ids."""
        settings, profile = self.recipe.settings, self.recipe.profile
        limit = settings.sampling.context_window - settings.sampling.max_tokens
        encoded: dict[str, list[int]] = {}

        def count(text: str) -> float:
            ids = self.engine.tokenizer.encode(text, add_special_tokens=profile.bos_policy == "reference")
            encoded[text] = ids
            if settings.layout == "reference" and len(ids) <= limit:
                return chains.estimate_tokens_reference(text)
            return len(ids)

        step = chains.advance(
            chain,
            document,
            shots=settings.shots,
            render=profile.render,
            count_tokens=count,
            max_prompt_tokens=limit,
        )
        return step, encoded.get(step.prompt, [])


def keep(found: Iterable[Pair], document: str, recipe: Recipe, counts: Counter[str]) -> tuple[Pair, ...]:
    """The pairs that the filters let through, tags neutralised; the dropped are counted by reason."""
    result = filters.apply(found, recipe.filter_settings)
    add_reasons(counts, "filtered", result.dropped_by_reason)
    kept: list[Pair] = []
    for pair in result.kept:
        if recipe.settings.filters.require_grounded_answers and not _shares_a_word(pair, document):
            counts[_name("filtered", NOT_GROUNDED)] += 1
            continue
        question, in_question = recipe.profile.neutralise(pair.question)
        answer, in_answer = recipe.profile.neutralise(pair.answer)
        counts["neutralised_pairs"] += bool(in_question + in_answer)
        kept.append(Pair(question, answer, pair.kind) if in_question + in_answer else pair)
    return tuple(kept)


def _shares_a_word(pair: Pair, document: str) -> bool:
    """Whether a free answer has a word of its document; other kinds take their answers from options or reasoning."""
    if pair.kind != "free":
        return True
    return not set(_WORD.findall(pair.answer.lower())).isdisjoint(_WORD.findall(document.lower()))


def is_converted(text: str, share: float, seed: int) -> bool:
    """Whether a document is among the share that gets pairs: by its content, so that equal texts fall on one side."""
    digest = hashlib.sha256(f"convert\0{seed}\0".encode() + text.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:13], 16) / float(16**13) < share


def seed_of(seed: int, name: str) -> int:
    """A seed for one thing of many: the spec's seed plus 32 bits of the sha256 of its name."""
    return seed + int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)


def add_reasons(counts: Counter[str], prefix: str, reasons: Any) -> None:
    """Add counts by reason under names such as ``unparsed_no_answer_tag``."""
    for reason, number in reasons.items():
        counts[_name(prefix, reason)] += number


def _name(prefix: str, reason: str) -> str:
    return f"{prefix}_{reason.replace('-', '_')}"


@dataclass(slots=True)
class _Work:
    """A micro-shard under way."""

    recipe: Recipe
    documents: list[Document]
    writer: Writer
    report: Callable[[Counter[str]], None]
    counts: Counter[str] = field(default_factory=Counter)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    async def chain(self, indices: Sequence[int]) -> None:
        """One chain, shot after shot; a shot is asked for the moment the one before is parsed."""
        state = ChainState()
        for index in indices:
            document = self.documents[index]
            outcome = await self.writer.write(state.shots, document, self.counts)
            self.outcomes[index] = outcome
            afresh, reason = outcome.afresh, outcome.reason or chains.NO_PAIRS
            state, finished = state.record(index, document.text, outcome.pairs, afresh=afresh, reason=reason)
            self.entries.extend(finished)
            self.counts["completion_tokens"] += outcome.completion_tokens
            self.counts["prompt_tokens"] += outcome.prompt_tokens
            self.counts["pairs"] += len(outcome.pairs)
            self.report(self.counts)
        self.entries.extend(state.close())

    def shot(self, index: int, text: str) -> ShotRow:
        """The row of one document."""
        outcome = self.outcomes.get(index) or Outcome(verdict="raw", reason=NOT_CONVERTED)
        return ShotRow(
            document=self.documents[index].id,
            text="" if outcome.verdict == "dead-letter" else text,
            pairs=tuple(PairRow(question=p.question, answer=p.answer, kind=p.kind) for p in outcome.pairs),
            verdict=outcome.verdict,
            reason=outcome.reason,
            attempts=outcome.attempts,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
        )

    def rows(self, shard: str) -> list[ChainRow]:
        """Every entry as a row, in the order of its first document."""
        rows: list[ChainRow] = []
        for entry in sorted(self.entries, key=lambda e: e.indices[0]):
            shots = tuple(self.shot(i, s.document) for i, s in zip(entry.indices, entry.shots, strict=True))
            name = self.documents[entry.indices[0]].id
            seed = self.recipe.settings.seed
            seed = seed + len(rows) if self.recipe.templates.compat == "reference" else seed_of(seed, name)
            if shots[0].verdict == "dead-letter":
                rows.append(ChainRow(id=f"{shard}/{len(rows)}", text="", shots=shots, templates=(), seed=seed))
                continue
            self.counts["chains"] += bool(entry.shots[0].pairs)
            for number, rendered in enumerate(self.recipe.templates.render_rows(entry.shots, seed)):
                add_reasons(self.counts, "template_repaired", rendered.repaired)
                add_reasons(self.counts, "template_dropped", rendered.dropped)
                rows.append(
                    ChainRow(
                        id=f"{shard}/{len(rows)}",
                        text=rendered.text,
                        shots=shots if number == 0 else (),
                        templates=rendered.template_ids,
                        seed=seed,
                    )
                )
        return rows


async def synthesize(
    shard: str,
    documents: Iterable[Document],
    recipe: Recipe,
    writer: Writer,
    *,
    concurrency: int,
    report: Callable[[Counter[str]], None] = lambda counts: None,
) -> MicroShard:
    """Synthesize one micro-shard.

    Args:
        shard: Its id.
        documents: Its documents, in order.
        recipe: Settings, profile and templates.
        writer: Rules or a model.
        concurrency: Chains in flight.
        report: Is told the running counts after each document.

    Raises:
        EnvironmentNotReadyError: The engine is gone; nothing was made.
        ConfigError: The engine refuses every request.
    """
    counts: Counter[str] = Counter()
    clean: list[Document] = []
    for document in documents:
        text, tags = recipe.profile.neutralise(document.text)
        counts["neutralised"] += bool(tags)
        clean.append(Document(id=document.id, text=text) if tags else document)
    work = _Work(recipe=recipe, documents=clean, writer=writer, report=report, counts=counts)
    settings = recipe.settings
    chosen = [i for i, d in enumerate(clean) if is_converted(d.text, settings.convert, settings.seed)]
    for index in sorted(set(range(len(clean))) - set(chosen)):
        work.entries.append(Entry(indices=(index,), shots=(Shot(clean[index].text),), reason=NOT_CONVERTED))
    arranged = chains.arrange([clean[i].text for i in chosen], settings.shots, settings.layout)
    pending = iter([[chosen[position] for position in chain] for chain in arranged])

    async def work_off() -> None:
        for indices in pending:
            await work.chain(indices)

    await _all_or_none([work_off() for _ in range(min(concurrency, len(arranged)))])
    rows = work.rows(shard)
    _count_verdicts(rows, counts)
    ordered = [work.outcomes[i].completion for i in sorted(work.outcomes) if work.outcomes[i].completion_tokens]
    examples = tuple(completion[:EXAMPLE_CHARACTERS] for completion in ordered[:MAX_EXAMPLES])
    return MicroShard(rows=tuple(rows), counts={k: v for k, v in sorted(counts.items()) if v}, examples=examples)


async def _all_or_none(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all; when one fails or the caller is cancelled, end the others first."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _count_verdicts(rows: Iterable[ChainRow], counts: Counter[str]) -> None:
    names = {"augmented": "augmented", "raw": "raw", "dead-letter": "dead_letters"}
    for row in rows:
        for shot in row.shots:
            counts["documents"] += 1
            counts[names[shot.verdict]] += 1
            if shot.reason:
                counts[_name(names[shot.verdict], shot.reason)] += 1
            for pair in shot.pairs:
                counts[_name("pairs", pair.kind)] += 1
