"""A tiny synthesizer that was really tuned, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import reader_model
import synthesis_support as support


@pytest.fixture(scope="session")
def synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 100 K-parameter Llama that answers every document with two pairs."""
    pytest.importorskip("torch")
    return support.make_model(tmp_path_factory.mktemp("synthesizer"), steps=400)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of the same size that answers with the word its document holds."""
    pytest.importorskip("torch")
    return reader_model.make_reader(tmp_path_factory.mktemp("reader"))
