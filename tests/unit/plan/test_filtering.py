from __future__ import annotations

from api_cases import minimal

from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.api.v1alpha1.filters import Filters
from instructpt.local.spec_file import parse_resource
from instructpt.plan import plan_resource
from instructpt.plan.filtering import filters_on

EVERYTHING = {
    "questionSimilarity": 0.7,
    "questionScope": "micro-shard",
    "maxRepetition": 0.25,
    "languages": ["en", "de"],
    "requireGroundedAnswers": True,
    "minGroundedness": 0.5,
    "minLikelihoodGain": 0.25,
    "judge": {"endpoint": "http://judge:8000/v1", "servedModel": "judge-7b"},
    "decontaminate": {"sets": [{"uri": "/eval.jsonl"}, {"uri": "/more.jsonl"}], "ngram": 8, "minMatches": 2},
    "plugins": ["no-urls"],
}


def test_defaults_are_said_too() -> None:
    assert filters_on(parse_resource(minimal("SynthesisJob"))) == {
        "pairs": (
            "duplicate questions of a document",
            "questions outside 1 to 2,000 characters",
            "answers outside 1 to 4,000 characters",
        )
    }


def test_everything_that_is_on_is_said() -> None:
    said = filters_on(parse_resource(minimal("InstructionPretraining", synthesis__filters=EVERYTHING)))["pairs"]
    assert said[0] == "duplicate questions of a micro-shard (from similarity 0.7 on)"
    assert said[3:] == (
        "repetition above 25%",
        "languages other than en, de",
        "answers that share no word with their document",
        "answers grounded to less than 50%",
        "answers that gain less than 0.25 bits a token from their document",
        "answers that judge-7b finds unsupported",
        "what shares 2 runs of 8 words with 2 evaluation sets",
        "plug-ins no-urls",
    )


def test_every_field_of_the_filters_decides_what_is_said() -> None:
    base = filters_on(parse_resource(minimal("SynthesisJob")))
    changed = {
        "deduplicateQuestions": False, "minQuestionCharacters": 5, "maxQuestionCharacters": 9,
        "minAnswerCharacters": 5, "maxAnswerCharacters": 9, **EVERYTHING,
    }  # fmt: skip
    assert {field.alias for field in Filters.model_fields.values()} == set(changed)
    for name, value in changed.items():
        assert filters_on(parse_resource(minimal("SynthesisJob", filters={name: value}))) != base, name


DOCUMENTS = {
    "minWords": 5,
    "maxWords": 4000,
    "maxRepetition": 0.25,
    "languages": ["en"],
    "decontaminate": {"sets": [{"uri": "/eval.jsonl"}]},
    "deduplicate": "minhash",
    "similarity": 0.7,
}


def test_filters_of_documents() -> None:
    assert filters_on(parse_resource(minimal("Corpus"))) == {"documents": ()}
    assert filters_on(parse_resource(minimal("InstructionPretraining", corpus__filters=DOCUMENTS)))["documents"] == (
        "shorter ones than 5 words",
        "longer ones than 4,000 words",
        "repetition above 25%",
        "languages other than en",
        "what shares 1 runs of 13 words with 1 evaluation sets",
        "duplicates",
        "near-duplicates (from similarity 0.7 on)",
    )
    assert {field.alias for field in CorpusFilters.model_fields.values()} == set(DOCUMENTS)


def test_the_worker_reads_the_filters_and_none_where_none_is_on() -> None:
    pipeline = parse_resource(minimal("InstructionPretraining", corpus__filters=DOCUMENTS))
    on = plan_resource(pipeline, {}, code_version="0")
    assert on.stages[0].runspec.inspect.filters == CorpusFilters.model_validate(DOCUMENTS)
    off = plan_resource(parse_resource(minimal("Corpus", filters={"deduplicate": "none"})), {}, code_version="0")
    assert off.stages[0].runspec.inspect.filters is None


def test_other_kinds_filter_nothing() -> None:
    assert filters_on(parse_resource(minimal("TrainingJob"))) == {}
