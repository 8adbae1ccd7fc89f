"""The benchmarks are scripts beside each other; their tests import them as they import each other."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tools")]
