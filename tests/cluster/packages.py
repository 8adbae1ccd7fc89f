"""The Debian packages that the test bed needs: say which are missing, or install them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# The file that shows that a package is there, for its name alone tells nothing on another distribution.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "iproute2": "ip",
    "openssl": "openssl",
    "util-linux": "nsenter",
    "busybox-static": "/bin/busybox",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
# What only making images needs.
FOR_IMAGES = frozenset({"buildah", "debootstrap"})


def missing(*, images: bool = True) -> list[str]:
    """Packages that are wanted and not there."""
    return [
        name
        for name, proof in PACKAGES.items()
        if (images or name not in FOR_IMAGES) and not (Path(proof).exists() or shutil.which(proof, path=_path()))
    ]


def why_not(*, images: bool = False) -> str | None:
    """Why the test bed cannot run here, in one sentence; None where it can."""
    if sys.platform != "linux":
        return "the test bed needs Linux: it uses network namespaces and containerd"
    if os.geteuid() != 0:
        return "the test bed needs root: it makes a network namespace, mounts and cgroups"
    absent = missing(images=images)
    if absent:
        return f"the test bed needs Debian packages that are missing here: apt-get install {' '.join(absent)}"
    return None


def install() -> None:
    """Install what is missing.

    Raises:
        LookupError: It cannot be installed here; the message says what is wanted.
    """
    absent = missing()
    if not absent:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LookupError(f"install these first, as root: apt-get install {' '.join(absent)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=env)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], check=True, env=env)


def _path() -> str:
    """Some of these lie in sbin, which is not on the path of every user."""
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def main() -> int:
    """Install what is missing, or say what is wanted."""
    try:
        install()
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
