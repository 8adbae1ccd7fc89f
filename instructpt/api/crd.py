"""pydantic models -> CustomResourceDefinitions with structural schemas, defaults, CEL rules and printer columns.

What pydantic emits and what a structural schema allows differ; each rewrite below answers one difference. A construct
without an answer fails loudly: change the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from instructpt.api.base import GROUP, NAME_PATTERN, VERSION, ApiModel, Resource, Rule
from instructpt.api.uris import URI_MARK, URI_RULES

NAME_RULE = Rule(
    "metadata.name must be at most 40 lower-case letters, digits and dashes",
    f"self.metadata.name.matches('{NAME_PATTERN}')",
)

_DROPPED = {"title", "examples", "additionalProperties", "default", "$defs"}
_REFUSED = ("uniqueItems", "prefixItems", "oneOf", "allOf", "patternProperties")


def crd(kind: type[Resource]) -> dict[str, Any]:
    """The CRD of one kind."""
    singular = kind.kind_name().lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "instructpt"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind_name(),
                "listKind": f"{kind.kind_name()}List",
                "plural": kind.plural,
                "singular": singular,
                "shortNames": [kind.short_name],
                "categories": ["instructpt"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}, **_scale(kind)},
                    "additionalPrinterColumns": [
                        {
                            "name": column.name,
                            "type": column.type,
                            "jsonPath": column.path,
                            **({"priority": column.priority} if column.priority else {}),
                        }
                        for column in kind.columns
                    ],
                    "schema": {"openAPIV3Schema": schema_of_kind(kind)},
                }
            ],
        },
    }


def schema_of_kind(kind: type[Resource]) -> dict[str, Any]:
    """The structural schema of one kind."""
    fields = kind.model_fields
    return {
        "type": "object",
        "description": _summary(kind),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "API group and version."},
            "kind": {"type": "string", "description": "Kind."},
            "metadata": {"type": "object"},
            "spec": structural(_model(fields["spec"].annotation)),
            "status": structural(_model(fields["status"].annotation)),
        },
        "x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message} for rule in (NAME_RULE, *kind.rules)],
    }


def _scale(kind: type[Resource]) -> dict[str, Any]:
    if kind.scale is None:
        return {}
    return {
        "scale": {
            "specReplicasPath": kind.scale.spec_replicas,
            "statusReplicasPath": kind.scale.status_replicas,
            "labelSelectorPath": kind.scale.selector,
        }
    }


def structural(model: type[ApiModel]) -> dict[str, Any]:
    """The structural schema of one model; nested models are inlined.

    Raises:
        TypeError: A construct that a structural schema cannot express.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    converted = _convert(schema, schema.get("$defs", {}), model.__name__)
    _annotate(converted, model)
    return converted


def _annotate(schema: dict[str, Any], model: type[ApiModel]) -> None:
    """Lay descriptions, defaults and rules of the models over the converted schema."""
    rules = [
        {"rule": rule.cel, "message": rule.message}
        for cls in reversed(model.__mro__)
        for rule in cls.__dict__.get("rules", ())
        if rule.cel
    ]
    rules += [
        # At the parent, since the server repeats a value that breaks a rule of its own: this one may hold a secret.
        {"rule": _of_field(name, rule.cel), "message": f"{name} {rule.message}"}
        for name, child in schema["properties"].items()
        for rule in URI_RULES.get(child.pop(URI_MARK, ""), ())
    ]
    if rules:
        schema["x-kubernetes-validations"] = rules
    for name, field in model.model_fields.items():
        child = schema["properties"][field.alias or name]
        if not child.get("description"):
            raise TypeError(f"{model.__name__}.{name} has no description")
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        if default is not None:
            child["default"] = _wire(default)
        nested = _nested(field.annotation)
        if nested is not None:
            _annotate(child["items"] if child.get("type") == "array" else child, nested)


def _of_field(name: str, cel: str) -> str:
    return f"!has(self.{name}) || ({cel.replace('self', f'self.{name}')})"


def _convert(node: Mapping[str, Any], defs: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in _REFUSED:
        if name in node:
            raise TypeError(f"{where}: {name} has no place in a structural schema; change the model")
    if "$ref" in node:
        target = defs[str(node["$ref"]).rsplit("/", 1)[1]]
        outer = {k: v for k, v in node.items() if k != "$ref"}
        return _convert({**target, **outer}, defs, where)
    if "anyOf" in node:
        inner = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(inner) != 1:
            raise TypeError(f"{where}: a union of {len(inner)} types; use sibling fields and a rule")
        outer = {k: v for k, v in node.items() if k != "anyOf"}
        return _convert({**inner[0], **outer}, defs, where)
    schema = {k: v for k, v in node.items() if k not in _DROPPED and k != "properties"}
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for bound, key in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            schema[key] = schema[bound]
            schema[bound] = True
    if "properties" in node:
        schema["properties"] = {
            name: _convert(child, defs, f"{where}.{name}") for name, child in node["properties"].items()
        }
    elif schema.get("type") == "object":
        _open_object(schema, node, defs, where)
    if "items" in node:
        schema["items"] = _convert(node["items"], defs, f"{where}[]")
    return schema


def _open_object(schema: dict[str, Any], node: Mapping[str, Any], defs: Mapping[str, Any], where: str) -> None:
    values = node.get("additionalProperties")
    schema.setdefault("maxProperties", 256)
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if not isinstance(values, Mapping):
        raise TypeError(f"{where}: an object without fields; give it a model or preserve unknown fields")
    schema["additionalProperties"] = _convert(values, defs, f"{where}.*")


def _wire(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, tuple):
        return [_wire(v) for v in value]
    return value


def _model(annotation: Any) -> type[ApiModel]:
    model = _nested(annotation)
    if model is None:
        raise TypeError(f"{annotation} holds no model")
    return model


def _nested(annotation: Any) -> type[ApiModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _nested(part)
        if found is not None:
            return found
    return None


def _summary(kind: type[Resource]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
