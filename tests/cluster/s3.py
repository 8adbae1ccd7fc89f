"""The S3 server of the test bed: versitygw on the address of the node, reached from pods and from the host."""

from __future__ import annotations

import secrets
import urllib.error
import urllib.request

from cluster import binaries, parts
from cluster.layout import NODE_ADDRESS, S3_ENDPOINT, S3_PORT, Layout


def start(layout: Layout) -> None:
    """Start the server with credentials of this run, which only the user that runs the test bed may read."""
    key, secret = f"bed{secrets.token_hex(8)}", secrets.token_urlsafe(30)
    layout.s3_credentials.touch(mode=0o600)
    layout.s3_credentials.write_text(
        f"AWS_ACCESS_KEY_ID={key}\nAWS_SECRET_ACCESS_KEY={secret}\nAWS_REGION=us-east-1\nAWS_ENDPOINT_URL={S3_ENDPOINT}\n"
    )
    sidecar = layout.root / "versitygw"
    for folder in (layout.s3_data, sidecar):
        folder.mkdir()
    argv = [str(binaries.path("versitygw")), "--quiet", "--port", f"{NODE_ADDRESS}:{S3_PORT}", "posix"]
    env = {"ROOT_ACCESS_KEY": key, "ROOT_SECRET_KEY": secret}
    parts.start(layout, "versitygw", [*argv, "--sidecar", str(sidecar), str(layout.s3_data)], env=env)


def credentials(layout: Layout) -> dict[str, str]:
    """What a client needs, as environment variables."""
    lines = layout.s3_credentials.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def wait_for(layout: Layout) -> None:
    """Wait until it answers."""

    def answers() -> bool:
        try:
            urllib.request.urlopen(S3_ENDPOINT, timeout=2)
        except urllib.error.HTTPError:  # it asks who we are
            return True
        except OSError:
            return False
        return True

    parts.wait_for(layout, "the S3 server", answers, 30.0, "versitygw")
