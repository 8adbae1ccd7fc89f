"""A real API server for the tests, without root: etcd, kube-apiserver and, on request, kube-controller-manager.

There is no scheduler and no kubelet, so pods stay Pending until a test plays the kubelet and writes their status.
Everything listens on free loopback ports and ends with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import http.client
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cluster import binaries
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
CRDS = Path(__file__).resolve().parents[1] / "manifests" / "crds"
START_SECONDS = 120.0
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "job-controller",
    "serviceaccount-controller",
    "ttl-after-finished-controller",
)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class ApiServerError(RuntimeError):
    """A program of the control plane did not start; the end of its log is in the message."""


class KubectlError(subprocess.CalledProcessError):
    """kubectl refused; what it printed is in the message."""

    def __str__(self) -> str:
        """The command's last part is enough: the rest is the same everywhere."""
        return f"kubectl {' '.join(self.cmd[2:])} ended with {self.returncode}:\n{self.output}"


@dataclass(slots=True, kw_only=True)
class ApiServer:
    """A running control plane.

    Attributes:
        kubeconfig: Of a user in ``system:masters``, with the certificates embedded.
        url: Of the API server.
        etcd_url: Of etcd, for tests that compact or look inside.
        folder: Certificates, logs, data.
        processes: The programs that run, by name.
    """

    kubeconfig: Path
    url: str
    etcd_url: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _context: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by program."""
        return {name: process.pid for name, process in self.processes.items()}

    def kubectl(self, *args: str, input: str | None = None, timeout: float = 60.0) -> str:
        """What ``kubectl`` prints.

        Raises:
            KubectlError: It refused; ``output`` holds what it printed, standard error included.
        """
        command = [str(binaries.path("kubectl")), f"--kubeconfig={self.kubeconfig}", *args]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECACHEDIR": str(self.folder / "kubecache")}
        done = subprocess.run(
            command,
            input=input or "",
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise KubectlError(done.returncode, command, done.stdout, done.stdout)
        return done.stdout

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", accept: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """One request as the admin, much quicker than kubectl: (HTTP status, decoded body)."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", int(self.url.rsplit(":", 1)[1]), timeout=30, context=self.ssl_context()
        )
        headers = {"Content-Type": content_type, "Accept": accept or "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, {"text": text.decode(errors="replace")}

    def ssl_context(self) -> ssl.SSLContext:
        """TLS as the admin."""
        if self._context is None:
            self._context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
            self._context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        return self._context

    def apply_crds(self, folder: Path = CRDS) -> None:
        """Install our CRDs and wait until they are served."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder))
        names = [yaml.safe_load(path.read_text())["metadata"]["name"] for path in sorted(folder.glob("*.yaml"))]
        crds = [f"crd/{name}" for name in names]
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)
        for name in names:  # Established comes a moment before the handlers are there
            plural, group = name.split(".", 1)
            path = f"/apis/{group}/v1alpha1/{plural}?limit=1"
            _until(lambda p=path: self.request("GET", p)[0] == 200, f"{name} is not served")

    def pause(self, name: str = "kube-apiserver") -> None:
        """Stop a program in its tracks: connections stay open, nothing answers."""
        os.kill(self.processes[name].pid, signal.SIGSTOP)

    def resume(self, name: str = "kube-apiserver") -> None:
        """Let a paused program go on."""
        os.kill(self.processes[name].pid, signal.SIGCONT)

    def stop(self, name: str = "kube-apiserver") -> None:
        """Kill a program: connections are refused from now on."""
        process = self.processes.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, name: str) -> None:
        """Start a program on the ports it had, and wait until it answers."""
        command = [str(binaries.path(name)), *_arguments(self)[name]]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "GOGC": "50"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.processes[name] = process
        if name != "kube-controller-manager":
            self.wait_ready(name)

    def restart_apiserver(self) -> None:
        """Kill the API server and start it again over the same data."""
        self.stop("kube-apiserver")
        self.start("kube-apiserver")

    def wait_ready(self, name: str = "kube-apiserver") -> None:
        """Wait until a program answers.

        Raises:
            ApiServerError: It ended, or did not answer in time.
        """
        process = self.processes[name]

        def ready() -> bool:
            if process.poll() is not None:
                raise ApiServerError(f"{name} ended with {process.returncode}:\n{self.log(name)}")
            try:
                if name == "etcd":
                    socket.create_connection(("127.0.0.1", int(self.etcd_url.rsplit(":", 1)[1])), timeout=1).close()
                    return True
                return self.request("GET", "/readyz")[0] == 200
            except OSError:
                return False

        _until(ready, f"{name} did not answer", lambda: self.log(name))

    def log(self, name: str, length: int = 4000) -> str:
        """The end of a program's log."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-length:] if path.exists() else ""


@contextlib.contextmanager
def api_server(scratch: Path, *, controllers: bool = False) -> Iterator[ApiServer]:
    """Run a control plane of its own below ``scratch``.

    Args:
        scratch: An empty folder.
        controllers: Also run the controllers of namespaces, garbage, Jobs, service accounts and aggregated roles.
    """
    binaries.build(NEEDED)
    server = _start(scratch)
    try:
        if controllers:
            server.start("kube-controller-manager")
        yield server
    finally:
        for name in tuple(reversed(server.processes)):
            server.stop(name)


def _start(scratch: Path) -> ApiServer:
    """Start etcd and the API server; a port that another process takes in between means another try."""
    for attempt in range(3):
        folder = scratch / f"control-plane-{attempt}"
        folder.mkdir(parents=True)
        etcd, secure = _free_ports(2)
        server = ApiServer(
            kubeconfig=folder / "kubeconfig",
            url=f"https://127.0.0.1:{secure}",
            etcd_url=f"http://127.0.0.1:{etcd}",
            folder=folder,
        )
        _certificates(folder)
        server.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(server)))
        try:
            server.start("etcd")
            server.start("kube-apiserver")
            return server
        except BaseException as error:
            for name in tuple(server.processes):
                server.stop(name)
            if attempt == 2 or "address already in use" not in str(error):
                raise
    raise AssertionError


