from __future__ import annotations

import pytest

from instructpt.api.v1alpha1.trainingjob import Schedule
from instructpt.training.schedule import learning_rate


def rates(steps=100, **fields):
    schedule = Schedule(**fields)
    return [learning_rate(step, steps, 1.0, schedule) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    found = rates(name="constant", warmup_fraction=0.1)
    assert found[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert set(found[10:]) == {1.0}


def test_cosine_falls_to_the_final_fraction():
    found = rates(name="cosine", warmup_fraction=0.1, final_fraction=0.1)
    assert found[-1] == pytest.approx(0.1)
    assert found[54] == pytest.approx(0.55, abs=0.01)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_wsd_stays_then_falls_linearly():
    found = rates(name="wsd", warmup_fraction=0.0, decay_fraction=0.2, final_fraction=0.0)
    assert set(found[:80]) == {1.0}
    assert found[80:] == pytest.approx([(19 - i) / 20 for i in range(20)])


@pytest.mark.parametrize("name", ["cosine", "constant", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_have_positive_rates(name, steps):
    assert all(0 < rate <= 1 for rate in rates(steps=steps, name=name))
