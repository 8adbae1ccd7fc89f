"""What a worker needs of its process when nobody prepared a home for it: a pod with a read-only root and a bare uid.

Libraries keep caches below HOME (Hugging Face, torch, triton, vLLM, matplotlib, CUDA) and ask for the user's name.
Setting these here, before they are imported, keeps images and pod specs simple. What is set already stays.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterable, MutableMapping
from pathlib import Path

THREADS_ENV = "INSTRUCTPT_THREADS"
_CGROUP = Path("/sys/fs/cgroup")
_CACHES = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "HF_HOME": ".cache/huggingface",
    "TORCHINDUCTOR_CACHE_DIR": ".cache/torchinductor",
    "TRITON_CACHE_DIR": ".cache/triton",
    "MPLCONFIGDIR": ".config/matplotlib",
    "VLLM_CACHE_ROOT": ".cache/vllm",
    "VLLM_CONFIG_ROOT": ".config/vllm",
    "NUMBA_CACHE_DIR": ".cache/numba",
    "CUDA_CACHE_PATH": ".cache/nv",
}
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait must not spin: what they burn counts against the container's limit.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def settle(scratch: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what is missing in the environment.

    Args:
        scratch: Folder of this worker; homes and temporary files go there where the usual places cannot be written.
        environ: Of this process.
    """
    for name, value in _DEFAULTS.items():
        environ.setdefault(name, value)
    _name_user(environ)
    home = Path(environ.get("HOME") or "/")
    if home == Path("/") or not _writable(home):
        _move_home(scratch.absolute() / "home", environ)
    if "TMPDIR" not in environ and not any(_writable(Path(place)) for place in ("/tmp", "/var/tmp")):  # noqa: S108
        temporary = scratch.absolute() / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None  # it may have been looked up already
    if THREADS_ENV not in environ:
        environ[THREADS_ENV] = str(cores())
    environ.setdefault("OMP_NUM_THREADS", environ[THREADS_ENV])


def cores(cgroup: Path = _CGROUP) -> int:
    """CPU cores that this process may use: of its affinity, at most those of the container's limit, at least one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *_limits(cgroup)]))


def _limits(cgroup: Path) -> Iterable[int]:
    """Whole cores of the container's limit, rounded up: cgroup 2, then cgroup 1."""
    pairs = []
    try:
        pairs.append((cgroup / "cpu.max").read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            pairs.append([(cgroup / "cpu" / name).read_text(encoding="ascii").strip() for name in names])
        except (OSError, UnicodeDecodeError):
            return
    for quota, period in pairs:
        if quota.isdigit() and int(quota) > 0:
            yield -(-int(quota) // int(period))


def _name_user(environ: MutableMapping[str, str]) -> None:
    """A pod's uid has no line in /etc/passwd, and getpass.getuser() fails then unless it is told."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        environ.setdefault("USER", "instructpt")
        environ.setdefault("LOGNAME", environ["USER"])


def _move_home(home: Path, environ: MutableMapping[str, str]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    environ["HOME"] = str(home)
    for name, folder in _CACHES.items():
        environ.setdefault(name, str(home / folder))


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
