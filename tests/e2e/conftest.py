"""The test bed, and a namespace of its own for every test."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import bed as test_bed
from cluster import binaries, packages
from cluster.layout import Layout, current

WAIT_SECONDS = 60.0
LAST = "test_bed_faults.py"
"""Ends and breaks the test bed on which the others build."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent == Path(__file__).parent and item.path.name == LAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """The running test bed, and a namespace in it."""

    layout: Layout
    namespace: str

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        return self.layout.kubectl("-n", self.namespace, *args, stdin=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        content = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(content))

    def get(self, *args: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json"))
        return answer

    def wait(self, what: str, check: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
        """Poll until ``check`` returns something true, and return that; tell of the pods where it never does."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found, error = check(), ""
            except RuntimeError as failure:  # not there yet
                found, error = None, str(failure)
            if found:
                return found
            if time.monotonic() > deadline:
                pods = self.kubectl("get", "pods", "-o", "wide")
                events = self.kubectl("get", "events", "--sort-by=.lastTimestamp")
                pytest.fail(f"{what}: not within {seconds:.0f} s {error}\n{pods}{events[-3000:]}")
            time.sleep(0.2)

    def has_condition(self, kind: str, name: str, condition: str) -> bool:
        """Whether the object has this condition, and it holds."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return any(one["type"] == condition and one["status"] == "True" for one in conditions)


@pytest.fixture(scope="session")
def bed_was_up() -> bool:
    """Whether the test bed was up before the tests, so somebody else may use it."""
    return test_bed.is_up(current())


@pytest.fixture(scope="session")
def bed_layout(bed_was_up: bool) -> Iterator[Layout]:
    """The test bed of this machine: brought up if it is not up, and down again unless it was up or is to be kept."""
    reason = packages.why_not()
    if reason:
        pytest.skip(reason)
    layout, keep = current(), bed_was_up or os.environ.get("INSTRUCTPT_KEEP_BED") == "1"
    try:
        test_bed.up(layout)
        yield layout
    except LookupError as error:  # no Go to build its programs
        if str(error) != binaries.NO_GO:
            raise
        pytest.skip(str(error))
    finally:
        if not keep:
            test_bed.down(layout)


@pytest.fixture
def bed(bed_layout: Layout) -> Iterator[Bed]:
    """The test bed with a fresh namespace, which is deleted afterwards without waiting for that."""
    namespace = f"t-{uuid.uuid4().hex[:10]}"
    bed_layout.kubectl("create", "namespace", namespace)
    found = Bed(layout=bed_layout, namespace=namespace)
    found.wait("the service account", lambda: found.get("serviceaccount", "default"))
    yield found
    bed_layout.kubectl("delete", "namespace", namespace, "--wait=false")
