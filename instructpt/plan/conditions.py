"""Conditions over time: the whole set on every visit, times that move only on a change, ends that stay."""

from __future__ import annotations

from collections.abc import Sequence

from instructpt.api.base import Condition
from instructpt.api.reasons import Reason

ALWAYS = ("Complete", "Failed", "Running", "Suspended", "Blocked")
"""Types that every object has from the first visit on."""


def merge_conditions(
    judged: Sequence[Condition], before: Sequence[Condition], *, now: str, generation: int | None
) -> tuple[Condition, ...]:
    """What was judged now, laid over what stood there.

    Args:
        judged: Conditions that were judged; types of :data:`ALWAYS` that are missing become False.
        before: Conditions of the status as it is.
        now: RFC 3339; becomes the transition time of those whose status changed.
        generation: Generation of the spec that was judged.

    Returns:
        At most one condition a type. Where Complete or Failed already holds, ``before`` itself: an end stays.
    """
    if has_ended(before):
        return tuple(before)
    fresh = {c.type: c for c in judged}
    told = next((c for c in judged if c.status == "True"), judged[0] if judged else None)
    for type_ in ALWAYS:
        reason = Reason(told.reason) if told else Reason.PENDING
        fresh.setdefault(type_, Condition(type=type_, status="False", reason=reason))
    old = {c.type: c for c in before}
    order = [*ALWAYS, *sorted(t for t in {*fresh, *old} if t not in ALWAYS)]
    return tuple(_merged(fresh.get(t) or old[t], old.get(t), now, generation) for t in order)


def has_ended(conditions: Sequence[Condition]) -> bool:
    """Whether Complete or Failed holds: nothing more will be done."""
    return any(c.type in ("Complete", "Failed") and c.status == "True" for c in conditions)


def _merged(new: Condition, old: Condition | None, now: str, generation: int | None) -> Condition:
    same = old is not None and old.status == new.status and old.last_transition_time is not None
    since = old.last_transition_time if same and old is not None else now
    return new.model_copy(update={"last_transition_time": since, "observed_generation": generation})
