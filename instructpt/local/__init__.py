"""The executor for one machine: a plan as subprocesses, state in a run folder."""
