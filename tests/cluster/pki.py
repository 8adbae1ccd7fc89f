"""Certificates, keys and kubeconfigs of the test bed, by openssl: made anew for every run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from cluster.layout import API_SERVICE, API_URL, NETNS, NODE, NODE_ADDRESS, Layout, run

# The training operator takes a webhook certificate of another only if it is good for another 90 days.
DAYS = "365"
API_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


def make(layout: Layout) -> None:
    """Make everything that the control plane and the node need."""
    folder = layout.pki
    folder.mkdir(mode=0o700)
    authority(folder / "ca", f"{NETNS}-ca")
    names = [f"DNS:{name}" for name in API_NAMES]
    addresses = [f"IP:{address}" for address in ("127.0.0.1", API_SERVICE, NODE_ADDRESS)]
    issue(folder / "ca", folder / "apiserver", "/CN=kube-apiserver", [*names, *addresses])
    issue(folder / "ca", folder / "admin", "/O=system:masters/CN=admin", ["DNS:admin"])
    kubelet = [f"DNS:{NODE}", f"IP:{NODE_ADDRESS}"]
    issue(folder / "ca", folder / "kubelet", f"/O=system:nodes/CN=system:node:{NODE}", kubelet)
    _key(folder / "sa.key")
    run(["openssl", "ec", "-in", f"{folder}/sa.key", "-pubout", "-out", f"{folder}/sa.pub"])
    _kubeconfig(layout.kubeconfig, folder, "admin")
    _kubeconfig(layout.kubelet_kubeconfig, folder, "kubelet")


def authority(stem: Path, name: str) -> None:
    """Write ``stem.crt`` and ``stem.key`` of a certificate authority."""
    # RSA in its old form, for the training operator reads no other key of an authority.
    run(["openssl", "genrsa", "-traditional", "-out", f"{stem}.key", "2048"])
    argv = f"openssl req -x509 -new -nodes -key {stem}.key -subj /CN={name} -addext subjectAltName=DNS:{name}"
    run([*argv.split(), "-days", DAYS, "-out", f"{stem}.crt"])


def issue(ca: Path, stem: Path, subject: str, names: list[str]) -> None:
    """Write ``stem.crt`` and ``stem.key``, signed by the authority."""
    _key(stem.with_suffix(".key"))
    run(["openssl", "req", "-new", "-key", f"{stem}.key", "-subj", subject, "-out", f"{stem}.csr"])
    extensions = stem.with_suffix(".ext")
    extensions.write_text(f"subjectAltName={','.join(names)}\nextendedKeyUsage=serverAuth,clientAuth\n")
    argv = f"openssl x509 -req -in {stem}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -days {DAYS}"
    run([*argv.split(), "-out", f"{stem}.crt", "-extfile", str(extensions)])


def _key(path: Path) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)])


def _kubeconfig(path: Path, folder: Path, user: str) -> None:
    def inline(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    cluster = {"server": API_URL, "certificate-authority-data": inline("ca.crt")}
    credentials = {
        "client-certificate-data": inline(f"{user}.crt"),
        "client-key-data": inline(f"{user}.key"),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NETNS, "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": NETNS, "context": {"cluster": NETNS, "user": user}}],
        "current-context": NETNS,
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
