"""The schema and the table of the chart's values, both read from the comments of its values.yaml.

A comment directly above a key is the key's description. A comment line that starts with ``@schema`` holds JSON that is
merged into the key's JSON schema. Objects are closed unless their own ``@schema`` says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "instructpt"
BEGIN, END = "<!-- BEGIN values: GENERATED from values.yaml; run make generate -->", "<!-- END values -->"
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "map": "object", "seq": "array"}
OPEN = ("global",)
"""A parent chart may put anything there, and Helm hands it to every chart below."""


def outputs(chart: Path = CHART) -> dict[Path, str]:
    """Every file that follows from values.yaml, with its text."""
    text = (chart / "values.yaml").read_text()
    schema, readme = chart / "values.schema.json", chart / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        schema: json.dumps(schema_of(text), indent=2, ensure_ascii=False) + "\n",
        readme: f"{before}{BEGIN}\n{table(text)}{END}{after}",
    }


def schema_of(text: str) -> dict[str, Any]:
    """The JSON schema of a commented values.yaml."""
    root = _object(_compose(text), text.splitlines(), ())
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart instructpt", **root}


def table(text: str) -> str:
    """The values as a table in Markdown."""
    rows = "".join(
        f"| `{path}` | {kind} | `{default}` | {description} |\n"
        for path, kind, default, description in _rows(schema_of(text), yaml.safe_load(text), "")
    )
    return f"| value | type | default | meaning |\n| --- | --- | --- | --- |\n{rows}"


def _compose(text: str) -> yaml.MappingNode:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise TypeError("values.yaml is no mapping")
    return node


def _object(node: yaml.MappingNode, lines: list[str], path: tuple[str, ...]) -> dict[str, Any]:
    properties = {key.value: _property(key, value, lines, (*path, key.value)) for key, value in node.value}
    closed = {"additionalProperties": ".".join(path) in OPEN}
    return {"type": "object", **closed, "properties": properties}


def _property(key: yaml.Node, value: yaml.Node, lines: list[str], path: tuple[str, ...]) -> dict[str, Any]:
    description, extra = _comment(lines, key.start_mark.line)
    kind = TYPES[value.tag.rpartition(":")[2]]
    if isinstance(value, yaml.MappingNode) and value.value and "additionalProperties" not in extra:
        found = _object(value, lines, path)
    else:
        found = {"type": kind}
    if "items" in extra and extra["items"].get("type") == "string" and "maxLength" not in extra["items"]:
        extra["items"] = {**extra["items"], "maxLength": 1024}
    return {**({"description": description} if description else {}), **found, **extra}


def _comment(lines: list[str], key_line: int) -> tuple[str, dict[str, Any]]:
    found: list[str] = []
    for line in reversed(lines[:key_line]):
        if not line.lstrip().startswith("#"):
            break
        found.insert(0, line.lstrip()[1:].strip())
    extra = [json.loads(line.removeprefix("@schema")) for line in found if line.startswith("@schema")]
    return " ".join(line for line in found if not line.startswith("@schema")), dict(*extra)


def _rows(schema: dict[str, Any], values: dict[str, Any], prefix: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, child in schema["properties"].items():
        path = f"{prefix}{name}"
        if "properties" in child:
            rows += _rows(child, values[name], f"{path}.")
            continue
        kind = child["type"] if isinstance(child["type"], str) else " or ".join(child["type"])
        default = json.dumps(values[name], ensure_ascii=False)
        rows.append((path, kind, default.replace("|", "\\|"), child["description"].replace("|", "\\|")))
    return rows


def main() -> None:
    """Write the files."""
    for path, text in outputs().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
