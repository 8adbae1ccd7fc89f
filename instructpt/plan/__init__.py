"""Pure planning: a spec and the results so far -> stages; no I/O, no clock, no randomness."""

from instructpt.plan.model import Plan, Results, Stage, Task, stage_key
from instructpt.plan.planner import plan_resource

__all__ = ["Plan", "Results", "Stage", "Task", "plan_resource", "stage_key"]
