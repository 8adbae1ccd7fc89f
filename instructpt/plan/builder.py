"""Collects the stages of a plan while looking up what is already done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from instructpt.api.base import Access, Input, ObjectRef, StorageSpec
from instructpt.api.common import Resources
from instructpt.api.runspec import MAX_RUNSPEC_BYTES, ResolvedInput, RunSpec, StageKind, StageResult
from instructpt.errors import ConfigError, PlanError
from instructpt.plan.model import Results, Stage, stage_key

RefKey = tuple[str, str]
"""Kind and name of an object that is named by a ref."""


@dataclass(slots=True, kw_only=True)
class PlanBuilder:
    """Adds stages for one object; equal work is planned once.

    Attributes:
        owner: Kind and name of the object that the next stages belong to.
        results: Results of finished stages.
        code_version: Version stamped into every RunSpec.
        refs: Outputs of objects that are named by a ref, by kind and name; ``None`` while an output is not there.
    """

    owner: tuple[str, str]
    results: Results
    code_version: str
    refs: dict[RefKey, ResolvedInput | None] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    def add(
        self,
        step: str,
        kind: StageKind,
        *,
        output: StorageSpec | None,
        section: Any | None,
        waits_for: tuple[str, ...] = (),
        parallelism: int = 1,
        replicas: int | None = None,
        resources: Resources | None = None,
        arm: str | None = None,
        seed: int | None = None,
    ) -> ResolvedInput | None:
        """Plan one stage and return its output as an input for others, or ``None`` while it is not done."""
        runspec = None
        if section is not None and output is not None:
            runspec = RunSpec(
                verb=_VERBS[kind], owner_kind=self.owner[0], owner_name=self.owner[1], step=step, output=output,
                parallelism=parallelism, code_version=self.code_version, **{kind: section},
            )  # fmt: skip
            if len(runspec.to_json().encode()) > MAX_RUNSPEC_BYTES:
                raise PlanError(
                    f"the RunSpec of step {step} is above 64 KiB", fix="use fewer mixture sources or shorter URIs"
                )
        key = None if runspec is None else stage_key(runspec)
        twin = next((s for s in self.stages if key is not None and s.key == key), None)
        if twin is not None:
            return self._output(twin)
        stage = Stage(
            step=step, kind=kind, owner=self.owner, output=output, runspec=runspec, waits_for=waits_for,
            replicas=replicas or parallelism, resources=resources or Resources(),
            result=None if key is None else self.results.get(key), arm=arm, seed=seed,
        )  # fmt: skip
        self.stages.append(stage)
        return self._output(stage)

    def lookup(self, ref: ObjectRef, field_name: str, *, fix: str) -> ResolvedInput | None:
        """The output of another object, or ``None`` while it is not there.

        Raises:
            ConfigError: Nothing is known of that object: only a cluster can look it up.
        """
        if (ref.kind, ref.name) not in self.refs:
            raise foreign_ref(f"{field_name}.ref", ref.name, fix=fix)
        return self.refs[ref.kind, ref.name]

    def resolve(self, input_: Input, field_name: str) -> ResolvedInput | None:
        """An input given by URI or by ref; ``None`` while the object it refers to has no output.

        Raises:
            ConfigError: It is a ref to an object that nothing is known of.
        """
        if input_.ref is not None:
            return self.lookup(input_.ref, field_name, fix="set uri to that object's output instead")
        assert input_.uri is not None
        return ResolvedInput(uri=input_.uri, digest=input_.digest, **access_of(input_))

    def result(self, step: str) -> StageResult | None:
        """What a planned step left, if it is done."""
        return next((s.result for s in self.stages if s.step == step), None)

    @staticmethod
    def _output(stage: Stage) -> ResolvedInput | None:
        if stage.result is None or stage.output is None:
            return None
        place = stage.output
        return ResolvedInput(
            uri=stage.result.uri, digest=stage.result.digest, endpoint=place.endpoint, region=place.region,
            secret_ref=place.secret_ref,
        )  # fmt: skip


_VERBS: dict[StageKind, Any] = {
    "inspect": "inspect",
    "synthesize": "synthesize",
    "tokenizer": "prepare",
    "pack": "prepare",
    "train": "train",
    "evaluate": "evaluate",
    "report": "finalize",
}


def access_of(place: Access) -> dict[str, Any]:
    """Only the fields that say how a location is reached."""
    return {"endpoint": place.endpoint, "region": place.region, "secret_ref": place.secret_ref}


def foreign_ref(field_name: str, name: str, *, fix: str) -> ConfigError:
    """The error for a ref to an object outside the plan, which only a cluster can look up."""
    return ConfigError(
        "refers to another object, which only a cluster can look up",
        field=field_name,
        value=name,
        fix=f"{fix}, or apply the file to a cluster",
    )
