"""Build the programs of the test bed from Go modules, once, into the user's cache folder.

Every program lies in a folder named after it and its version, so a version that moves is built anew and an older one
stays usable. A build that is killed leaves nothing half-built; two builds at a time wait for each other.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "v1.36.3"
STAGING = KUBERNETES.replace("v1.", "v0.", 1)
NO_GO = "Go is not on PATH, and the control plane is built from its Go modules"


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its Go package, and the version that names its folder in the cache."""

    name: str
    package: str
    version: str
    of_kubernetes: bool = False
    module: str | None = None
    """Built inside this module of its own, since `go install` refuses a module that replaces others."""


PROGRAMS = {
    program.name: program
    for program in (
        Program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES, True),
        Program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", KUBERNETES, True),
        Program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES, True),
        Program("kubelet", "k8s.io/kubernetes/cmd/kubelet", KUBERNETES, True),
        Program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", KUBERNETES, True),
        Program("kubectl", "k8s.io/kubernetes/cmd/kubectl", KUBERNETES, True),
        # The version of etcd is the one that Kubernetes itself is built with.
        Program("etcd", "go.etcd.io/etcd/server/v3", KUBERNETES, True),
        Program("training-operator.v1", "github.com/kubeflow/training-operator/cmd/training-operator.v1", "v1.9.3"),
        Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", "v0.7.0"),
        Program("helm", "helm.sh/helm/v3/cmd/helm", "v3.22.0"),
        Program(
            "helm-unittest",
            "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
            "v1.1.2",
            module="github.com/helm-unittest/helm-unittest",
        ),
        Program("coredns", "github.com/coredns/coredns", "v1.15.0"),
        Program("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
    )
}
LIGHT = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm", "helm-unittest")
STRIP = "-s -w"
GIT_VERSION = f"{STRIP} -X k8s.io/component-base/version.gitVersion={KUBERNETES}" + "".join(
    f" -X k8s.io/component-base/version.{field}={number}"
    for field, number in zip(("gitMajor", "gitMinor"), KUBERNETES[1:].split(".")[:2], strict=True)
)


def cache_folder() -> Path:
    """What the test bed keeps between runs: binaries, images, container layers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instructpt"


def path(name: str) -> Path:
    """Where the program lies once it is built."""
    program = PROGRAMS[name]
    return cache_folder() / "bin" / f"{name}-{program.version}" / name


def is_ready(names: Iterable[str]) -> bool:
    """Whether all of these are built."""
    return all(path(name).exists() for name in names)


def build(names: Iterable[str] = PROGRAMS) -> None:
    """Build what is missing.

    Raises:
        LookupError: Something is missing and Go is absent (the message is :data:`NO_GO`).
        RuntimeError: A build failed; its output is in the message.
    """
    missing = [PROGRAMS[name] for name in names if not path(name).exists()]
    if not missing:
        return
    if shutil.which("go") is None:
        raise LookupError(NO_GO)
    (cache_folder() / "bin").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="instructpt-go-") as scratch:
        for program in missing:
            # One lock a program: who needs a few of them does not wait for somebody who builds them all.
            with (cache_folder() / "bin" / f".lock-{program.name}").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path(program.name).exists():  # another process may have built it meanwhile
                    start = time.monotonic()
                    _build_one(program, Path(scratch))
                    seconds = time.monotonic() - start
                    print(f"built {program.name} {program.version} in {seconds:.0f} s", file=sys.stderr)


def _build_one(program: Program, scratch: Path) -> None:
    target = path(program.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = scratch / program.name
    if program.of_kubernetes:
        module = _kubernetes_module(scratch)
        _go("build", "-ldflags", GIT_VERSION, "-o", str(aside), program.package, cwd=module)
    elif program.module:
        _go("mod", "download", f"{program.module}@{program.version}")
        module = Path(_go("env", "GOMODCACHE").strip()) / f"{program.module}@{program.version}"
        _go("build", "-ldflags", STRIP, "-o", str(aside), program.package, cwd=module)
    else:
        _go("install", "-ldflags", STRIP, f"{program.package}@{program.version}", GOBIN=str(scratch))
    # Copied beside its place and renamed there: the scratch folder may be another file system.
    shutil.copy2(aside, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def _kubernetes_module(scratch: Path) -> Path:
    """A module that requires Kubernetes, with the replacements that Kubernetes makes for its staging modules."""
    folder = scratch / "kubernetes"
    if folder.exists():
        return folder
    _go("mod", "download", f"k8s.io/kubernetes@{KUBERNETES}")
    cached = _go("env", "GOMODCACHE").strip()
    source = Path(cached, f"cache/download/k8s.io/kubernetes/@v/{KUBERNETES}.mod").read_text()
    staged = sorted(set(re.findall(r"^\s*(k8s\.io/[a-z-]+) => ", source, re.MULTILINE)))
    replacements = "".join(f"\t{module} => {module} {STAGING}\n" for module in staged)
    go_version = re.search(r"^go (\S+)", source, re.MULTILINE)
    assert go_version
    folder.mkdir()
    (folder / "go.mod").write_text(
        f"module testbed\n\ngo {go_version[1]}\n\n"
        f"require k8s.io/kubernetes {KUBERNETES}\n\nreplace (\n{replacements})\n"
    )
    imports = "".join(f'\t_ "{program.package}"\n' for program in PROGRAMS.values() if program.of_kubernetes)
    (folder / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
    _go("mod", "tidy", cwd=folder)
    return folder


def _go(*args: str, cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        ["go", *args],
        cwd=cwd,
        env={
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-trimpath" if args[0] in ("build", "install") else "",
            **env,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"go {' '.join(args)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def training_operator_source() -> Path:
    """The folder of the training operator's Go module, which holds its manifests."""
    program = PROGRAMS["training-operator.v1"]
    module = program.package.split("/cmd/")[0]
    _go("mod", "download", f"{module}@{program.version}")
    return Path(_go("env", "GOMODCACHE").strip()) / f"{module}@{program.version}"


def main(argv: list[str] | None = None) -> int:
    """Build everything, or what ``--light`` needs; a machine without Go is told so and is no error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--light", action="store_true", help="only what `make test` needs")
    parser.add_argument("--where", action="store_true", help="print where the programs are, built if need be")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PROGRAMS)}")
    args = parser.parse_args(argv)
    try:
        build(args.names or (LIGHT if args.light else [*LIGHT, *(n for n in PROGRAMS if n not in LIGHT)]))
    except LookupError as error:
        if args.where:  # nothing is there
            return 0
        print(f"note: {error}: tests against a real API server will skip", file=sys.stderr)
        return 0
    if args.where:
        print("\n".join(str(path(name)) for name in args.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
