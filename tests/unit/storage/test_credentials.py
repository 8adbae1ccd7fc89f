from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from instructpt.errors import ConfigError
from instructpt.storage.credentials import (
    REREAD_SECONDS,
    Target,
    client_for,
    describe_credentials,
    file_credentials,
    read_secret,
)

AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION")


@pytest.fixture(autouse=True)
def secrets(tmp_path, monkeypatch):
    for name in (*AWS, "AWS_ENDPOINT_URL", "AWS_MAX_ATTEMPTS", "AWS_DEFAULT_REGION", "AWS_RETRY_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("INSTRUCTPT_SECRETS_DIR", str(tmp_path / "secrets"))
    return tmp_path / "secrets"


def write(folder, **keys) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in keys.items():
        (folder / name).write_text(value)


def test_secret_files(secrets):
    write(secrets / "lab", AWS_ACCESS_KEY_ID="AKIA1\n", AWS_SECRET_ACCESS_KEY=" s1 ", AWS_SESSION_TOKEN="")
    assert read_secret("lab") == {"access_key": "AKIA1", "secret_key": "s1", "token": None}
    assert describe_credentials(Target(secret="lab")) == f"secret files in {secrets / 'lab'}"


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_missing_key_is_named(secrets, missing):
    write(secrets / "lab", AWS_ACCESS_KEY_ID="AKIA1", AWS_SECRET_ACCESS_KEY="s3cr3t")
    (secrets / "lab" / missing).unlink()
    with pytest.raises(ConfigError) as caught:
        client_for(Target(secret="lab"))
    assert str(caught.value).startswith("storage.secretRef.name='lab': ")
    assert f"put the key {missing} into the Secret lab" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "AKIA1" not in str(caught.value)


def test_rotated_files_are_read_at_the_next_refresh(secrets):
    write(secrets / "lab", AWS_ACCESS_KEY_ID="old", AWS_SECRET_ACCESS_KEY="s1")
    credentials = file_credentials("lab")
    write(secrets / "lab", AWS_ACCESS_KEY_ID="new", AWS_SECRET_ACCESS_KEY="s2", AWS_SESSION_TOKEN="t")
    assert credentials.get_frozen_credentials().access_key == "old"
    later = datetime.now(UTC) + timedelta(seconds=REREAD_SECONDS + 1)
    credentials._time_fetcher = lambda: later
    frozen = credentials.get_frozen_credentials()
    assert (frozen.access_key, frozen.secret_key, frozen.token) == ("new", "s2", "t")


def test_a_mounted_secret_is_read_from_one_version(secrets):
    folder = secrets / "lab"
    write(folder / "..2026_1", AWS_ACCESS_KEY_ID="one", AWS_SECRET_ACCESS_KEY="s1")
    write(folder / "..2026_2", AWS_ACCESS_KEY_ID="two", AWS_SECRET_ACCESS_KEY="s2")
    (folder / "..data").symlink_to("..2026_1")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (folder / key).symlink_to(f"..data/{key}")
    assert read_secret("lab")["access_key"] == "one"
    (folder / "..new").symlink_to("..2026_2")
    os.replace(folder / "..new", folder / "..data")
    assert read_secret("lab")["secret_key"] == "s2"


def test_secret_files_win_over_environment_and_profile(secrets, monkeypatch, tmp_path):
    write(secrets / "lab", AWS_ACCESS_KEY_ID="from-file", AWS_SECRET_ACCESS_KEY="s")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = from-profile\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert signer(Target(secret="lab", region="eu-west-1")) == "from-file"


def test_a_name_without_files_is_a_profile(monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = from-profile\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert signer(Target(secret="lab", region="eu-west-1")) == "from-profile"
    assert describe_credentials(Target(secret="lab")) == "AWS profile lab"


def test_a_name_that_is_neither_is_refused_with_the_field(secrets):
    for call in (client_for, describe_credentials):
        with pytest.raises(ConfigError) as caught:
            call(Target(secret="absent"))
        text = str(caught.value)
        assert text.startswith("storage.secretRef.name='absent': ")
        assert str(secrets / "absent") in text
        assert "add the profile [absent]" in text


def test_without_a_name_the_default_chain_decides(monkeypatch):
    assert describe_credentials(Target()) == "default chain: nothing found"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert describe_credentials(Target()) == "default chain: env"
    assert signer(Target(region="eu-west-1")) == "from-environment"


def test_one_client_per_process_and_target():
    first = client_for(Target(endpoint="http://127.0.0.1:1"))
    assert client_for(Target(endpoint="http://127.0.0.1:1")) is first
    assert client_for(Target(endpoint="http://127.0.0.1:2")) is not first


def test_settings_of_the_client(monkeypatch):
    config = client_for(Target(endpoint="http://127.0.0.1:1")).meta.config
    assert config.s3["addressing_style"] == "path"
    assert config.retries == {"mode": "standard", "total_max_attempts": 8}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    config = client_for(Target(region="eu-west-1")).meta.config
    assert config.retries == {"mode": "adaptive", "total_max_attempts": 3}
    assert not (config.s3 or {}).get("addressing_style")


def test_an_endpoint_that_is_no_url():
    with pytest.raises(ConfigError) as caught:
        client_for(Target(endpoint="localhost:9000"))
    assert "storage.endpoint='localhost:9000'" in str(caught.value)


def signer(target: Target) -> str:
    """The access key that stands in a signed URL."""
    url = client_for(target).generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    return url.split("AWSAccessKeyId=")[-1].split("X-Amz-Credential=")[-1].split("&")[0].split("%2F")[0]
