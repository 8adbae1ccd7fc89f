from __future__ import annotations

import subprocess
import sys

LIGHT = ("metrics", "tasks", "scores", "table", "pair_quality", "verdict", "report", "worker", "finish")


def test_what_the_terminal_and_the_finishing_tasks_need_loads_no_torch() -> None:
    program = "import sys\n" + "".join(f"import instructpt.evaluation.{name}\n" for name in LIGHT)
    program += "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
