"""instructpt: Instruction Pre-Training (arXiv 2406.14491), from raw corpus to the answer whether it helped.

The public API: :func:`run` runs an object on this machine, :func:`load_resource` reads one from a file. What runs
things is imported when it is first used: the operator, for one, never uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instructpt.api.version import VERSION as __version__
from instructpt.errors import InstructPTError

if TYPE_CHECKING:
    from instructpt.local.run import RunFailedError, run
    from instructpt.local.spec_file import load_resource

__all__ = ["InstructPTError", "RunFailedError", "__version__", "load_resource", "run"]

_HOMES = {
    "RunFailedError": "instructpt.local.run",
    "run": "instructpt.local.run",
    "load_resource": "instructpt.local.spec_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
