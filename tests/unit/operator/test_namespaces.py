"""Whether a namespace is being deleted, asked of the API server seldom."""

from __future__ import annotations

from typing import Any

from instructpt_operator.namespaces import NamespaceEnds
from instructpt_operator.runtime.client import ApiError


class Client:
    """Answers as told, and remembers the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.answer: dict[str, Any] | ApiError = {"metadata": {"name": "lab"}}

    def get(self, type_: Any, namespace: str | None, name: str) -> dict[str, Any]:
        self.paths.append(type_.path(namespace, name))
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


def test_f11_a_namespace_is_asked_by_its_own_path_and_the_answer_holds_for_a_while() -> None:
    client, now = Client(), [0.0]
    ends = NamespaceEnds(client, clock=lambda: now[0])  # type: ignore[arg-type]
    assert not ends.ends("lab")
    client.answer = {"metadata": {"name": "lab", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert not ends.ends("lab")
    now[0] = 31.0
    assert ends.ends("lab")
    assert client.paths == ["/api/v1/namespaces/lab"] * 2


def test_f11_a_namespace_that_cannot_be_read_is_taken_to_stay() -> None:
    client = Client()
    client.answer = ApiError(403, "Forbidden")
    assert not NamespaceEnds(client).ends("lab")  # type: ignore[arg-type]
