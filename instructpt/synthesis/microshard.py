"""One micro-shard: its documents become chains, each document gets a verdict, and every count adds up.

What comes out is a function of (documents, settings, profile, templates, model): chains are worked on at the same
time, results are put together in the order of the documents. A document that fails, is too long or yields no pair
never takes its neighbours with it (arXiv 2406.14491, section 2.2, for chains; the verdicts are this project's).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow
from instructpt.corpus.document import Document
from instructpt.synthesis import chains, filters
from instructpt.synthesis.chains import ChainState, Entry
from instructpt.synthesis.model import Shot
from instructpt.synthesis.questions import AskedQuestions
from instructpt.synthesis.templates import Rendered, main_row
from instructpt.synthesis.writers import ChainWriter, Outcome, Recipe, add_reasons, count_name, seed_of

MAX_EXAMPLES = 3
EXAMPLE_CHARACTERS = 200
NOT_CONVERTED = "not-converted"


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


def is_converted(text: str, share: float, seed: int) -> bool:
    """Whether a document is among the share that gets pairs: by its content, so that equal texts fall on one side."""
    digest = hashlib.sha256(f"convert\0{seed}\0".encode() + text.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:13], 16) / float(16**13) < share


class OpenShard:
    """A micro-shard under way: chains come in any order, rows go out in the order of the documents.

    Args:
        name: Its id.
        documents: Its documents, in order.
        recipe: Settings, profile and templates.

    Attributes:
        name: Its id.
        chains: Documents that may form a chain, by index; every document that is to be converted is in one of them.
    """

    def __init__(self, name: str, documents: Iterable[Document], recipe: Recipe) -> None:
        self.name = name
        self._recipe = recipe
        self._counts: Counter[str] = Counter()
        self._documents = [self._clean(document) for document in documents]
        self._outcomes: dict[int, Outcome] = {}
        self._entries: list[Entry] = []
        settings, texts = recipe.settings, [document.text for document in self._documents]
        self._chosen = [i for i, text in enumerate(texts) if is_converted(text, settings.convert, settings.seed)]
        for index in sorted(set(range(len(texts))) - set(self._chosen)):
            self._entries.append(Entry(indices=(index,), shots=(Shot(texts[index]),), reason=NOT_CONVERTED))
        arranged = chains.arrange([texts[index] for index in self._chosen], settings.shots, settings.layout)
        self.chains = tuple(tuple(self._chosen[position] for position in chain) for chain in arranged)

    def _clean(self, document: Document) -> Document:
        text, tags = self._recipe.profile.neutralise(document.text)
        self._counts["neutralised"] += bool(tags)
        return Document(id=document.id, text=text) if tags else document

    async def carry(
        self, indices: Sequence[int], writer: ChainWriter, observe: Callable[[Outcome], None] = lambda outcome: None
    ) -> None:
        """One chain, shot after shot; a shot is asked for the moment the one before is parsed.

        Raises:
            EnvironmentNotReadyError: The engine is gone.
            ConfigError: The engine refuses every request.
        """
        state = ChainState()
        for index in indices:
            document = self._documents[index]
            outcome = await writer.write(state.shots, document, self._counts)
            self._outcomes[index] = outcome
            state, _ = _record(state, index, document, outcome)
            self._counts["completion_tokens"] += outcome.completion_tokens
            self._counts["prompt_tokens"] += outcome.prompt_tokens
            self._counts["pairs"] += len(outcome.pairs)
            observe(outcome)

    def close(self) -> MicroShard:
        """The rows and counts, once every chain was carried."""
        self._drop_repeated_questions()
        self._form_chains()
        rows = self._rows()
        _count_verdicts(rows, self._counts)
        ordered = [self._outcomes[i].completion for i in sorted(self._outcomes) if self._outcomes[i].completion_tokens]
        examples = tuple(completion[:EXAMPLE_CHARACTERS] for completion in ordered[:MAX_EXAMPLES])
        counts = {name: number for name, number in sorted(self._counts.items()) if number}
        return MicroShard(rows=tuple(rows), counts=counts, examples=examples)

    def _drop_repeated_questions(self) -> None:
        """Keep the first of equal questions in the order of the documents, where the spec asks for that.

        Done at the end, so that it does not matter which chain was faster.
        """
        settings = self._recipe.filter_settings
        if self._recipe.settings.filters.question_scope == "document" or settings.deduplicate == "none":
            return
        asked = AskedQuestions(settings.question_similarity, indexed=True)
        for index in sorted(self._outcomes):
            outcome = self._outcomes[index]
            result = filters.drop_asked(outcome.pairs, asked)
            if not result.dropped_by_reason:
                continue
            add_reasons(self._counts, "filtered", result.dropped_by_reason)
            self._counts["pairs"] -= len(outcome.pairs) - len(result.kept)
            outcome = replace(outcome, pairs=result.kept)
            self._outcomes[index] = outcome if result.kept else replace(outcome, verdict="raw", reason=chains.NO_PAIRS)

    def _form_chains(self) -> None:
        """Entries from what became of the documents."""
        for indices in self.chains:
            state = ChainState()
            for index in indices:
                state, finished = _record(state, index, self._documents[index], self._outcomes[index])
                self._entries.extend(finished)
            self._entries.extend(state.close())

    def _shot(self, index: int, text: str) -> ShotRow:
        """The row of one document."""
        outcome = self._outcomes.get(index) or Outcome(verdict="raw", reason=NOT_CONVERTED)
        return ShotRow(
            document=self._documents[index].id,
            text="" if outcome.verdict == "dead-letter" else text,
            pairs=tuple(PairRow(question=p.question, answer=p.answer, kind=p.kind) for p in outcome.pairs),
            verdict=outcome.verdict,
            reason=outcome.reason,
            attempts=outcome.attempts,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
        )

    def _rows(self) -> list[ChainRow]:
        """Every entry as rows, in the order of its first document, or of the reference's collections."""
        rows: list[ChainRow] = []
        render = self._recipe.templates.render_collection
        for seed, together in self._seeded():
            shots = [
                tuple(self._shot(i, s.document) for i, s in zip(e.indices, e.shots, strict=True)) for e in together
            ]
            living = [found[0].verdict != "dead-letter" for found in shots]
            texts = iter(render([e.shots for e, lives in zip(together, living, strict=True) if lives], seed))
            for entry, found, lives in zip(together, shots, living, strict=True):
                rendered = next(texts) if lives else (Rendered(text=""),)
                self._counts["chains"] += lives and bool(entry.shots[0].pairs)
                rows += self._rows_of(len(rows), rendered, found, seed)
        return rows

    def _shots(self, entry: Entry) -> tuple[ShotRow, ...]:
        return tuple(self._shot(i, shot.document) for i, shot in zip(entry.indices, entry.shots, strict=True))

    def _rows_of(
        self, start: int, rendered: Sequence[Rendered], shots: tuple[ShotRow, ...], seed: int
    ) -> list[ChainRow]:
        """The rows of one entry; the main one holds its shots."""
        main = main_row(rendered)
        for row in rendered:
            add_reasons(self._counts, "template_repaired", row.repaired)
            add_reasons(self._counts, "template_dropped", row.dropped)
        return [
            ChainRow(
                id=f"{self.name}/{start + number}",
                text=row.text,
                shots=shots if number == main else (),
                templates=row.template_ids,
                seed=seed,
            )
            for number, row in enumerate(rendered)
        ]

    def _seeded(self) -> Iterator[tuple[int, list[Entry]]]:
        """The entries that are rendered with one seed, and that seed: by number in the reference, else by content."""
        settings = self._recipe.settings
        in_order = sorted(self._entries, key=lambda entry: entry.indices[0])
        if self._recipe.templates.compat == "fixed":
            for entry in in_order:
                yield seed_of(settings.seed, self._documents[entry.indices[0]].id), [entry]
            return
        together = [[entry] for entry in in_order]
        if settings.layout == "reference":
            collected = chains.collections(len(self._chosen), settings.shots)
            by_index = [[[self._chosen[place] for place in chain] for chain in found] for found in collected]
            together = chains.gather(in_order, by_index)
        for number, entries in enumerate(together):
            yield settings.seed + number, entries


def _record(
    state: ChainState, index: int, document: Document, outcome: Outcome
) -> tuple[ChainState, tuple[Entry, ...]]:
    reason = outcome.reason or chains.NO_PAIRS
    return state.record(index, document.text, outcome.pairs, afresh=outcome.afresh, reason=reason)


def _count_verdicts(rows: Iterable[ChainRow], counts: Counter[str]) -> None:
    names = {"augmented": "augmented", "raw": "raw", "dead-letter": "dead_letters"}
    for row in rows:
        for shot in row.shots:
            counts["documents"] += 1
            counts[names[shot.verdict]] += 1
            if shot.reason:
                counts[count_name(names[shot.verdict], shot.reason)] += 1
            for pair in shot.pairs:
                counts[count_name("pairs", pair.kind)] += 1
