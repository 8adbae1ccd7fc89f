from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from instructpt.errors import ConfigError
from instructpt.synthesis.tokenization import check_tuned_for


def exported(folder: Path, **settings: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"kind": "model", "settings": settings, "files": []}))
    return folder


@pytest.mark.parametrize("settings", [{"objective": "SynthesizerTuning"}, {}])
def test_a_synthesizer_for_the_profile_and_one_of_unknown_origin_are_taken(tmp_path, settings, caplog):
    check_tuned_for(exported(tmp_path, **settings), "instruction-synthesizer", model="m")
    assert not caplog.records


def test_a_folder_without_a_manifest_is_taken(tmp_path):
    check_tuned_for(tmp_path, "german", model="m")


@pytest.mark.parametrize(("tuned", "wanted"), [("german", "instruction-synthesizer"), (None, "german")])
def test_one_that_was_tuned_for_another_profile_is_refused_with_both_named(tmp_path, tuned, wanted):
    settings = {"objective": "SynthesizerTuning"} | ({"profile": tuned} if tuned else {})
    with pytest.raises(ConfigError, match=f"was tuned for profile {tuned or 'instruction-synthesizer'}") as refused:
        check_tuned_for(exported(tmp_path, **settings), wanted, model="m")
    assert (refused.value.field, refused.value.value) == ("synthesizer.profile", wanted)


def test_a_model_that_was_trained_for_something_else_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check_tuned_for(exported(tmp_path, objective="Pretraining"), "instruction-synthesizer", model="m")
    [record] = caplog.records
    assert record.objective == "Pretraining"
