"""gigatoken in place of the Hugging Face tokenizer, wherever it is seen to give the same ids.

The Hugging Face tokenizer decides what is right. The fast one is taken up only for kinds of tokenizers that it is known
to follow, and after it agreed on :data:`PROBES`; then samples of every shard are encoded by both, and the first
difference puts the shard back to the other one. Nothing depends on which of them was at work but the time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructpt.training.encoder import TextEncoder

Ids = NDArray[np.uint32]

PROBES = (
    "",
    " ",
    "\n",
    "plain English text, with commas; and it's John's, we'll see, I'D say THEY'VE gone.",
    "  two  spaces   three    four \t tab\t\ttabs \r\n CRLF \r CR\n\n\n lines   \n  \n",
    "1 12 123 1234 1234567890 3.14159 1,000,000 0x1F ½ ² Ⅷ ١٢٣ १२३",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # comment\n\tif x != 0: pass",
    "naïve café CAFE\u0301 Å A\u030a ﬁ ﬀ İı ẞß ǅ ŉ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते สวัสดี 你好世界。こんにちは 한국어 조선",
    "emoji 😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ \u200b zero\u200dwidth \ufeff bom \u00a0nbsp \u3000wide \u2028line \u2029para \x85nel",
    "\x00 \x01\x1f \x7f \ufffd \U0010ffff \U000e0001",
    "http://example.org/a?b=c&d=%20#e user@example.org C:\\path\\to /usr/bin ~/.x",
    "!!! ??? ... --- ___ *** === +++ <<< >>> ((( ]]] «» „“ ‘’ – — … € £ ™ ∑ √ ≤",
    "ALLCAPS CamelCase snake_case kebab-case mixedCASE123abc a1b2c3 x86_64 don'tStop",
    "▁ Ġ Ċ Ã â <0x0A> <unk> [UNK] ## @@ </w>",
    "a" * 300 + " " + "ab" * 150 + " " + " " * 200 + "x" + "\n" * 100 + "=" * 200,
)
"""Texts on which tokenizers differ: spaces, digits, contractions, scripts, combining marks, controls, long runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproved:
    """Why the fast tokenizer is not used.

    Attributes:
        reason: ``package-missing``, ``kind-unproved``, ``not-loadable``, ``probe-mismatch``, ``sample-mismatch`` or
            ``encoding-failed``; it is counted under this name.
        detail: For people.
    """

    reason: str
    detail: str


class FastEncoder:
    """Encodes as ``oracle`` does, many times as fast, on one thread.

    Args:
        oracle: What decides.
        backend: Of gigatoken.
        marked: Whether the backend takes strings of special tokens for those tokens, as in the texts of a profile.
    """

    def __init__(self, oracle: TextEncoder, backend: Any, *, marked: bool) -> None:
        self.oracle = oracle
        self.marked = marked
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """As :meth:`TextEncoder.encode` with ``marked`` as it is here.

        Raises:
            Exception: Whatever the package raises; it names no class of its own.
        """
        encode = self._backend.encode
        return [encode(text) for text in texts]


def prove(oracle: TextEncoder, *, marked: bool = False) -> FastEncoder | Unproved:
    """The fast encoder, if it agrees with ``oracle`` on every probe.

    Args:
        oracle: What decides.
        marked: Whether strings of special tokens in texts are those tokens.
    """
    try:
        from gigatoken import Tokenizer
    except ImportError:
        return Unproved(reason="package-missing", detail="the package gigatoken is not installed")
    wire = json.loads(oracle.to_json())
    doubt = unproved_kind(wire)
    if doubt is not None:
        return Unproved(reason="kind-unproved", detail=doubt)
    try:
        backend = Tokenizer.from_json(json.dumps(wire if marked else without_special_tokens(wire))).backend
    except Exception as error:  # gigatoken raises what its Rust side gives: ValueError and others
        return Unproved(reason="not-loadable", detail=f"gigatoken: {error}")
    fast = FastEncoder(oracle, backend, marked=marked)
    doubt = first_difference(fast, probes(wire))
    return fast if doubt is None else Unproved(reason="probe-mismatch", detail=doubt)


def unproved_kind(wire: dict[str, Any]) -> str | None:
    """What of a ``tokenizer.json`` is outside the kinds that were compared at length; None where nothing is.

    Those are BPE without dropout, byte-level or with byte fallback, whose added tokens stand for their string alone.
    """
    model = wire.get("model") or {}
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}, not BPE"
    if model.get("dropout"):
        return "its BPE has dropout, so that ids are drawn"
    kinds = _kinds(wire.get("pre_tokenizer"))
    if "ByteLevel" not in kinds and not model.get("byte_fallback"):
        return "it is neither byte-level nor has it byte fallback"
    for token in wire.get("added_tokens") or ():
        if any(token.get(name) for name in ("single_word", "lstrip", "rstrip")):
            return f"its token {token['content']!r} takes in spaces or stands for whole words alone"
    return None


def _kinds(step: Any) -> set[str]:
    """Types of a pre-tokenizer and of those in it."""
    if not isinstance(step, dict):
        return set()
    return {str(step.get("type"))}.union(*(_kinds(part) for part in step.get("pretokenizers") or ()))


def without_special_tokens(wire: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, to which the strings of special tokens are ordinary characters."""
    kept = [token for token in wire.get("added_tokens") or () if not token.get("special")]
    return {**wire, "added_tokens": kept, "post_processor": None}


def probes(wire: dict[str, Any]) -> list[str]:
    """:data:`PROBES`, all of them in one, and texts with every added token in them."""
    tokens = [str(token["content"]) for token in wire.get("added_tokens") or ()]
    around = [f"a{token}b {token} c.{token}" for token in tokens]
    return [*PROBES, "".join(PROBES), *around, " ".join(tokens), "".join(tokens)]


def first_difference(fast: FastEncoder, texts: Sequence[str]) -> str | None:
    """Where the two differ on ``texts``; None where they do not."""
    try:
        found = fast.encode(texts)
    except Exception as error:  # as above
        return f"gigatoken: {type(error).__name__}: {error}"
    for text, ids, wanted in zip(texts, found, fast.oracle.encode(texts, marked=fast.marked), strict=True):
        if not np.array_equal(ids, wanted):
            at = int(np.argmin(ids[: len(wanted)] == wanted[: len(ids)])) if len(ids) and len(wanted) else 0
            return f"ids differ from token {at} on in {text[:40]!r} ({len(ids)} tokens, {len(wanted)} are right)"
    return None
