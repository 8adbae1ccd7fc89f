"""Text for ``bench-prep``: what the installed Python packages say about themselves, every piece of it once.

Documentation strings first, then source files cut into pieces of whole blocks; equal pieces are taken once. The text is
real, of several kinds (English, code, tables), and a function of the installed packages alone; the result file names
how much of each it has. Chains put M of these documents one after the other, each with two pairs drawn from it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHORTEST, LONGEST = 200, 12_000
SHOTS = (1, 2, 5)
DOCUMENTS_PER_SHARD = 2_000


def documents(size: int) -> Iterator[tuple[str, str]]:
    """Kind (``docstring``, ``source``) and text of documents that have at least ``size`` bytes together, if there are.

    Source files follow when documentation strings run out.
    """
    roots = sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
    files = sorted({path for root in roots for path in root.rglob("*.py") if path.stat().st_size < 1 << 20})
    # In an order of their own: neighbours by name are alike.
    files.sort(key=lambda path: hashlib.sha256(path.name.encode() + str(path.stat().st_size).encode()).digest())
    seen: set[bytes] = set()
    written = 0
    for kind, pieces in (("docstring", _docstrings), ("source", _blocks)):
        for path in files:
            for piece in pieces(path):
                digest = hashlib.sha256(piece.encode()).digest()
                if len(piece) < SHORTEST or digest in seen:
                    continue
                seen.add(digest)
                yield kind, piece
                written += len(piece.encode())
                if written >= size:
                    return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(_read(path))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and _is_text(text):
                yield text


def _blocks(path: Path) -> Iterator[str]:
    piece = ""
    for block in _read(path).split("\n\n"):
        if piece and len(piece) + len(block) > LONGEST:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{block}" if piece else block
    yield piece


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def pairs(document: str, number: int) -> tuple[tuple[str, str], ...]:
    """Two pairs whose words are the document's own."""
    words = document.split()
    middle = len(words) // 2
    return (
        (f"What does passage {number} begin with?", " ".join(words[:8])),
        (f"What follows {words[middle - 1]!r} in passage {number}?", " ".join(words[middle : middle + 12])),
    )


def chain_text(shots: list[tuple[str, tuple[tuple[str, str], ...]]]) -> str:
    """Documents, each with its pairs."""
    return "\n\n".join(
        "\n\n".join([document, *(f"Question: {q}\nAnswer: {a}" for q, a in asked)]) for document, asked in shots
    )


def write(folder: Path, size: int) -> dict[str, Any]:
    """The text in both forms for every number of shots, if it is not there; what it is made of.

    ``m<M>.jsonl`` holds the texts of the chains, for peers; ``m<M>/`` the same chains as an augmented corpus, for ours.
    """
    about = folder / "about.json"
    if about.is_file():
        return dict(json.loads(about.read_bytes()))
    folder.mkdir(parents=True, exist_ok=True)
    found = list(documents(size))
    kinds = {kind: sum(len(t.encode()) for k, t in found if k == kind) for kind in ("docstring", "source")}
    texts = [text for _, text in found]
    texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())  # kinds and packages mixed
    for shots in SHOTS:
        _write_chains(folder, texts, shots)
    facts = {"documents": len(texts), "bytes": kinds}
    about.write_text(json.dumps(facts))
    return facts


def _write_chains(folder: Path, texts: list[str], shots: int) -> None:
    from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, write_chains
    from instructpt.corpus.manifest import Manifest, ShardEntry, publish_manifest
    from instructpt.storage import open_store
    from instructpt.storage.hashing import sha256_of_file

    entries, places = [], {}
    data = folder / f"m{shots}" / "data"
    data.mkdir(parents=True)
    with (folder / f"m{shots}.jsonl").open("w", encoding="utf-8") as lines:
        for shard, first in enumerate(range(0, len(texts), DOCUMENTS_PER_SHARD)):
            part = texts[first : first + DOCUMENTS_PER_SHARD]
            rows = []
            for number in range(0, len(part), shots):
                chain = [(t, pairs(t, first + number + i)) for i, t in enumerate(part[number : number + shots])]
                text = chain_text(chain)
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                rows.append(
                    ChainRow(
                        id=f"{shard}/{number}",
                        text=text,
                        templates=(),
                        seed=0,
                        shots=tuple(
                            ShotRow(
                                document=f"{first + number + i}",
                                text=t,
                                pairs=tuple(PairRow(question=q, answer=a, kind="free") for q, a in asked),
                                verdict="augmented",
                                reason="",
                                attempts=1,
                                prompt_tokens=0,
                                completion_tokens=0,
                            )
                            for i, (t, asked) in enumerate(chain)
                        ),
                    )
                )
            path = data / f"{shard:05d}.parquet"
            write_chains(path, rows)
            name = f"{shard:05d}"
            entries.append(ShardEntry(id=name, counts={"documents": len(part)}, sha256=sha256_of_file(path)))
            places[name] = f"data/{path.name}"
    manifest = Manifest(kind="augmented", code_version="bench", shards=tuple(entries), counts={"documents": len(texts)})
    publish_manifest(open_store(str(folder / f"m{shots}")), manifest, objects=places)
