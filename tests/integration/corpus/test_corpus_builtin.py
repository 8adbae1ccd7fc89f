"""``builtin://python-docs``: harvested without importing, the same each time, and inspected like any other corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from instructpt.corpus import builtin
from instructpt.corpus.prose import MAX_PIECE, is_prose
from instructpt.errors import EnvironmentNotReadyError

TREE = {
    "pkg/__init__.py": '"""%s"""\n',
    "pkg/mod.py": '''
"""Too short."""
import nothing_that_exists

def f(a, b=1, *rest, key, **more):
    """%s"""

class C(Base):
    """%s"""

    def m(self, x):
        """%s"""

    class Inner:
        """%s"""

try:
    def g():
        """%s"""
except ImportError:
    def g():
        """%s"""
''',
    "test/ignored.py": '"""%s"""\n',
    "pkg/tests/ignored.py": '"""%s"""\n',
    "site-packages/x.py": '"""%s"""\n',
    "broken.py": "def (:\n",
    "latin.py": "# coding: nonsense\n",
}


def prose(number):
    return f"This text number {number} tells in plain words what the thing does, and it is long enough to be kept."


@pytest.fixture
def tree(tmp_path):
    numbers = iter(range(100))
    for name, content in TREE.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        while "%s" in content:
            content = content.replace("%s", prose(next(numbers)), 1)
        path.write_text(content)
    return tmp_path / "lib"


def test_modules_classes_and_functions_become_documents(tree):
    documents = {d.id: d.text for d in builtin.harvest(tree)}
    assert list(documents) == [
        "python-docs/pkg#0",
        "python-docs/pkg.mod.f#0",
        "python-docs/pkg.mod.C#0",
        "python-docs/pkg.mod.C.Inner#0",
        "python-docs/pkg.mod.g#0",
        "python-docs/pkg.mod.g#1",
    ]
    assert documents["python-docs/pkg#0"] == f"The module pkg\n\n{prose(0)}\n"
    heading = "The function pkg.mod.f, with the parameters a, b, any number of rest, key and keywords more"
    assert documents["python-docs/pkg.mod.f#0"] == f"{heading}\n\n{prose(1)}\n"
    assert f"The method m, with the parameter x:\n{prose(3)}" in documents["python-docs/pkg.mod.C#0"]


def test_equal_texts_come_once(tree):
    (tree / "again.py").write_text(f'"""{prose(0)}"""\n')
    (tree / "zagain.py").write_text(f'"""{prose(0)}"""\n')
    ids = [d.id for d in builtin.harvest(tree) if prose(0) in d.text]
    assert ids == ["python-docs/again#0"]


def test_topics_are_cut_at_their_titles(tree):
    text = f"A title\n*******\n\n{prose(50)}\n\nA part\n======\n\n{prose(51)}\n"
    (tree / "pydoc_data").mkdir()
    (tree / "pydoc_data" / "topics.py").write_text(f"topics = {{'some': {text!r}}}\n")
    texts = [d.text for d in builtin.harvest(tree) if d.id.startswith("python-docs/topics.")]
    assert texts == [
        f"Python reference: A title (some)\n\n{prose(50)}\n",
        f"Python reference: A part (some)\n\n{prose(51)}\n",
    ]


def test_a_python_without_sources(tmp_path):
    with pytest.raises(EnvironmentNotReadyError, match="without the sources of its standard library"):
        builtin.harvest(tmp_path)


def test_this_python_gives_megabytes_of_prose():
    documents = builtin.documents()
    assert len(documents) > 1000
    assert sum(len(d.text) for d in documents) > 1_000_000
    assert len({d.id for d in documents}) == len({d.text for d in documents}) == len(documents)
    for document in documents:
        heading, body = document.text.split("\n\n", 1)
        assert len(heading) < 400
        assert len(body) <= MAX_PIECE + 1
        assert is_prose(body.rstrip("\n"))
    topics = [d for d in documents if "/topics." in d.id]
    assert len(topics) > 100


HARVEST = """
import hashlib, json, sys
from instructpt.corpus import builtin
before = set(sys.modules)
data = json.dumps([[d.id, d.text] for d in builtin.documents()]).encode()
print(json.dumps([hashlib.sha256(data).hexdigest(), sorted(set(sys.modules) - before)]))
"""


@pytest.mark.slow
def test_harvesting_repeats_and_imports_nothing():
    outcomes = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", HARVEST], capture_output=True, text=True, check=True, env=environment
        )
        outcomes.append(json.loads(done.stdout))
    assert outcomes[0][0] == outcomes[1][0]
    assert not [name for name in outcomes[0][1] if not name.startswith("encodings")]


def test_it_is_inspected_like_any_corpus(corpus):
    job = corpus("builtin://python-docs", per_shard=500)
    result = job.inspect()
    assert result.counts["documents"] == result.counts["records"] == len(builtin.documents())
    assert job.documents() == list(builtin.documents())
    assert all(shard.span.uri.startswith("raw/") for shard in job.manifest.shards)
    assert "root" not in job.manifest.extra
    parts = [result.counts[name] / result.counts["documents"] for name in ("tune", "train", "heldOut")]
    assert all(abs(part - share) < 0.05 for part, share in zip(parts, (0.2, 0.7, 0.1), strict=True))


def test_it_is_cut_into_the_shards_asked_for(corpus):
    job = corpus("builtin://python-docs", shards=6)
    job.inspect()
    assert len(job.manifest.shards) == 6
