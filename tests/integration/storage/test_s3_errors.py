"""What goes wrong with S3, on real servers; moto only for the answer that they cannot be made to give."""

from __future__ import annotations

import pytest
import s3servers

from instructpt.errors import ConfigError, NotFoundError, StorageError
from instructpt.storage import S3Store, parse_uri
from instructpt.storage.credentials import Target

SECRET = "wrong-secret-0123456789"


@pytest.fixture(params=["versitygw", "rclone"])
def server(request) -> s3servers.S3Server:
    return request.getfixturevalue(f"s3_{request.param}")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("INSTRUCTPT_SECRETS_DIR", str(tmp_path / "secrets"))


def use(monkeypatch, access_key: str, secret_key: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)


def every_call(store: S3Store, tmp_path):
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(b"x" * (9 << 20))
    return {
        "get": lambda: store.get("k"),
        "open": lambda: store.open("k"),
        "head": lambda: store.head("k"),
        "exists": lambda: store.exists("k"),
        "list": lambda: list(store.list()),
        "put": lambda: store.put("k", b"x"),
        "put_file small": lambda: store.put_file("k", tmp_path / "small"),
        "put_file large": lambda: store.put_file("k", tmp_path / "large"),
        "create": lambda: store.create("k", b"x"),
        "download": lambda: store.download("k", tmp_path / "out"),
        "probe": lambda: store.supports_conditional_create(),
    }


def test_missing_bucket_is_named_by_every_call(server, monkeypatch, tmp_path):
    use(monkeypatch, server.access_key, server.secret_key)
    store = S3Store(parse_uri("s3://no-such-bucket/p"), Target(endpoint=server.endpoint))
    for name, call in every_call(store, tmp_path).items():
        with pytest.raises(NotFoundError) as caught:
            call()
        assert f"there is no bucket no-such-bucket at {server.endpoint}; create it" in str(caught.value), name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["testaccesskey", "unknownaccesskey"])
def test_refused_credentials_are_a_config_error_in_every_call(server, monkeypatch, tmp_path, key):
    use(monkeypatch, key, SECRET)
    store = S3Store(parse_uri(f"s3://{server.bucket}/p"), Target(endpoint=server.endpoint))
    for name, call in every_call(store, tmp_path).items():
        with pytest.raises(ConfigError) as caught:
            call()
        text = str(caught.value)
        assert f"access to bucket {server.bucket} is refused" in text, name
        assert "check the credentials that secretRef names" in text
        assert SECRET not in text
        assert key not in text


def test_no_credentials(server, tmp_path):
    store = S3Store(parse_uri(f"s3://{server.bucket}/p"), Target(endpoint=server.endpoint))
    for call in every_call(store, tmp_path).values():
        with pytest.raises(ConfigError, match=f"no credentials for bucket {server.bucket}; name a Secret"):
            call()


def test_unreachable_endpoint_is_named_and_retryable(monkeypatch, tmp_path):
    use(monkeypatch, "k", SECRET)
    endpoint = f"http://127.0.0.1:{s3servers.free_port()}"
    store = S3Store(parse_uri("s3://bucket/p"), Target(endpoint=endpoint))
    for name, call in every_call(store, tmp_path).items():
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.retryable, name
        assert f"cannot reach {endpoint}" in str(caught.value)
        assert SECRET not in str(caught.value)


def test_a_bucket_name_that_no_server_takes(monkeypatch):
    use(monkeypatch, "k", SECRET)
    store = S3Store(parse_uri("s3://b"), Target(endpoint="http://127.0.0.1:1"))
    with pytest.raises((ConfigError, StorageError)):
        store.get("k")


def write(folder, access_key: str, secret_key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "AWS_ACCESS_KEY_ID").write_text(access_key)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(secret_key)


def test_secret_files_are_used_and_rotation_takes_effect_at_once(server, monkeypatch, tmp_path):
    use(monkeypatch, "wrong", SECRET)  # never read where files are
    write(tmp_path / "secrets" / "lab", server.access_key, SECRET)
    store = S3Store(parse_uri(f"s3://{server.bucket}/rotated"), Target(endpoint=server.endpoint, secret="lab"))
    with pytest.raises(ConfigError, match="is refused"):
        store.put("k", b"1")
    write(tmp_path / "secrets" / "lab", server.access_key, server.secret_key)
    store.put("k", b"2")
    assert store.get("k") == b"2"


def test_two_secrets_in_one_process(server, monkeypatch, tmp_path):
    write(tmp_path / "secrets" / "good", server.access_key, server.secret_key)
    write(tmp_path / "secrets" / "bad", server.access_key, SECRET)
    location = parse_uri(f"s3://{server.bucket}/two")
    S3Store(location, Target(endpoint=server.endpoint, secret="good")).put("k", b"1")
    with pytest.raises(ConfigError, match="is refused"):
        S3Store(location, Target(endpoint=server.endpoint, secret="bad")).get("k")


def test_a_profile_is_used(server, tmp_path):
    text = f"[lab]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    (tmp_path / "credentials").write_text(text)
    store = S3Store(parse_uri(f"s3://{server.bucket}/profile"), Target(endpoint=server.endpoint, secret="lab"))
    store.put("k", b"1")
    assert store.get("k") == b"1"


def test_a_stream_that_is_cut_resumes_where_it_broke(server, monkeypatch, caplog):
    use(monkeypatch, server.access_key, server.secret_key)
    content = b"".join(b"%07d\n" % i for i in range(400_000))
    with s3servers.CuttingProxy(server.endpoint, limit=1_000_000, cuts=3) as proxy:
        store = S3Store(parse_uri(f"s3://{server.bucket}/cut"), Target(endpoint=proxy.endpoint))
        store.put("k", content)
        assert store.get("k") == content
        assert proxy.left == 0
        assert caplog.text.count("resuming") == 3


