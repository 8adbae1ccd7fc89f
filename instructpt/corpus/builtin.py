"""``builtin://python-docs``: real English text that any machine has, the documentation of Python's standard library.

Harvested at run time from the source files of the Python that runs the worker. They are parsed, never imported. The
documents are a function of that Python's version.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instructpt.corpus.document import Document
from instructpt.corpus.prose import cut_paragraphs, is_prose
from instructpt.errors import EnvironmentNotReadyError

# Tests, tables and other people's packages: no documentation, or not of the standard library.
_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "turtledemo"}
_EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")
_TOPICS = "pydoc_data/topics.py"
_RULE = 3


@dataclass(frozen=True, slots=True)
class _Text:
    """A documentation text: what it is about (dotted name), a heading in words, and the text itself."""

    name: str
    heading: str
    body: str


def identity() -> str:
    """Names the Python whose documentation is harvested."""
    return f"python-docs {sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"


@functools.cache
def documents() -> tuple[Document, ...]:
    """All documents, in order of module and place; equal texts once.

    Raises:
        EnvironmentNotReadyError: This Python came without the source files of its standard library.
    """
    return harvest(Path(sysconfig.get_path("stdlib")))


def harvest(root: Path) -> tuple[Document, ...]:
    """Documents from the source files below ``root``; see :func:`documents`."""
    found: list[Document] = []
    seen: set[bytes] = set()
    numbers: Counter[str] = Counter()
    for text in _texts(root):
        for piece in cut_paragraphs(text.body):
            digest = hashlib.sha256(piece.encode("utf-8", "replace")).digest()
            # A lone surrogate in a documentation string is no text that can be written.
            if digest in seen or not is_prose(piece) or not _is_text(piece):
                continue
            seen.add(digest)
            number = numbers[text.name]
            numbers[text.name] += 1
            found.append(Document(id=f"python-docs/{text.name}#{number}", text=f"{text.heading}\n\n{piece}\n"))
    if not found:
        raise EnvironmentNotReadyError(
            f"no documentation below {root}: this Python came without the sources of its standard library",
            fix="use a Python with its standard library as .py files, or name a corpus of your own",
        )
    return tuple(found)


def _texts(root: Path) -> Iterator[_Text]:
    for name, path in sorted(_files(root)):
        parts = name.split("/")
        tree = _parse(path)
        if tree is None:
            continue
        if name == _TOPICS:
            yield from _topics(tree)
        else:
            module = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
            yield from _module(tree, module)


def _is_text(piece: str) -> bool:
    try:
        piece.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root):
        # Pruned before it is walked: site-packages may hold a hundred thousand files.
        folders[:] = [name for name in folders if name not in _EXCLUDED and not name.startswith(_EXCLUDED_PREFIXES)]
        for name in names:
            if name.endswith(".py") and not name.startswith(_EXCLUDED_PREFIXES):
                path = Path(folder) / name
                yield path.relative_to(root).as_posix(), path


def _parse(path: Path) -> ast.Module | None:
    # A few files of the standard library are no valid source on purpose (templates); they hold no documentation.
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
        return None


def _module(tree: ast.Module, module: str) -> Iterator[_Text]:
    doc = _doc(tree)
    if doc:
        yield _Text(module, f"The module {module}", doc)
    yield from _members(tree.body, module)


def _members(body: list[ast.stmt], owner: str) -> Iterator[_Text]:
    for node in _definitions(body):
        name = f"{owner}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _class(node, name)
        else:
            doc = _doc(node)
            if doc:
                yield _Text(name, f"The function {name}{_parameters(node)}", doc)


def _class(node: ast.ClassDef, name: str) -> Iterator[_Text]:
    parts = [_doc(node)]
    for member in _definitions(node.body):
        if isinstance(member, ast.ClassDef):
            continue
        doc = _doc(member)
        if doc:
            parts.append(f"The method {member.name}{_parameters(member, method=True)}:\n{doc}")
    body = "\n\n".join(part for part in parts if part)
    if body:
        yield _Text(name, f"The class {name}", body)
    for member in _definitions(node.body):
        if isinstance(member, ast.ClassDef):
            yield from _class(member, f"{name}.{member.name}")


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a body, those behind ``if`` and ``try`` included."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.If):
            yield from _definitions([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _definitions([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool = False) -> str:
    """The signature in words; empty without parameters."""
    arguments = node.args
    names = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]]
    if method and names and names[0] in ("self", "cls"):
        names = names[1:]
    if arguments.vararg is not None:
        names.append(f"any number of {arguments.vararg.arg}")
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg is not None:
        names.append(f"keywords {arguments.kwarg.arg}")
    if not names:
        return ""
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f", with the parameter{'s' if len(names) > 1 else ''} {listed}"


def _topics(tree: ast.Module) -> Iterator[_Text]:
    """The reference texts behind ``help()``: a dictionary from topic to text."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            for topic in sorted(topics):
                yield from _sections(str(topic), str(topics[topic]))


def _sections(topic: str, text: str) -> Iterator[_Text]:
    """A topic cut where a title is underlined."""
    title, lines = topic, list[str]()
    number = 0
    for line in text.splitlines():
        ruled = len(line) >= _RULE and len(set(line)) == 1 and line[0] in "*=-~^"
        if ruled and lines and lines[-1].strip() and len(lines[-1].strip()) <= len(line):
            head = lines.pop().strip()
            if any(rest.strip() for rest in lines):
                yield _topic_text(topic, title, number, lines)
                number += 1
            title, lines = head, []
        else:
            lines.append(line)
    if any(rest.strip() for rest in lines):
        yield _topic_text(topic, title, number, lines)


def _topic_text(topic: str, title: str, number: int, lines: list[str]) -> _Text:
    name = f"topics.{topic}" + (f".{number}" if number else "")
    heading = title if title == topic else f"{title} ({topic})"
    return _Text(name, f"Python reference: {heading}", inspect.cleandoc("\n".join(lines)).strip())
