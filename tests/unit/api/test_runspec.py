"""What names a stage's work: the same through every version that leaves it alone."""

from __future__ import annotations

import hashlib

import rendering

from instructpt.api.runspec import RunSpec, TrainRun, hash_of


class LaterTrainRun(TrainRun):
    """As a later version has it: with a field more."""

    label_smoothing: float = 0.0


def train_spec(**spec: object) -> RunSpec:
    return next(s for s, _ in rendering.tasks(rendering.training(**spec)) if s.kind == "train").runspec  # type: ignore[return-value]


def later(spec: RunSpec, **fields: object) -> RunSpec:
    assert spec.train is not None
    section = {name: getattr(spec.train, name) for name in TrainRun.model_fields}
    return spec.model_copy(update={"train": LaterTrainRun(**section, **fields)})


def test_r22_a_field_that_a_later_version_adds_makes_no_other_work() -> None:
    spec = train_spec()
    assert later(spec).work_key() == spec.work_key()
    assert later(spec, label_smoothing=0.1).work_key() != spec.work_key()


def test_what_is_computed_makes_other_work_and_how_it_is_run_does_not() -> None:
    spec = train_spec()
    assert train_spec(tokens=123_456).work_key() != spec.work_key()
    assert train_spec(seed=7).work_key() != spec.work_key()
    assert train_spec(checkpoint={"everySteps": 3}).work_key() == spec.work_key()
    assert spec.model_copy(update={"code_version": "9"}).work_key() != spec.work_key()


def test_a_runspec_is_known_by_its_bytes() -> None:
    spec = train_spec()
    data = spec.to_json().encode()
    assert spec.hash == hash_of(data) == hashlib.sha256(data).hexdigest()[:16]
    assert RunSpec.model_validate_json(data) == spec
