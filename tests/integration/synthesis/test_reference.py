"""compat: reference and layout: reference equal the reference implementation, byte for byte.

The reference is run as it is, from a checkout that INSTRUCTPT_REFERENCE names.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

import pytest
import reference_checkout
import synthesis_support as support
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference_checkout import Oracle, oracle

from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.corpus.document import Document
from instructpt.synthesis import Pair, Shot, make_pair, profiles, templates
from instructpt.synthesis.microshard import MicroShard
from instructpt.synthesis.model import CONCLUSION_MARK, OPTIONS_MARK, STEP_BY_STEP, with_options
from instructpt.synthesis.templates.lint import OVERLAP_LIMIT, overlap
from instructpt.synthesis.templates.patterns import native
from instructpt.synthesis.writers import ModelWriter, Recipe

__all__ = ["oracle"]

PROFILE = profiles.load(compat="reference")
# Every text that means something to one of the two: tags, marks, placeholders, and what str.strip takes away.
WORDS = (
    "<s>", "</s>", "<CON>", "</CON>", "<QUE>", "<ANS>", "</END>", "\n\n", "\n", " ", ".", "a", "b", "Why?", "ẞß",
    "{question}", "{answer}", "{context}", "{QA_demos}", "{}", "{0}", STEP_BY_STEP, CONCLUSION_MARK, OPTIONS_MARK,
    "\n- ", "None", "unknown", "\x1c", "\u00a0",
)  # fmt: skip
wild = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=8).map("".join)
word = st.sampled_from(["red", "Blue", "green.", " grey ", "", "None", "Nothing fits"]) | st.text(max_size=6)
many = settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def tidy_pairs(draw: st.DrawFn) -> Pair:
    """A pair of one of the four kinds, sound or with a gold answer that is missing, empty parts and a broken mark."""
    question, answer = draw(word), draw(word)
    if draw(st.booleans()):
        offered = draw(st.lists(word, min_size=1, max_size=draw(st.sampled_from([4, 30]))))
        question, answer = with_options(question, offered), draw(st.sampled_from([*offered, answer]))
    if draw(st.booleans()):
        question += draw(st.sampled_from([STEP_BY_STEP, STEP_BY_STEP, "", STEP_BY_STEP + " "]))
        answer = draw(word) + CONCLUSION_MARK + answer
    return make_pair(question, answer)


any_pair = tidy_pairs() | st.builds(make_pair, wild, wild)
shots = st.builds(Shot, wild, st.lists(any_pair, max_size=4).map(tuple))
lists = st.builds(
    lambda size, kind: Shot("d", tuple(make_pair(f"q{i}", f"a{i}.{kind}") for i in range(size))),
    st.sampled_from([2, 26, 27, 40]),
    st.sampled_from(["", "{answer}"]),
)


@many
@given(st.lists(st.builds(Shot, wild, st.lists(st.builds(Pair, wild, wild), min_size=1, max_size=3).map(tuple))), wild)
def test_prompts(oracle: Oracle, chain: list[Shot], document: str) -> None:
    assert PROFILE.render(chain, document) == oracle.chain_prompt(chain, document)


@many
@given(wild | st.lists(st.sampled_from(WORDS[:9] + ("<QUE> q <ANS> a </END>", "<QUE> Q <ANS> b </END>"))).map("".join))
def test_parses(oracle: Oracle, completion: str) -> None:
    assert [(pair.question, pair.answer) for pair in PROFILE.parse(completion)] == oracle.parse(completion)


def rendered(chains: list[list[Shot]], seed: int) -> list[str]:
    used = templates.load(str(reference_checkout.folder()), compat="reference")
    return [row.text for rows in used.render_collection(chains, seed) for row in rows]


@many
@given(st.lists(st.lists(shots | lists, min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 10**6))
def test_texts(oracle: Oracle, chains: list[list[Shot]], seed: int) -> None:
    assert rendered(chains, seed) == oracle.texts(chains, seed)


def test_texts_of_every_shape(oracle: Oracle) -> None:
    # By seed and not by chance: 2,000 seeds draw every shape and nearly every pattern.
    used = templates.load(str(reference_checkout.folder()), compat="reference")
    cot = make_pair(f"q3{STEP_BY_STEP}", f"because.{CONCLUSION_MARK}c.")
    both = make_pair(f"q4{OPTIONS_MARK}x\n- y{STEP_BY_STEP}", f"so{CONCLUSION_MARK}y")
    full = Shot("document one", (make_pair("q1", "a1"), make_pair(f"q2{OPTIONS_MARK}x\n- y", "x"), cot, both))
    reasoned, few, raw = Shot("document two", (cot, both)), Shot("document three", (cot,)), Shot("document four")
    seen: set[str] = set()
    for seed in range(12345, 14345):
        for chains in ([[full, reasoned]], [[few], [full]], [[raw], [few, full], [reasoned]]):
            assert rendered(chains, seed) == oracle.texts(chains, seed), seed
        seen.update(used.render_with_ids([full, reasoned], seed).template_ids[:1])
        seen.update(x for x in used.render_with_ids([reasoned], seed).template_ids if x.startswith("inline-explained"))
    assert {"classic", "dialog", "numbered", "inline", "next-turn"} < seen
    assert any(x.startswith("inline-explained") for x in seen)


def make(
    texts: list[str], complete: Callable[[str], str], *, shots: int, window: int, new_tokens: int, order: int
) -> tuple[MicroShard, list[str]]:
    engine = support.ScriptedEngine(
        lambda prompt: complete(prompt.removeprefix("<s>")), seed=order, backend=support.WholeTextBackend()
    )
    sampling = {"contextWindow": window, "maxTokens": new_tokens}
    source = str(reference_checkout.folder())
    recipe = Recipe(
        settings=SynthesisSettings.model_validate(
            {"shots": shots, "layout": "reference", "templates": source, "sampling": sampling}
        ),
        profile=PROFILE,
        templates=templates.load(source, compat="reference"),
    )
    documents = [Document(id=f"d{index}", text=text) for index, text in enumerate(texts)]
    writer = ModelWriter(recipe=recipe, engine=engine)
    made = support.synthesize(documents, recipe, writer, concurrency=1 + order % 5)
    # The engine is fed a second BOS, as the reference's tokenizer adds one.
    return made, [prompt.removeprefix("<s>") for prompt in engine.prompts]


def completion(prompt: str, salt: int) -> str:
    """A model: any number of pairs of any kind, by the hash of its prompt; about a third of the documents get none."""
    rng = random.Random(hashlib.sha256(f"{salt}\0{prompt}".encode("utf-8", "surrogatepass")).digest())
    pairs = []
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        question, answer = rng.choice(("Why?", "Who is it", "{answer}", "")), rng.choice(("red", "None", "Blue."))
        if rng.random() < 0.5:
            question, answer = with_options(question, ("red", "Blue.", "green")), rng.choice(("red", "green", "none"))
        if rng.random() < 0.3:
            question, answer = question + STEP_BY_STEP, f"As it says.{CONCLUSION_MARK}{answer}"
        pairs.append(f"<QUE> {question} <ANS> {answer} </END>")
    return "\n\n".join(pairs) + rng.choice(("", "", "\n\n<QUE> cut off"))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.text(max_size=10) | st.sampled_from(["", "one two three four", "x " * 30]), min_size=1, max_size=14),
    st.integers(1, 5),
    st.sampled_from([90, 200, 4096]),
    st.integers(0, 10**6),
)
def test_whole_runs(oracle: Oracle, texts: list[str], num_shots: int, words: int, salt: int) -> None:
    new_tokens, window = 40, words + 40
    last = len(texts) - (num_shots - 1) * -(-len(texts) // num_shots)
    # The reference raises an IndexError where its last round is empty, or shorter than what it leaves over.
    assume(2 * last >= -(-len(texts) // num_shots))

    def complete(prompt: str) -> str:
        return completion(prompt, salt)

    made, prompts = make(texts, complete, shots=num_shots, window=window, new_tokens=new_tokens, order=salt % 7)
    expected_prompts, expected = oracle.run(texts, complete, shots=num_shots, window=window, new_tokens=new_tokens)
    assert sorted(prompts) == sorted(expected_prompts)
    assert [row.text for row in made.rows] == expected


def test_no_pattern_is_the_references(oracle: Oracle) -> None:
    # By words: what labels and punctuation are left after that are anybody's.
    theirs = templates.load(str(reference_checkout.folder())).patterns  # type: ignore[attr-defined]
    texts = [p.body for group in theirs.few_shot.values() for p in group]
    texts += [text for group in theirs.strings.values() for text in group]
    texts += [text for group in theirs.inline.values() for p in group for text in (p.context, p.example, p.last)]
    spoken = {said: text for text in texts if len(said := words_of(text)) >= 3}
    alike = [
        (mine.text, text)
        for group in native().patterns.values()
        for mine in group
        for said, text in spoken.items()
        if words_of(mine.text) == said or overlap(" ".join(words_of(mine.text)), " ".join(said)) >= OVERLAP_LIMIT
    ]
    assert len(spoken) > 400
    assert alike == []


def words_of(pattern: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", re.sub(r"\{\w+\}", " ", pattern).lower()))


@pytest.mark.parametrize("place", ["", "utils", "utils/read_compre_pt.py"])
def test_a_checkout_is_found_by_any_of_its_paths(oracle: Oracle, place: str) -> None:
    used = templates.load(str(reference_checkout.folder() / place))  # type: ignore[operator]
    assert len(used.digest) == 64
    assert len(used.patterns.few_shot["cot"]) > 100  # type: ignore[attr-defined]
