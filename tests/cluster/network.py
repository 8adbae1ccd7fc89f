"""The network namespace of the test bed: a pair of links to the host, and no way further out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cluster.layout import HOST_ADDRESS, HOST_LINK, NETNS, NODE_ADDRESS, NODE_LINK, PREFIX, run

NETNS_FILE = Path("/run/netns", NETNS)
HOST_LINK_FOLDER = Path("/sys/class/net", HOST_LINK)


def enter(argv: list[str]) -> list[str]:
    """The command that runs ``argv`` inside.

    Not ``ip netns exec``: that mounts /sys anew, which hides the cgroups from the kubelet.
    """
    return ["nsenter", f"--net={NETNS_FILE}", *argv]


def up() -> None:
    """Make the namespace. Its default route leads to itself, so that nothing leaves the machine."""
    run(["ip", "netns", "add", NETNS])
    run(["ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", NODE_LINK])
    run(["ip", "link", "set", NODE_LINK, "netns", NETNS])
    run(["ip", "addr", "add", f"{HOST_ADDRESS}/{PREFIX}", "dev", HOST_LINK])
    run(["ip", "link", "set", HOST_LINK, "up"])
    for command in (
        "ip link set lo up",
        f"ip addr add {NODE_ADDRESS}/{PREFIX} dev {NODE_LINK}",
        f"ip link set {NODE_LINK} up",
        "sysctl -qw net.ipv4.ip_forward=1",
        f"ip route add default via {NODE_ADDRESS} dev {NODE_LINK}",
    ):
        run(enter(command.split()))


def down() -> None:
    """Remove the namespace and the link; parts of either that are gone already are no error."""
    if NETNS_FILE.exists():
        run(["ip", "netns", "del", NETNS])
    # The kernel takes the link away with the namespace, a moment later; a namespace that was never made left it alone.
    with contextlib.suppress(RuntimeError):
        run(["ip", "link", "del", HOST_LINK])


def processes() -> list[int]:
    """Every process that lives in the namespace, whoever started it."""
    if not NETNS_FILE.exists():
        return []
    wanted = NETNS_FILE.stat()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                seen = os.stat(entry / "ns/net")
            except OSError:  # it ended meanwhile
                continue
            if (seen.st_ino, seen.st_dev) == (wanted.st_ino, wanted.st_dev):
                found.append(int(entry.name))
    return found
