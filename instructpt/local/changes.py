"""Whether a corpus is still what its inspection saw, by a listing: nothing is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import Any

from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus import builtin
from instructpt.corpus.sources import BUILTIN, resolve_source
from instructpt.errors import InstructPTError
from instructpt.storage import Scheme, parse_uri

logger = logging.getLogger(__name__)


def inputs_of(source: CorpusSource) -> str | None:
    """What a corpus consists of, as text to keep: its absolute URI and hashes of its listing.

    ``None`` where it cannot be listed; the inspection itself then says why.
    """
    try:
        return json.dumps(_inputs(source), ensure_ascii=True)
    except InstructPTError as error:
        logger.warning("the corpus %s cannot be listed: %s", source.uri, error)
        return None


def has_changed(source: CorpusSource, before: str) -> bool:
    """Whether another listing is there than ``before``, from :func:`inputs_of`.

    A run folder that was copied together with its corpus is no change while the objects that were inspected are
    still where they were, and those in the new place have their names and sizes. A corpus that cannot be listed
    counts as unchanged, with a warning: what is done needs it no more, and readers notice by themselves.
    """
    try:
        now, then = _inputs(source), json.loads(before)
        if now == then:
            return False
        if now["uri"] == then["uri"] or now["names"] != then["names"]:
            return True
        return bool(_inputs(source.model_copy(update={"uri": then["uri"]})) != then)
    except InstructPTError as error:
        logger.warning("the corpus %s cannot be listed and is taken as it was inspected: %s", source.uri, error)
        return False


def _inputs(source: CorpusSource) -> dict[str, Any]:
    if source.uri.startswith(BUILTIN):
        return {"uri": source.uri, "names": "", "listing": builtin.identity()}
    objects = resolve_source(source).objects
    return {
        "uri": _absolute(source.uri),
        "names": _digest([[o.name, o.size] for o in objects]),
        "listing": _digest([[o.uri, o.size, o.etag] for o in objects]),
    }


def _absolute(uri: str) -> str:
    location = parse_uri(uri)
    if location.scheme is not Scheme.FILE:
        return uri
    return os.path.abspath(os.path.expanduser(location.path)) + ("/" if uri.endswith("/") else "")


def _digest(listing: list[list[Any]]) -> str:
    text = json.dumps(listing, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
