"""Which filters a spec has on, in words for people. Pure."""

from __future__ import annotations

from instructpt.api.v1alpha1 import Corpus, InstructionPretraining, SynthesisJob
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.api.v1alpha1.decontamination import Decontamination
from instructpt.api.v1alpha1.filters import Filters
from instructpt.plan.planner import AnyResource


def filters_on(resource: AnyResource) -> dict[str, tuple[str, ...]]:
    """What is filtered (``documents``, ``pairs``) to the filters that are on; nothing for kinds that filter nothing."""
    match resource:
        case Corpus(spec=spec):
            return {"documents": _documents(spec.filters)}
        case SynthesisJob(spec=spec):
            return {"pairs": _pairs(spec.filters)}
        case InstructionPretraining(spec=spec):
            return {"documents": _documents(spec.corpus.filters), "pairs": _pairs(spec.synthesis.filters)}
    return {}


def _documents(filters: CorpusFilters) -> tuple[str, ...]:
    sets = filters.decontaminate
    wanted = {
        f"shorter ones than {filters.min_words or 0:,} words": filters.min_words is not None,
        f"longer ones than {filters.max_words or 0:,} words": filters.max_words is not None,
        f"repetition above {filters.max_repetition or 0:.0%}": filters.max_repetition is not None,
        f"languages other than {', '.join(filters.languages)}": bool(filters.languages),
        "" if sets is None else _contamination(sets): sets is not None,
        "duplicates": filters.deduplicate != "none",
        f"near-duplicates (from similarity {filters.similarity:g} on)": filters.deduplicate == "minhash",
    }
    return tuple(name for name, on in wanted.items() if on)


def _contamination(wanted: Decontamination) -> str:
    return f"what shares {wanted.min_matches} runs of {wanted.ngram} words with {len(wanted.sets)} evaluation sets"


def _pairs(filters: Filters) -> tuple[str, ...]:
    similar = "" if filters.question_similarity is None else f" (from similarity {filters.question_similarity:g} on)"
    gain = filters.min_likelihood_gain
    wanted = {
        f"duplicate questions of a {filters.question_scope}{similar}": filters.deduplicate_questions,
        f"questions outside {_range(filters.min_question_characters, filters.max_question_characters)}": True,
        f"answers outside {_range(filters.min_answer_characters, filters.max_answer_characters)}": True,
        f"repetition above {filters.max_repetition or 0:.0%}": filters.max_repetition is not None,
        f"languages other than {', '.join(filters.languages)}": bool(filters.languages),
        "answers that share no word with their document": filters.require_grounded_answers,
        f"answers grounded to less than {filters.min_groundedness:.0%}": filters.min_groundedness > 0,
        f"answers that gain less than {gain or 0:g} bits a token from their document": gain is not None,
        "" if filters.judge is None else f"answers that {filters.judge.served_model} finds unsupported": bool(
            filters.judge
        ),
        "" if filters.decontaminate is None else _contamination(filters.decontaminate): bool(filters.decontaminate),
        f"plug-ins {', '.join(filters.plugins)}": bool(filters.plugins),
    }
    return tuple(name for name, on in wanted.items() if on)


def _range(low: int, high: int) -> str:
    return f"{low:,} to {high:,} characters"
