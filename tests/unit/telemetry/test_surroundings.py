from __future__ import annotations

import os
import pwd
import tempfile

import pytest

from instructpt.telemetry import surroundings
from instructpt.telemetry.surroundings import cores, settle


def test_what_is_set_stays(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    given = {"HOME": str(home), "INSTRUCTPT_THREADS": "3", "OMP_NUM_THREADS": "2", "VLLM_NO_USAGE_STATS": "0"}
    found = dict(given)
    settle(tmp_path / "scratch", found)
    assert {k: found[k] for k in given} == given
    assert "HF_HOME" not in found  # the user's cache of models stays in use
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("home", [None, "/", "/no/such/folder"])
def test_a_home_that_cannot_be_written_moves_to_the_scratch_folder(tmp_path, home):
    found = {} if home is None else {"HOME": home}
    settle(tmp_path, found)
    assert found["HOME"] == str(tmp_path / "home")
    moved = {k: v for k, v in found.items() if v.startswith(str(tmp_path))}
    assert set(moved) >= {"HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "MPLCONFIGDIR"}


def test_temporary_files_move_only_where_there_is_no_place_for_them(tmp_path, monkeypatch):
    found: dict[str, str] = {"HOME": str(tmp_path)}
    settle(tmp_path, found)
    assert "TMPDIR" not in found
    monkeypatch.setattr(surroundings, "_writable", lambda folder: str(folder).startswith(str(tmp_path)))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    settle(tmp_path, found)
    assert found["TMPDIR"] == str(tmp_path / "tmp")
    assert (tmp_path / "tmp").is_dir()
    assert tempfile.tempdir is None


def test_a_uid_without_a_name_gets_one(tmp_path, monkeypatch):
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    found = {"HOME": str(tmp_path)}
    settle(tmp_path, found)
    assert (found["USER"], found["LOGNAME"]) == ("instructpt", "instructpt")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_threads_are_those_of_the_containers_limit(tmp_path, monkeypatch, files, limit):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == (limit or 64)
