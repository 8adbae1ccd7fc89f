from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import Field

from instructpt.api.base import ApiModel
from instructpt.api.crd import crd, structural
from instructpt.api.v1alpha1 import KINDS

ALLOWED = {
    "type", "description", "properties", "required", "items", "enum", "default", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties",
    "pattern", "format", "additionalProperties", "nullable", "x-kubernetes-validations", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip

SHORTEST = {"spec": 16, "status": 9}


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_structural(kind: str) -> None:
    root = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in nodes(root, kind):
        assert set(node) <= ALLOWED, f"{path}: {set(node) - ALLOWED}"
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in node and "additionalProperties" in node), path
        if node.get("type") == "array":
            assert "x-kubernetes-list-type" in node, f"{path}: a bare list"
            assert "maxItems" in node, f"{path}: a list without bound"
        if isinstance(node.get("exclusiveMinimum"), float | int) and not isinstance(node["exclusiveMinimum"], bool):
            pytest.fail(f"{path}: numeric exclusiveMinimum")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    root = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in ("spec", "status"):
        for path, node in nodes(root["properties"][part], part):
            if path != part and not path.endswith((".*", "[]")):
                # A word that only repeats the name tells nothing.
                assert len(node.get("description", "")) >= SHORTEST[part], path


@pytest.mark.parametrize("kind", KINDS)
def test_columns_point_at_fields_that_exist(kind: str) -> None:
    version = crd(KINDS[kind])["spec"]["versions"][0]
    known = {path for path, _ in nodes(version["schema"]["openAPIV3Schema"], "")}
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"]
        if path.startswith((".metadata", ".status.counts", ".status.scores")):
            continue
        assert path in known, f"{kind}: {path}"
    assert sum(c.get("priority", 0) == 0 for c in version["additionalPrinterColumns"]) <= 6


def test_defaults_of_the_models_stand_in_the_schema() -> None:
    spec = crd(KINDS["SynthesisJob"])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert spec["properties"]["shots"]["default"] == 3
    assert spec["properties"]["sampling"]["default"]["maxTokens"] == 400
    assert spec["properties"]["suspend"]["default"] is False


def test_a_set_is_refused_loudly() -> None:
    class Odd(ApiModel):
        names: Annotated[set[str], Field(description="x")]

    with pytest.raises(TypeError, match="uniqueItems"):
        structural(Odd)


def test_a_union_is_refused_loudly() -> None:
    class Odd(ApiModel):
        value: Annotated[int | str, Field(description="x")]

    with pytest.raises(TypeError, match="union"):
        structural(Odd)


def test_a_field_without_description_is_refused() -> None:
    class Odd(ApiModel):
        value: int = 3

    with pytest.raises(TypeError, match="no description"):
        structural(Odd)