def test_a_stream_that_never_gets_on_gives_up(server, monkeypatch):
    use(monkeypatch, server.access_key, server.secret_key)
    direct = S3Store(parse_uri(f"s3://{server.bucket}/stuck"), Target(endpoint=server.endpoint))
    direct.put("k", b"x" * 3_000_000)
    with s3servers.CuttingProxy(server.endpoint, limit=0, cuts=1000) as proxy:
        store = S3Store(parse_uri(f"s3://{server.bucket}/stuck"), Target(endpoint=proxy.endpoint))
        with pytest.raises(StorageError) as caught:
            store.get("k")
        assert caught.value.retryable


@pytest.mark.parametrize("size", [3_000_000, 20_000_000])
def test_an_upload_cut_in_half_is_sent_again_or_leaves_nothing(server, monkeypatch, tmp_path, size):
    """In one request, and in parts: what a reader sees is whole, or not there."""
    use(monkeypatch, server.access_key, server.secret_key)
    path = tmp_path / "data"
    path.write_bytes(b"".join(b"%07d\n" % i for i in range(size // 8)))
    with s3servers.CuttingProxy(server.endpoint, limit=size // 3, cuts=1, uploads=True) as proxy:
        store = S3Store(parse_uri(f"s3://{server.bucket}/half"), Target(endpoint=proxy.endpoint))
        store.put_file(f"k{size}", path)
        assert proxy.left == 0
        assert store.get(f"k{size}") == path.read_bytes()
    with s3servers.CuttingProxy(server.endpoint, limit=size // 3, cuts=1000, uploads=True) as proxy:
        store = S3Store(parse_uri(f"s3://{server.bucket}/half"), Target(endpoint=proxy.endpoint))
        with pytest.raises(StorageError) as caught:
            store.put_file(f"gone{size}", path)
        assert caught.value.retryable
    direct = S3Store(parse_uri(f"s3://{server.bucket}/half"), Target(endpoint=server.endpoint))
    assert [info.key for info in direct.list() if info.key.startswith("gone")] == []


def test_an_object_replaced_while_it_is_read_is_noticed(server, monkeypatch):
    use(monkeypatch, server.access_key, server.secret_key)
    direct = S3Store(parse_uri(f"s3://{server.bucket}/replaced"), Target(endpoint=server.endpoint))
    direct.put("k", b"1" * 3_000_000)
    with s3servers.CuttingProxy(server.endpoint, limit=1_500_000, cuts=1) as proxy:
        store = S3Store(parse_uri(f"s3://{server.bucket}/replaced"), Target(endpoint=proxy.endpoint))
        with store.open("k") as stream:
            stream.read(10)
            direct.put("k", b"2" * 3_000_000)
            with pytest.raises(StorageError, match="changed while it was read"):
                stream.read()


@pytest.fixture
def moto_store(monkeypatch):
    from moto import mock_aws

    use(monkeypatch, "testing", "testing")
    with mock_aws():
        store = S3Store(parse_uri("s3://mocked/p"), Target(region="us-east-1"))
        from instructpt.storage.credentials import client_for

        client = client_for(Target(region="us-east-1"))
        client.create_bucket(Bucket="mocked")
        yield store, client


def answer(status: int, code: str):
    from botocore.awsrequest import AWSResponse

    class Raw:
        def stream(self, **_):
            yield f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()

    return AWSResponse("http://mocked", status, {}, Raw())


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")])
def test_a_busy_server_is_retried_and_then_retryable(moto_store, monkeypatch, status, code):
    store, client = moto_store
    sent = []

    def busy(**_):
        sent.append(1)
        return answer(status, code) if len(sent) <= failures else None

    client.meta.events.register_first("before-send.s3", busy)
    failures = 1
    store.put("k", b"1")  # the second attempt goes through
    assert len(sent) == 2
    failures, sent[:] = 99, []
    with pytest.raises(StorageError, match=code) as caught:
        store.put("k", b"2")
    assert caught.value.retryable
    assert len(sent) == 2, "AWS_MAX_ATTEMPTS bounds the attempts; nothing is stacked on top"


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
def test_both_answers_to_a_lost_create(moto_store, status, code):
    from instructpt.errors import ConditionFailedError

    store, client = moto_store
    client.meta.events.register_first("before-send.s3.PutObject", lambda **_: answer(status, code))
    with pytest.raises(ConditionFailedError):
        store.create("k", b"1")


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (301, "PermanentRedirect", "set the storage's region"),
        (403, "RequestTimeTooSkewed", "set this machine's clock"),
        (403, "ExpiredToken", "check the credentials"),
        (507, "InsufficientStorage", "the server is full"),
        (400, "EntityTooLarge", "answered 400 EntityTooLarge"),
    ],
)
def test_other_answers_say_what_to_do(moto_store, status, code, text):
    store, client = moto_store
    client.meta.events.register_first("before-send.s3.PutObject", lambda **_: answer(status, code))
    with pytest.raises((StorageError, ConfigError)) as caught:
        store.put("k", b"1")
    assert text in str(caught.value)


def test_a_server_that_does_not_know_the_header(moto_store):
    store, client = moto_store

    def unknown(request, **_):
        return answer(501, "NotImplemented") if "If-None-Match" in request.headers else None

    client.meta.events.register_first("before-send.s3.PutObject", unknown)
    assert not store.supports_conditional_create()
    store.put("k", b"1")
