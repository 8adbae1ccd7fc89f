"""Fixtures of the chart's tests."""

from __future__ import annotations

from pathlib import Path

import charts
import pytest


@pytest.fixture(scope="session")
def helm() -> Path:
    """A real helm."""
    return charts.helm_or_skip()


@pytest.fixture(scope="session")
def render(helm: Path) -> charts.Render:
    """Renders the chart."""
    return charts.Render(helm)
