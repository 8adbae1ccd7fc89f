"""How the nodes of one training find each other: the first node's address, its rank, the interface between them.

The launcher (a PyTorchJob, or whoever starts the workers by hand) sets MASTER_ADDR, MASTER_PORT and RANK, which here
is the number of the node. torchrun's static rendezvous has its store on node 0, listening on all of its interfaces.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from instructpt.errors import ConfigError, EnvironmentNotReadyError, TrainingError

MEET_SECONDS_ENV = "INSTRUCTPT_MEET_SECONDS"
DEFAULT_MEET_SECONDS = 1800
"""How long a node waits for the others: images are pulled and models fetched at different speeds."""

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """This node among several.

    Attributes:
        count: Of the training.
        rank: Of this node.
        address: Name or address of node 0, as the launcher gave it.
        port: Of the store on node 0.
        seconds: How long to wait for the others.
    """

    count: int
    rank: int
    address: str
    port: int
    seconds: int

    @classmethod
    def from_environment(cls, count: int, replica: int, environ: Mapping[str, str] = os.environ) -> Nodes:
        """As the launcher set it; ``replica`` is the node where RANK is not set.

        Raises:
            ConfigError: RANK is not that of one of the nodes.
            EnvironmentNotReadyError: The environment does not name node 0.
        """
        address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
        if not address or not port:
            raise EnvironmentNotReadyError(
                f"training on {count} nodes needs MASTER_ADDR and MASTER_PORT in the environment",
                field="nodes",
                value=count,
                fix="run it as a PyTorchJob, which sets them, or use nodes: 1 on one machine",
            )
        rank = int(environ.get("RANK") or replica)
        if not 0 <= rank < count:
            raise ConfigError(
                f"RANK is {rank}, which is no node of {count}",
                field="nodes",
                value=count,
                fix="start one worker a node",
            )
        seconds = int(environ.get(MEET_SECONDS_ENV) or DEFAULT_MEET_SECONDS)
        return cls(count=count, rank=rank, address=address, port=int(port), seconds=seconds)

    @property
    def where(self) -> str:
        """Node 0's address and port, for messages."""
        return f"{self.address}:{self.port}"

    def arguments(self) -> list[str]:
        """Of torchrun. Node 0 speaks to itself by loopback: its own name may not be in the DNS yet."""
        address = "127.0.0.1" if self.rank == 0 else self.address
        return [
            f"--nnodes={self.count}",
            f"--node_rank={self.rank}",
            "--rdzv_backend=static",
            f"--rdzv_conf=timeout={self.seconds}",
            f"--master_addr={address}",
            f"--master_port={self.port}",
        ]

    def await_name(self, wait: Callable[[float], bool]) -> str | None:
        """Wait until the name of node 0 is known, which on a cluster it is only once its pod runs.

        Args:
            wait: Sleeps for so many seconds; true when this worker was asked to leave.

        Returns:
            Node 0's address, or None when this worker was asked to leave.

        Raises:
            TrainingError: The name is still unknown when the time is over; retryable.
        """
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                found = socket.getaddrinfo(self.address, self.port, type=socket.SOCK_STREAM)
                return str(found[0][4][0])
            except OSError as error:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        f"node {self.rank} found no address for {self.address} within {self.seconds} s ({error})",
                        fix="look at the pod of node 0: it must run, and its headless Service must exist",
                        retryable=True,
                    ) from error
            if wait(1.0):
                return None

    def interface(self, address: str) -> str | None:
        """The network interface for gloo; None leaves the choice to it, which takes that of the host's own name.

        Args:
            address: Node 0's, from :meth:`await_name`; on node 0 its name, which may not be known yet.
        """
        try:
            if self.rank == 0:
                address = str(socket.getaddrinfo(address, self.port, socket.AF_INET)[0][4][0])
            if address.startswith("127.") and not self.address.startswith("127."):
                return None  # a node that calls itself localhost: the others are elsewhere
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((address, self.port))  # sends nothing: it asks for the route
                mine = probe.getsockname()[0]
                return next((name for _, name in socket.if_nameindex() if _ipv4(probe, name) == mine), None)
        except OSError:
            return None


def _ipv4(probe: socket.socket, name: str) -> str | None:
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return None  # it has no address
    return socket.inet_ntoa(answer[20:24])
