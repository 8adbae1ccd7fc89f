"""The stage with its output on real S3 servers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import s3servers
import synthesis_support as support

from instructpt.api.base import SecretRef, StorageSpec
from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus.shards import iter_augmented
from instructpt.errors import ConfigError, CredentialsError
from instructpt.storage import credentials
from instructpt.synthesis import worker
from instructpt.synthesis.finalize import requeue
from instructpt.synthesis.report import Report


def spec_on(server: s3servers.S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> RunSpec:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    corpus = support.make_corpus(folder, support.sentences(9), per_shard=3)
    spec = support.make_spec(corpus, "unused", **fields)
    output = StorageSpec(uri=f"s3://{server.bucket}/{folder.name}", endpoint=server.endpoint, region="us-east-1")
    return spec.model_copy(update={"output": output})


@pytest.mark.parametrize("name", ["s3_versitygw", "s3_rclone"])
def test_a_stage_on_s3_gives_the_rows_of_a_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server = request.getfixturevalue(name)
    spec = spec_on(server, tmp_path, monkeypatch)
    result = support.run_stage(spec, tmp_path / "s")
    local = spec.model_copy(update={"output": StorageSpec(uri=str(tmp_path / "local"))})
    assert support.run_stage(local, tmp_path / "s").digest == result.digest
    there = ResolvedInput(uri=result.uri, digest=result.digest, endpoint=server.endpoint, region="us-east-1")
    assert list(iter_augmented(there)) == list(iter_augmented(ResolvedInput(uri=str(tmp_path / "local"))))
    assert requeue(worker.open_store(spec.output.uri, access=spec.output)) == 0


def test_credentials_that_expire_on_the_way_end_the_worker_and_fresh_ones_go_on(
    s3_versitygw: s3servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed stays, and the next worker makes the rest alone."""
    spec = spec_on(s3_versitygw, tmp_path, monkeypatch)
    secret = tmp_path / "secrets" / "lab"
    secret.mkdir(parents=True)
    monkeypatch.setenv("INSTRUCTPT_SECRETS_DIR", str(secret.parent))
    (secret / "AWS_ACCESS_KEY_ID").write_text(s3_versitygw.access_key)
    key = secret / "AWS_SECRET_ACCESS_KEY"
    key.write_text(s3_versitygw.secret_key)
    spec = spec.model_copy(update={"output": spec.output.model_copy(update={"secret_ref": SecretRef(name="lab")})})

    class Expiring(Report):
        def commit(self, done: int, counts: Mapping[str, int]) -> None:
            super().commit(done, counts)
            key.write_text("expired")
            credentials._clients.clear()  # as after the time in which files are read again

    with monkeypatch.context() as patch:
        patch.setattr(worker, "Report", Expiring)
        with pytest.raises(CredentialsError, match=r"secretRef\.name='lab': access to bucket .* is refused"):
            worker.run(spec, support.context(tmp_path / "s"))
    key.write_text(s3_versitygw.secret_key)
    credentials._clients.clear()
    store = worker.open_store(spec.output.uri, access=spec.output)
    committed = [info.key for info in store.list() if "/commits/" in info.key]
    assert 0 < len(committed) < 3
    result = support.run_stage(spec, tmp_path / "s")
    assert result.counts["documents"] == 9
    local = spec.model_copy(update={"output": StorageSpec(uri=str(tmp_path / "local"))})
    assert support.run_stage(local, tmp_path / "s").digest == result.digest


def test_two_workers_are_refused_where_creates_do_not_exclude(
    s3_rclone: s3servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_on(s3_rclone, tmp_path, monkeypatch, parallelism=2)
    with pytest.raises(ConfigError, match="parallelism: 1"):
        worker.run(spec, support.context(tmp_path / "s"))
