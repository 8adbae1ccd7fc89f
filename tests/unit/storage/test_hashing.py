from __future__ import annotations

import hashlib
import io

import pytest

from instructpt.errors import NotFoundError
from instructpt.storage import FilesystemStore, MemoryStore
from instructpt.storage.hashing import sha256_of_file, sha256_of_object, sha256_of_stream

CONTENT = bytes(range(256)) * 9000  # more than two chunks


def test_files_objects_and_streams_agree(tmp_path):
    wanted = hashlib.sha256(CONTENT).hexdigest()
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    memory = MemoryStore()
    memory.put("k", CONTENT)
    assert sha256_of_file(path) == sha256_of_object(FilesystemStore(tmp_path), "a") == wanted
    assert sha256_of_object(memory, "k") == sha256_of_stream(io.BytesIO(CONTENT)) == wanted
    assert sha256_of_stream(io.BytesIO()) == hashlib.sha256().hexdigest()


def test_what_is_not_there(tmp_path):
    with pytest.raises(NotFoundError):
        sha256_of_object(FilesystemStore(tmp_path), "a")
