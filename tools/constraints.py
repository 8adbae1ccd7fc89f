"""Write a file of pinned versions from a report of ``pip install --dry-run --report``.

``make constraints`` calls it, as ``python tools/constraints.py default < report.json``. It uses nothing but the
standard library, so that any Python can run it.
"""

from __future__ import annotations

import json
import sys

HEADERS = {
    "default": """\
# The versions that set-up installs, of direct and indirect dependencies alike; they resolve on Python 3.11 to 3.13.
# Written by `make constraints` on Python 3.11 from pyproject.toml (extras local, dev, cluster) and
# images/synthesizer/requirements-cpu.txt. Change those and run it again; do not edit by hand.
""",
    "cuda": """\
# The versions of the CUDA synthesizer image: vLLM pins kernels and back ends that its CPU build does not need.
# Written by `make constraints` on Python 3.11 from the extra "vllm" of pyproject.toml; do not edit by hand.
""",
}


def render(header: str, report: dict[str, list[dict[str, dict[str, str]]]]) -> str:
    """The text of a constraints file, from pip's installation report in format version 1."""
    pins = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    pins.pop("instructpt", None)
    return header + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins, key=str.lower))


if __name__ == "__main__":
    sys.stdout.write(render(HEADERS[sys.argv[1]], json.load(sys.stdin)))
