"""Which credentials a location uses, and the one boto3 client of this process for them.

Order: a folder of secret files (a mounted Secret), then an AWS profile of that name, then, where no name is given,
boto3's default chain (environment, shared files, web identity, instance role). With secret files the environment
is never read. boto3 is imported only inside functions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructpt.errors import ConfigError, CredentialsError

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.config import Config
    from botocore.credentials import RefreshableCredentials
    from mypy_boto3_s3 import S3Client

SECRETS_DIR_ENV = "INSTRUCTPT_SECRETS_DIR"
DEFAULT_SECRETS_DIR = "/var/run/instructpt/secrets"
DEFAULT_ATTEMPTS = 8
"""Attempts per request, the first included: about half a minute of an ailing server. AWS_MAX_ATTEMPTS overrides."""

POOL_CONNECTIONS = 32
"""Connections that the client of a process keeps open."""

REREAD_SECONDS = 60
"""Secret files are read again when they were last read this long ago, so a rotated Secret takes effect."""

_LIFETIME = timedelta(minutes=20)
_FIELD = "storage.secretRef.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What distinguishes one client from another.

    Attributes:
        endpoint: URL of an S3-compatible server; None for AWS.
        region: Region of the bucket, or None for what the chain says.
        secret: Name of the Secret or AWS profile; None for the default chain.
    """

    endpoint: str | None = None
    region: str | None = None
    secret: str | None = None


def secret_folder(name: str) -> Path:
    """The folder in which the Secret ``name`` would be mounted; ``INSTRUCTPT_SECRETS_DIR`` moves it."""
    return Path(os.environ.get(SECRETS_DIR_ENV) or DEFAULT_SECRETS_DIR) / name


def describe_credentials(target: Target) -> str:
    """One phrase on where the credentials come from, for ``instructpt validate`` and ``check``; no secret in it.

    Raises:
        ConfigError: A secret is named that is neither a folder of files nor an AWS profile.
    """
    if target.secret is not None:
        folder = secret_folder(target.secret)
        if folder.is_dir():
            return f"secret files in {folder}"
        _check_profile(target.secret)
        return f"AWS profile {target.secret}"
    from botocore.session import get_session

    found = get_session().get_credentials()
    return "default chain: nothing found" if found is None else f"default chain: {found.method}"