def _arguments(server: ApiServer) -> dict[str, tuple[str, ...]]:
    folder, secure = server.folder, server.url.rsplit(":", 1)[1]
    return {
        "etcd": (
            f"--data-dir={folder}/etcd",
            "--unsafe-no-fsync",
            "--log-level=error",
            f"--listen-client-urls={server.etcd_url}",
            f"--advertise-client-urls={server.etcd_url}",
            "--listen-peer-urls=http://127.0.0.1:0",
        ),
        "kube-apiserver": (
            f"--etcd-servers={server.etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={secure}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--cert-dir={folder}",
            f"--tls-cert-file={folder}/apiserver.crt",
            f"--tls-private-key-file={folder}/apiserver.key",
            f"--client-ca-file={folder}/ca.crt",
            f"--service-account-key-file={folder}/sa.pub",
            f"--service-account-signing-key-file={folder}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            # Pods are never run here, so they need neither a token nor an account that exists.
            "--disable-admission-plugins=ServiceAccount",
            "--event-ttl=10m",
            "--profiling=false",
        ),
        "kube-controller-manager": (
            f"--kubeconfig={server.kubeconfig}",
            f"--service-account-private-key-file={folder}/sa.key",
            f"--root-ca-file={folder}/ca.crt",
            f"--cert-dir={folder}",
            f"--controllers={','.join(CONTROLLERS)}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ),
    }


def _kubeconfig(server: ApiServer) -> Mapping[str, Any]:
    import base64

    def embedded(name: str) -> str:
        return base64.b64encode((server.folder / name).read_bytes()).decode()

    cluster = {"server": server.url, "certificate-authority-data": embedded("ca.crt")}
    user = {"client-certificate-data": embedded("admin.crt"), "client-key-data": embedded("admin.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }


def _certificates(folder: Path) -> None:
    """A CA, a certificate of the server and one of an admin, and the key pair of service accounts."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
    ca = _certificate(ca_name, ca_key, ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=0))
    _write_pair(folder, "ca", ca, ca_key)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    for file, organisation, common in (
        ("apiserver", "instructpt", "kube-apiserver"),
        ("admin", "system:masters", "admin"),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        leaf = _certificate(subject, key, ca_name, ca_key, usage, x509.SubjectAlternativeName(names))
        _write_pair(folder, file, leaf, key)
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "sa.key").write_bytes(_pem(accounts))
    (folder / "sa.pub").write_bytes(
        accounts.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=2))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer_key, hashes.SHA256())


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(_pem(key))


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _die_with_parent() -> None:
    # Of the thread that starts the program: start servers from the main thread.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _until(holds: Any, otherwise: str, detail: Any = lambda: "") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise ApiServerError(f"{otherwise} within {START_SECONDS:.0f} s\n{detail()}")
        time.sleep(0.05)
