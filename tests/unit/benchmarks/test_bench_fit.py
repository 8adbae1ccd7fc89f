from __future__ import annotations

import bench_fit
import benchmark_docs


def test_every_preset_is_tried_at_every_stage():
    tried = {(case["preset"], case["zero_stage"]) for case in bench_fit.cases(list(bench_fit.SIZES))}
    assert len(tried) == 9
    assert {stage for _, stage in tried} == {1, 2, 3}


def test_the_lowest_and_the_highest_ratio_stand_beside_their_goals():
    run = {"preset": "tiny", "repetition": 0, "parameters": 10**6, "micro_batch_rows": 4, "sequence_length": 1024}
    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "logits", "overhead", "total")
    run |= {f"predicted_{part}": 10**7 for part in parts} | {"measured_total": 2 * 10**7}
    runs = [{**run, "zero_stage": 1, "ratio": 0.9}, {**run, "zero_stage": 2, "ratio": 1.3}]
    found = bench_fit.ratios(runs)
    assert (found.medians["lowest"], found.medians["highest"]) == (0.9, 1.3)
    environment = {"cpu": "c", "cpus": 2, "python": "3", "versions": {}}
    environment |= {"load_average_before": None, "load_average_after": None}
    text = benchmark_docs.fit_table(
        {"ratios": found.medians, "runs": runs, "environment": environment, "command": "x", "commit": "y"}
    )
    assert "| tiny | 1.0M | 4 x 1024 | 2 |" in text
    assert "lowest 0.90 (≥ 0.85: met), highest 1.30 (≤ 1.2: **missed**)" in text
