"""Whether this machine is ready, and for a file: its corpus, storage and models. Each miss names the one fix."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from instructpt.api.base import Access
from instructpt.api.v1alpha1 import Corpus, InstructionPretraining
from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus.sources import resolve_source
from instructpt.errors import InstructPTError
from instructpt.local.preflight import preflight
from instructpt.plan.planner import AnyResource
from instructpt.storage import describe_access, open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the check; ``ok`` is ``None`` for what is missing but not needed."""

    what: str
    ok: bool | None
    found: str
    fix: str = ""


PACKAGES = {
    "torch": ("torch", "instructpt[local]", True),
    "transformers": ("transformers", "instructpt[local]", True),
    "deepspeed": ("deepspeed", "instructpt[training]", True),
    "matplotlib": ("matplotlib", "instructpt[evaluation]", True),
    "httpx": ("httpx", "instructpt[synthesis]", False),
    "vllm": ("vllm", "instructpt[vllm]", False),
}


def check_machine() -> list[Row]:
    """Python, packages, device, memory, disk."""
    rows = [Row(what="python", ok=True, found=platform.python_version())]
    for name, (module, extra, needed) in PACKAGES.items():
        rows.append(_package(name, module, extra, needed))
    rows.append(_device())
    free = shutil.disk_usage(Path.cwd()).free
    enough = free > 2e9
    rows.append(
        Row(what="disk", ok=enough, found=f"{free / 1e9:.1f} GB free here", fix="" if enough else "free 2 GB or more")
    )
    return rows


def check_file(resource: AnyResource) -> list[Row]:
    """What a file needs: its storage (reachable, writable, which credentials), its corpus, its model folders."""
    spec: Any = resource.spec
    rows = [_storage("spec.storage", spec.storage.uri, spec.storage)]
    if isinstance(resource, InstructionPretraining):
        rows.append(_corpus("spec.corpus", spec.corpus))
    elif isinstance(resource, Corpus):
        rows.append(_corpus("spec", spec))
    try:
        preflight(resource)
    except InstructPTError as error:
        rows.append(Row(what="settings", ok=False, found="cannot run here", fix=str(error)))
    else:
        rows.append(Row(what="settings", ok=True, found="names of plug-ins and folders of models are known here"))
    return rows


def _package(name: str, module: str, extra: str, needed: bool) -> Row:
    if util.find_spec(module) is None:
        fix = f"pip install '{extra}'"
        return Row(what=name, ok=False if needed else None, found="not installed", fix=fix)
    for distribution in (name, f"{name}-cpu"):
        try:
            return Row(what=name, ok=True, found=metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return Row(what=name, ok=True, found="installed")


def _device() -> Row:
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*")) if Path("/proc/driver/nvidia/gpus").exists() else []
    found = f"{len(cards)} NVIDIA GPU" if cards else f"no GPU, {os.cpu_count()} CPU cores"
    return Row(what="device", ok=True, found=found)


def _storage(field: str, uri: str, access: Access) -> Row:
    try:
        store = open_store(uri, access=access)
        key = f".instructpt-check-{os.getpid()}"
        store.put(key, b"ok")
        store.delete(key)
        conditional = store.supports_conditional_create()
    except InstructPTError as error:
        return Row(what=field, ok=False, found=uri, fix=str(error))
    credentials = describe_access(uri, access=access)
    found = f"{uri} writable" + (f", credentials: {credentials}" if credentials else "")
    if not conditional:
        return Row(what=field, ok=True, found=f"{found}; ignores If-None-Match, so parallelism must be 1")
    return Row(what=field, ok=True, found=found)


def _corpus(field: str, source: CorpusSource) -> Row:
    try:
        found = resolve_source(source, field=field)
    except InstructPTError as error:
        return Row(what=field, ok=False, found=source.uri, fix=str(error))
    credentials = describe_access(source.uri, access=source) if found.store is not None else ""
    said = f"{source.uri}: {len(found.objects)} objects, {len(found.skipped)} of other formats passed over"
    return Row(what=field, ok=True, found=said + (f", credentials: {credentials}" if credentials else ""))
