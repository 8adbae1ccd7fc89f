"""A tiny synthesizer that was really tuned, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthesis_support as support


@pytest.fixture(scope="session")
def synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 100 K-parameter Llama that answers every document with two pairs."""
    pytest.importorskip("torch")
    return support.make_model(tmp_path_factory.mktemp("synthesizer"), steps=400)
