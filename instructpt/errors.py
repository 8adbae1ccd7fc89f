"""Every error that instructpt raises on purpose.

    InstructPTError
    |-- ConfigError        the spec or a flag is wrong: nothing is retried
    |   `-- CredentialsError       a Secret or profile is missing, incomplete or refused by the server
    |-- EnvironmentNotReadyError   a package, a server or a device is missing on this machine
    |-- StorageError       an object could not be read or written
    |   |-- NotFoundError          the object or bucket does not exist
    |   `-- ConditionFailedError   a conditional write lost: somebody else was first
    |-- CorpusError        the corpus cannot be used as it is
    |-- SynthesisError     an engine or a profile failed
    |-- TrainingError      preparation or training failed
    |-- EvaluationError    an evaluation failed
    `-- PlanError          the plan cannot be carried out (numbers do not add up)

Each carries ``retryable``: whether the same call may succeed later.
"""

from __future__ import annotations


class InstructPTError(Exception):
    """Base of all errors of this package.

    Args:
        message: What happened, in one sentence.
        field: Dotted path of the spec field at fault, such as ``spec.training.tokens``.
        value: The value found there.
        fix: What the user can do about it.
        retryable: Whether the same call may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        fix: str | None = None,
        retryable: bool = False,
    ) -> None:
        self.message = message
        self.field = field
        self.value = value
        self.fix = fix
        self.retryable = retryable
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.field}={self.value!r}: " if self.field else ""
        tail = f"; {self.fix}" if self.fix else ""
        return f"{head}{self.message}{tail}"


class ConfigError(InstructPTError):
    """The spec, a flag or a credential is wrong. Retrying cannot help."""


class CredentialsError(ConfigError):
    """Credentials are missing or incomplete, or the server refuses them. The message names the Secret, never a key."""


class EnvironmentNotReadyError(InstructPTError):
    """Something this machine lacks: a package, a server, a device."""


class StorageError(InstructPTError):
    """An object could not be read or written."""


class NotFoundError(StorageError):
    """The object or bucket does not exist."""


class ConditionFailedError(StorageError):
    """A conditional write lost: somebody else was first."""


class CorpusError(InstructPTError):
    """The corpus cannot be used as it is."""


class SynthesisError(InstructPTError):
    """An engine or a profile failed."""


class TrainingError(InstructPTError):
    """Preparation or training failed."""


class EvaluationError(InstructPTError):
    """An evaluation failed."""


class PlanError(InstructPTError):
    """The plan cannot be carried out: its numbers do not add up."""
