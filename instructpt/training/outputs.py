"""Outputs whose files have names of their own, and so replace each other when two runs share a place.

A run leaves ``work/<key>/result.json``, the record of its files, after the last of them. At most one record is ever
there: whoever uploads takes the others away first, so that no record speaks of files that are no longer its own.
"""

from __future__ import annotations

import json
import logging
import re

from instructpt.corpus.manifest import MANIFEST
from instructpt.storage import Store
from instructpt.storage.hashing import sha256_of_object
from instructpt.training.files import TOKENIZER_FILES

log = logging.getLogger(__name__)

_KEY = re.compile(r"^work/[^/]+/result\.json$")
# An upload that was killed left no record of its files, but these names are known.
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def result_key(work_key: str) -> str:
    """Where a finished run leaves what finalize reads."""
    return f"work/{work_key}/result.json"


def is_whole(store: Store, work_key: str) -> bool:
    """Whether the files of this run lie here as it wrote them, and only its manifest is missing."""
    if store.exists(MANIFEST) or not store.exists(result_key(work_key)):
        return False  # a manifest is that of another run: a run deletes it before it uploads
    files = json.loads(store.get(result_key(work_key)))["files"]
    wrong = [path for path, _, sha256 in files if not store.exists(path) or sha256_of_object(store, path) != sha256]
    if wrong:
        log.warning("%s below %s: not the files that this run wrote; it is done again", ", ".join(wrong), store.uri)
    return not wrong


def clear(store: Store, *, keep: set[str]) -> None:
    """Take away what says that another run's files lie here, and then those of them that no new file replaces.

    Files that no run wrote stay.

    Args:
        store: Of the output.
        keep: Names of files that are about to be replaced.
    """
    store.delete(MANIFEST)
    records = [info.key for info in store.list("work/") if _KEY.match(info.key)]
    old = {str(path) for key in records for path, _, _ in json.loads(store.get(key))["files"]}
    for key in records:
        store.delete(key)
    for info in store.list():
        ours = info.key in old or info.key in TOKENIZER_FILES or info.key.endswith(_WEIGHTS)
        if ours and "/" not in info.key and info.key not in keep:
            store.delete(info.key)
