"""From botocore's errors to ours: which bucket, which endpoint, what to do; never a credential.

boto3 is imported only inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from instructpt.errors import (
    ConditionFailedError,
    ConfigError,
    CredentialsError,
    InstructPTError,
    NotFoundError,
    StorageError,
)

_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_BUSY_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "InternalError"}
_NO_ROOM_CODES = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
# Some with other statuses than 403: ExpiredToken 400, versitygw's unknown key 404.
_REFUSED_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "XAdminUserNotFound"}
_PERMISSIONS = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"


def status_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3 code of a ClientError; (0, "") of anything else."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(response.get("Error", {}).get("Code", ""))


def translate(
    error: BaseException, *, bucket: str, key: str | None, endpoint: str, secret: str | None = None
) -> InstructPTError:
    """The error of this package for ``error``.

    Args:
        error: What boto3, botocore or s3transfer raised.
        bucket: The bucket of the request.
        key: Its object, where the request had one.
        endpoint: URL that the client speaks to.
        secret: Name of the Secret or profile in use, for the message; None for the default chain.
    """
    found = _translate(error, bucket, key, endpoint)
    if secret is not None and isinstance(found, CredentialsError):
        found = CredentialsError(found.message, field="storage.secretRef.name", value=secret, fix=found.fix)
    return found


def _translate(error: BaseException, bucket: str, key: str | None, endpoint: str) -> InstructPTError:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import ClientError

    if isinstance(error, Boto3Error):  # upload_file wraps the cause
        inner = error.__cause__ or error.__context__
        if inner is not None:
            return _translate(inner, bucket, key, endpoint)
    where = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    if isinstance(error, ClientError):
        return _of_server(error, bucket, where, endpoint)
    return _of_client(error, bucket, where, endpoint)


def no_bucket(bucket: str, endpoint: str) -> NotFoundError:
    """The error for a bucket that the server does not know."""
    return NotFoundError(
        f"there is no bucket {bucket} at {endpoint}", fix="create it, or correct the storage's uri, endpoint or region"
    )


def _of_server(error: BaseException, bucket: str, where: str, endpoint: str) -> InstructPTError:
    status, code = status_of(error)
    answer = f"{endpoint} answered {status} {code}".rstrip()
    if code == "NoSuchBucket":
        return no_bucket(bucket, endpoint)
    if code == "InvalidBucketName":
        return ConfigError(f"{bucket!r} is no valid bucket name", fix="correct the storage's uri")
    if status == 404 and code not in _REFUSED_CODES:
        return NotFoundError(f"no object {where}")
    if status == 412 or code in ("ConditionalRequestConflict", "PreconditionFailed"):
        return ConditionFailedError(f"{where} already exists or has changed")
    if code in _REGION_CODES or status == 301:
        return ConfigError(f"bucket {bucket} is in another region ({answer})", fix="set the storage's region")
    if code == "RequestTimeTooSkewed":
        return ConfigError(f"access to bucket {bucket} is refused: {answer}", fix="set this machine's clock")
    if code in _NO_ROOM_CODES or status == 507:
        return StorageError(f"cannot write {where}: the server is full ({answer})", fix="free space there, then retry")
    if status in (401, 403) or code in _REFUSED_CODES:
        return CredentialsError(
            f"access to bucket {bucket} is refused ({where}: {answer})",
            fix=f"check the credentials that secretRef names, and that they allow {_PERMISSIONS}",
        )
    busy = status >= 500 or status == 429 or code in _BUSY_CODES
    return StorageError(f"{where}: {answer} after retries" if busy else f"{where}: {answer}", retryable=busy)


def _of_client(error: BaseException, bucket: str, where: str, endpoint: str) -> InstructPTError:
    from botocore import exceptions as bc

    if isinstance(error, bc.NoCredentialsError | bc.PartialCredentialsError):
        return CredentialsError(
            f"no credentials for bucket {bucket}",
            fix="name a Secret or AWS profile with secretRef, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    refused = (bc.TokenRetrievalError, bc.SSOError, bc.CredentialRetrievalError, bc.UnauthorizedSSOTokenError)
    if isinstance(error, refused):
        return CredentialsError(f"the credentials for bucket {bucket} could not be loaded: {error}", fix="log in again")
    if isinstance(error, bc.ParamValidationError):
        return ConfigError(f"{where} is refused by the client: {error}", fix="correct the storage's uri")
    if isinstance(error, bc.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ConfigError(
            f"the certificate of {endpoint} is not trusted",
            fix="add its authority as ca.crt to the Secret, or set AWS_CA_BUNDLE",
        )
    return StorageError(
        f"cannot reach {endpoint} for {where}: {type(error).__name__}",
        fix="check the storage's endpoint and that the server is up",
        retryable=True,
    )


@contextmanager
def translated(bucket: str, key: str | None, endpoint: str, secret: str | None = None) -> Iterator[None]:
    """Translate what boto3, botocore and s3transfer raise inside the block."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise translate(error, bucket=bucket, key=key, endpoint=endpoint, secret=secret) from error
