"""Fetching models: folders, store prefixes, hub ids; whole and verified or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from instructpt.api.runspec import ResolvedInput
from instructpt.errors import ConfigError, StorageError
from instructpt.storage import Store, open_store
from instructpt.storage.models import fetch_model, model_digest

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights" * 100, "tokenizer.json": b"{}"}


def manifest(files: dict[str, bytes], kind: str = "model") -> bytes:
    entries = [{"path": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()]
    return json.dumps({"kind": kind, "files": entries, "format_version": 1}).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fill(store: Store, files: dict[str, bytes] = FILES, kind: str = "model") -> str:
    for name, data in files.items():
        store.put(name, data)
    store.put("manifest.json", manifest(files, kind))
    return digest(manifest(files, kind))


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    return f"memory://models-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}/m"


def test_a_prefix_is_fetched_once_and_verified(uri: str, tmp_path: Path) -> None:
    wanted = fill(open_store(uri))
    folder = fetch_model(ResolvedInput(uri=uri, digest=wanted), tmp_path)
    assert folder == tmp_path / wanted.removeprefix("sha256:")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"} == FILES
    assert model_digest(folder) == wanted
    open_store(uri).delete("model.safetensors")
    assert fetch_model(ResolvedInput(uri=uri), tmp_path) == folder
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_corrupt_file_is_refused_and_leaves_nothing(uri: str, tmp_path: Path) -> None:
    fill(open_store(uri))
    open_store(uri).put("model.safetensors", b"other")
    with pytest.raises(StorageError, match=r"model\.safetensors has sha256"):
        fetch_model(ResolvedInput(uri=uri), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_refused(uri: str, tmp_path: Path) -> None:
    fill(open_store(uri))
    open_store(uri).delete("tokenizer.json")
    with pytest.raises(StorageError, match=r"tokenizer\.json is named by the model's manifest but is not there"):
        fetch_model(ResolvedInput(uri=uri), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_without_a_manifest_of_another_kind_or_digest_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no manifest\.json"):
        fetch_model(ResolvedInput(uri=uri), tmp_path)
    wanted = fill(open_store(uri), kind="corpus")
    with pytest.raises(ConfigError, match="of kind corpus, not model"):
        fetch_model(ResolvedInput(uri=uri, digest=wanted), tmp_path)
    with pytest.raises(ConfigError, match="has digest"):
        fetch_model(ResolvedInput(uri=uri, digest="sha256:" + "0" * 64), tmp_path)
    open_store(uri).put("manifest.json", b"no json")
    with pytest.raises(ConfigError, match="is not a manifest of a model"):
        fetch_model(ResolvedInput(uri=uri), tmp_path)


def test_a_manifest_cannot_reach_outside_its_folder(uri: str, tmp_path: Path) -> None:
    open_store(uri).put("manifest.json", manifest({"../evil": b"x"}))
    with pytest.raises(ConfigError):
        fetch_model(ResolvedInput(uri=uri), tmp_path / "cache")
    assert not (tmp_path / "evil").exists()


def test_many_workers_of_a_node_fetch_at_once(uri: str, tmp_path: Path) -> None:
    fill(open_store(uri))
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_model(ResolvedInput(uri=uri), tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [p.name for p in tmp_path.iterdir()] == [found[0].name]


def folder_with(path: Path, files: dict[str, bytes] = FILES) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m")
    assert fetch_model(ResolvedInput(uri=str(folder)), tmp_path / "cache") == folder
    assert fetch_model(ResolvedInput(uri=folder.as_uri()), tmp_path / "cache") == folder
    known = model_digest(folder)
    assert fetch_model(ResolvedInput(uri=str(folder), digest=known), tmp_path / "cache") == folder
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert model_digest(copied) == known
    (copied / "model.safetensors").write_bytes(b"other")
    assert model_digest(copied) != known
    with pytest.raises(ConfigError, match="has digest"):
        fetch_model(ResolvedInput(uri=str(copied), digest=known), tmp_path / "cache")


def test_a_folder_with_a_manifest_is_verified(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m")
    (folder / "manifest.json").write_bytes(manifest(FILES))
    assert fetch_model(ResolvedInput(uri=str(folder), digest=digest(manifest(FILES))), tmp_path / "c") == folder
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(StorageError, match="not the file its manifest names"):
        fetch_model(ResolvedInput(uri=str(folder)), tmp_path / "c")


def test_a_folder_that_is_missing_or_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"model folder {tmp_path}/none does not exist; correct the path"):
        fetch_model(ResolvedInput(uri=f"{tmp_path}/none"), tmp_path / "c")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        fetch_model(ResolvedInput(uri=str(folder_with(tmp_path / "m", {"x": b""}))), tmp_path / "c")


def test_a_hub_id_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ConfigError, match="nobody/no-such-model is neither a folder on this machine nor reachable on the model hub"
    ):
        fetch_model(ResolvedInput(uri="nobody/no-such-model"), tmp_path)
