from __future__ import annotations

import bench_prep
import prep_text
from bench_prep import jobs, ratios


def run(arm: str, seconds: float = 1.0, *, repetition: int = 0, **more: object) -> dict[str, object]:
    return {
        "arm": arm,
        "shots": 0,
        "tokenizer": "byte-level",
        "repetition": repetition,
        "seconds": seconds,
        "cpu_seconds": seconds,
        **more,
    }


def test_the_headline_names_are_those_of_the_performance_page():
    counts = {"dropped_tokens": 0, "unequal_texts": 0, "undecoded_texts": 0, "split_chains": 0}
    runs = [run("ours", 2.0, shots=1, bytes=100, fill=0.9), run("hf_trl", 20.0, shots=1, dropped_tokens=1, tokens=10)]
    runs += [
        run("pack", documents=1000, assign_seconds=0.5, fill=0.9996),
        run("trl", documents=10, one_batch_seconds=2),
    ]
    runs += [run("load", 0.5), run("check", shots=1, **counts)]
    runs[3]["fill"] = 0.99
    found = ratios(runs).medians
    assert found["ours_over_hf_trl"] == 10.0
    assert found["ours_over_hf_trl_without_load"] == rounded(20.0 / 1.5)
    assert found["packer_over_trl"] == 100.0
    assert found["packer_assign_over_trl"] == 200.0
    assert found["packer_over_trl_one_batch"] == 200.0
    assert found["fill"] == 0.9996
    assert found["dropped_tokens"] == 0
    assert found["hf_trl_dropped_share_m1"] == 0.1
    assert "packer_over_seqpacker" not in found
    assert "ours_over_hf_trl_m2" not in found


def rounded(value: float) -> float:
    return bench_prep.summarize({"x": [value]}).medians["x"]


def test_texts_are_checked_once_and_every_number_of_shots_is_compared(tmp_path):
    first, second = (list(jobs(tmp_path, 1000, 1.0, check=check)) for check in (True, False))
    assert sum(job.arm == "check" for job in first) == len(prep_text.SHOTS)
    assert not any(job.arm == "check" for job in second)
    for arm in ("ours", "hf_trl"):
        assert [job.shots for job in second if job.arm == arm] == list(prep_text.SHOTS)


def test_no_piece_of_text_comes_twice(tmp_path, monkeypatch):
    body = "def f():\n    " + repr("A documentation string that is long enough to be taken. " * 8)
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(body + f"\n\n\nx = {name!r}\n")
    monkeypatch.setattr(prep_text.sysconfig, "get_path", lambda _: str(tmp_path))
    found = list(prep_text.documents(1 << 20))
    assert [kind for kind, _ in found] == ["docstring", "source", "source"]
    assert len({text for _, text in found}) == 3