def file_credentials(name: str, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> RefreshableCredentials:
    """Credentials from the files of the Secret ``name``, read again after :data:`REREAD_SECONDS`.

    Raises:
        ConfigError: A key is missing or empty; also at a later refresh.
    """
    from botocore.credentials import RefreshableCredentials

    def read() -> dict[str, Any]:
        return {**read_secret(name), "expiry_time": (clock() + _LIFETIME).isoformat()}

    return RefreshableCredentials.create_from_metadata(
        metadata=read(),
        refresh_using=read,
        method="instructpt-secret-files",
        # botocore refreshes when less than this is left of the lifetime that read() gave.
        advisory_timeout=int(_LIFETIME.total_seconds()) - REREAD_SECONDS,
        mandatory_timeout=int(_LIFETIME.total_seconds()) // 2,
    )


def read_secret(name: str) -> dict[str, str | None]:
    """Access key, secret key and token as botocore's metadata names them.

    Raises:
        ConfigError: A key is missing, empty or unreadable.
    """
    folder = secret_folder(name)
    # A mounted Secret changes by swapping the link ..data: resolving it first keeps the keys of one version together.
    version = folder / "..data"
    folder = version.resolve() if version.exists() else folder
    found = {key: _read(folder / key) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if not found[key]:
            raise CredentialsError(
                f"{secret_folder(name) / key} is missing, empty or unreadable",
                field=_FIELD,
                value=name,
                fix=f"put the key {key} into the Secret {name}",
            )
    return {
        "access_key": found["AWS_ACCESS_KEY_ID"],
        "secret_key": found["AWS_SECRET_ACCESS_KEY"],
        "token": found["AWS_SESSION_TOKEN"] or None,
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


_ENVIRONMENT = (
    SECRETS_DIR_ENV,
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_MAX_ATTEMPTS",
    "AWS_PROFILE",
    "AWS_RETRY_MODE",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
)
_clients: dict[tuple[object, ...], tuple[S3Client, RefreshableCredentials | None]] = {}
_lock = threading.Lock()


def _client_key(target: Target) -> tuple[object, ...]:
    # The pid: a forked child must not share the parent's sockets. The environment: whoever changes it means it.
    return (os.getpid(), target, *map(os.environ.get, _ENVIRONMENT))


def client_for(target: Target) -> S3Client:
    """The client of this process for ``target``; clients are thread-safe and hold a connection pool.

    Raises:
        ConfigError: The named secret does not exist or lacks a key; the endpoint is no URL.
    """
    key = _client_key(target)
    with _lock:
        if key not in _clients:
            _clients[key] = _build(target)
        return _clients[key][0]


def renew_client(target: Target, refused: S3Client) -> bool:
    """After a refusal: whether the secret files hold other credentials than ``refused`` used, so a retry makes sense.

    Raises:
        ConfigError: A key is missing from the files by now.
    """
    if target.secret is None:
        return False
    key = _client_key(target)
    with _lock:
        client, credentials = _clients.get(key, (None, None))
        if client is not refused:
            return client is not None  # another thread was first
        if credentials is None:
            return False
        used, now = credentials.get_frozen_credentials(), read_secret(target.secret)
        if (used.access_key, used.secret_key, used.token) == (now["access_key"], now["secret_key"], now["token"]):
            return False
        _clients[key] = _build(target)
        return True


def _build(target: Target) -> tuple[S3Client, RefreshableCredentials | None]:
    import boto3
    from botocore.exceptions import BotoCoreError

    credentials: RefreshableCredentials | None = None
    verify: str | None = None
    try:
        if target.secret is None:
            session = boto3.Session()
        elif secret_folder(target.secret).is_dir():
            credentials = file_credentials(target.secret)
            session = _session_with(credentials)
            authority = secret_folder(target.secret) / "ca.crt"
            verify = str(authority) if authority.is_file() else None
        else:
            _check_profile(target.secret)
            session = boto3.Session(profile_name=target.secret)
        region = target.region or session.region_name or ("us-east-1" if target.endpoint else None)
        client = session.client(
            "s3", endpoint_url=target.endpoint, region_name=region, verify=verify, config=_config(target)
        )
    except ValueError as error:  # botocore's answer to an endpoint that is no URL
        raise ConfigError(
            str(error), field="storage.endpoint", value=target.endpoint, fix="write http://host:port or https://host"
        ) from error
    except BotoCoreError as error:
        raise ConfigError(f"no S3 client could be made: {error}", fix="check the AWS configuration files") from error
    return client, credentials


def _session_with(credentials: RefreshableCredentials) -> Session:
    import boto3
    from botocore.credentials import CredentialProvider, CredentialResolver
    from botocore.session import get_session

    class SecretFiles(CredentialProvider):
        METHOD = "instructpt-secret-files"

        def load(self) -> RefreshableCredentials:
            return credentials

    core = get_session()
    # The only provider: a job that reads one bucket and writes another must not fall back to somebody else's keys.
    core.register_component("credential_provider", CredentialResolver([SecretFiles()]))
    return boto3.Session(botocore_session=core)


def _config(target: Target) -> Config:
    from botocore.config import Config

    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "")
    mode = os.environ.get("AWS_RETRY_MODE", "")
    options: dict[str, Any] = {}
    if target.endpoint:
        # Servers other than AWS often know neither virtual hosts nor the checksum trailers that boto3 adds by default.
        options = {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    return Config(
        retries={
            "mode": "adaptive" if mode == "adaptive" else "standard",
            "total_max_attempts": int(attempts) if attempts.isdigit() and int(attempts) > 0 else DEFAULT_ATTEMPTS,
        },
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=POOL_CONNECTIONS,
        user_agent_extra="instructpt",
        **options,
    )


def _check_profile(name: str) -> None:
    import boto3

    if name not in boto3.Session().available_profiles:
        raise CredentialsError(
            f"there is neither a folder {secret_folder(name)} nor an AWS profile of that name",
            field=_FIELD,
            value=name,
            fix=f"add the profile [{name}] to ~/.aws/credentials, or leave secretRef out to use the default chain",
        )
