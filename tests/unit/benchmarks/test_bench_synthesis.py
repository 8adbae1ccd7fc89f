from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import bench_synthesis
import grouped
import peers
import pytest
import synthesis_arms
import synthesis_fixture
import synthesis_ratios
import synthesis_runs
from environment import environment
from prefixes import Request, attainable, tally


def request(prompt: list[int], completion: list[int], cached: int = 0) -> Request:
    return Request(prompt=prompt, completion=completion, cached=cached)


def test_a_prompt_that_goes_on_from_an_earlier_one_could_be_found_up_to_the_last_whole_block():
    first = request(list(range(10)), [100, 101, 102, 103])
    second = request([*range(10), 100, 101, 102, 103, 50, 51], [1])
    # 13 ids have a state after the first request (its last one was never computed): three blocks of 4.
    assert attainable([first, second], 4) == 12
    assert attainable([second, first], 4) == 8  # ten ids, of which one is computed anew
    assert attainable([first], 4) == 0


def test_equal_prompts_leave_a_token_to_compute():
    assert attainable([request(list(range(8)), [9]), request(list(range(8)), [9])], 4) == 4


def test_a_block_counts_only_behind_the_blocks_that_stood_before_it():
    first, other = request([1, 2, 3, 4, 5, 6, 7, 8], [9]), request([0, 0, 0, 0, 5, 6, 7, 8, 1], [9])
    assert attainable([first, other], 4) == 0


def test_a_tally_counts_tokens_in_and_out():
    found = tally([request([1, 2, 3, 4, 5], [6, 7], cached=4), request([1, 2, 3, 4, 9], [6])], 4)
    assert found == {
        "requests": 2,
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "cached_tokens": 4,
        "attainable_tokens": 4,
    }


def run(group: str, arm: str, seconds: float, repetition: int = 0, **more: object) -> dict[str, object]:
    return {"group": group, "arm": arm, "seconds": seconds, "repetition": repetition, **more}


def test_the_engine_is_compared_by_tokens_a_second():
    runs = [
        run("engine", "raw", 10.0, completion_tokens=1000),
        run("engine", "ours", 10.0, completion_tokens=980),
        run("engine", "datatrove", 20.0, completion_tokens=980),
    ]
    found = synthesis_ratios.ratios(runs).medians
    assert found == {"ours_over_raw": 0.98, "ours_over_datatrove": 2.0, "datatrove_over_raw": 0.49}


def test_the_reference_is_compared_by_wall_time_for_each_m_and_hits_by_what_could_be_hit():
    runs = []
    for shots, seconds in ((2, 12.0), (3, 15.0), (5, 20.0)):
        runs.append(run("chains", "reference", seconds, shots=shots, cached_tokens=10, attainable_tokens=100))
        runs.append(run("chains", "ours", 10.0, shots=shots, cached_tokens=96, attainable_tokens=100))
    found = synthesis_ratios.ratios(runs).medians
    assert [found[f"ours_over_reference_m{shots}"] for shots in (2, 3, 5)] == [1.2, 1.5, 2.0]
    assert found["prefix_hits_over_attainable"] == 0.96
    assert found["reference_prefix_hits_m5"] == 0.1


def test_goodput_counts_the_time_in_which_an_engine_is_up_and_each_document_once():
    runs = [
        run("chaos", "undisturbed", 100.0, documents=1000),
        run("chaos", "killed", 125.0, documents=1000, kills=2, start_seconds=25.0, lost=0, doubled=0),
    ]
    found = synthesis_ratios.ratios(runs).medians
    assert found["goodput_under_kills"] == 0.8
    assert (found["kills"], found["lost_documents"], found["doubled_documents"]) == (2.0, 0.0, 0.0)
    # A fifth of 62.5 s is lost with a kill, and a start: 12.5 and 25 s of ten minutes.
    assert found["wall_clock_at_a_kill_in_10_minutes"] == pytest.approx((600 - 12.5) / 625, rel=1e-3)


def test_memory_is_that_of_many_documents_over_that_of_few():
    runs = [
        {"group": "memory", "arm": "mined", "documents": 10_000, "peak_mb": 100.0, "repetition": 0},
        {"group": "memory", "arm": "mined", "documents": 1_000_000, "peak_mb": 110.0, "repetition": 0},
        {"group": "memory", "arm": "vllm", "documents": 1_000, "peak_mb": 100.0, "repetition": 0},
    ]
    assert synthesis_ratios.ratios(runs).medians == {"memory_mined_many_over_few": 1.1}


def test_groups_that_are_not_measured_anew_keep_their_runs(tmp_path):
    path = tmp_path / "synthesis.json"
    kept = {"group": "engine", "arm": "raw", "repetition": 1}
    around = {"engine": [{"commit": "a"}], "chaos": [{}]}
    path.write_text(json.dumps({"runs": [kept, {"group": "chaos"}], "environment": {"groups": around}}))
    runs, groups = grouped.earlier(path, ["chaos", "chains"])
    assert (runs, groups) == ([kept], {"engine": [{"commit": "a"}]})
    assert grouped.next_repetition(runs, "engine") == 2
    assert grouped.next_repetition(runs, "chains") == 0
    assert grouped.earlier(tmp_path / "none.json", ["chaos"]) == ([], {})


def test_a_result_says_of_every_group_what_it_was_run_with(tmp_path):
    path = tmp_path / "synthesis.json"
    around = {
        "load_average_before": [1.0],
        "load_average_after": [2.0],
        "peers": {"datatrove": "0.10.1"},
        "commit": "a",
        "command": "first",
    }
    chains = {**around, "commit": "b", "command": "second", "peers": {}, "load_average_after": [3.0]}
    groups = {"engine": [around, around], "chains": [chains]}
    runs = [run("engine", "raw", 10.0, completion_tokens=1000), run("engine", "ours", 10.0, completion_tokens=980)]
    bench_synthesis.write(path, runs, groups)
    result = json.loads(path.read_text())
    assert set(result) == {"ratios", "runs", "spread", "environment", "command", "commit"}
    assert result["ratios"] == {"ours_over_raw": 0.98}
    assert (result["commit"], result["environment"]["peers"]) == ("b", {"datatrove": "0.10.1"})
    assert result["command"] == "first; second"
    assert result["environment"]["load_average_after"] == [3.0]
    assert result["environment"]["groups"] == groups


def test_an_unknown_group_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench_synthesis.parse(["--groups", "engine,chain"])
    assert "no group chain; there are engine, chains, chaos, memory" in capsys.readouterr().err


def test_chains_without_the_reference_say_what_to_set(monkeypatch):
    monkeypatch.delenv("INSTRUCTPT_REFERENCE", raising=False)
    with pytest.raises(SystemExit, match="INSTRUCTPT_REFERENCE"):
        bench_synthesis.main(["--groups", "chains"])


def test_the_pool_is_smaller_than_a_round():
    """In round order the cache must be overrun before the next round."""
    setting = synthesis_runs.CHAINS
    pool = setting.block_size * setting.blocks
    shortest = 6 * setting.facts[0]  # no sentence has fewer tokens
    written = 30  # tokens of the shortest completion
    for shots in bench_synthesis.SHOTS:
        assert synthesis_runs.PER_SHARD % shots == 0
        assert setting.documents // shots * (shortest + written) > 0.7 * pool
    assert setting.lanes == 2 * setting.sequences


def test_documents_and_their_pairs_are_drawn_from_the_seed():
    made = list(synthesis_fixture.documents(20, (6, 20), seed=1))
    assert made == list(synthesis_fixture.documents(20, (6, 20), seed=1))
    assert made != list(synthesis_fixture.documents(20, (6, 20), seed=2))
    for text, pairs in made:
        assert 6 <= text.count(".") <= 20
        assert 2 <= len(pairs) <= 4
        assert all(answer in text for _, answer in pairs)


def test_another_recipe_is_another_model():
    recipe = synthesis_fixture.Recipe()
    assert recipe.key == synthesis_fixture.Recipe().key
    assert recipe.key != synthesis_fixture.Recipe(tokens=1).key


@dataclass
class Asked:
    prompt_ids: tuple[int, ...]


@dataclass
class Given:
    token_ids: tuple[int, ...]
    cached_tokens: int


def test_noting_changes_nothing_of_what_an_engine_does(tmp_path: Path):
    class Engine:
        async def __aenter__(self) -> Engine:
            return self

        async def generate(self, request: Asked) -> Given:
            return Given((*request.prompt_ids, 9), 4)

    record: list[Request] = []
    times = synthesis_arms.note_of(Engine, record, str(tmp_path / "ready"))

    async def main() -> Given:
        engine = await Engine().__aenter__()
        return await engine.generate(Asked((1, 2)))

    assert asyncio.run(main()) == Given((1, 2, 9), 4)
    assert record == [request((1, 2), (1, 2, 9), 4)]
    assert float((tmp_path / "ready").read_text()) == times["ready"]


def test_the_result_of_a_child_is_found_among_what_its_libraries_print():
    assert synthesis_runs.result_in('warning\nRESULT {"seconds": 1.5}\nengine is shutting down\n') == {"seconds": 1.5}
    with pytest.raises(ValueError, match="no result"):
        synthesis_runs.result_in("nothing")


def test_a_run_cut_short_has_written_what_it_found(tmp_path, capsys):
    written: list[int] = []
    runs, groups = [{"group": "engine", "repetition": 0}], {}

    def arms(repetition: int):
        yield {"arm": "raw", "repetition": repetition}
        raise SystemExit("an arm failed")

    with pytest.raises(SystemExit):
        grouped.run_group("engine", arms, 2, environment(()), runs, groups, lambda: written.append(len(runs)))
    assert runs[1:] == [{"group": "engine", "arm": "raw", "repetition": 1}]
    assert written == [2]
    assert "load_average_after" in groups["engine"][0]
    assert "arm=raw" in capsys.readouterr().out


def test_an_arm_of_a_peer_may_fail_and_one_of_ours_may_not(capsys):
    broken = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    assert peers.run_arm("peer", broken, {}, required=False) is None
    assert "arm peer ended with 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no such thing"):
        peers.run_arm("ours", broken, {}, required=True)
    told = [sys.executable, "-c", "import json; print('talk'); print(json.dumps({'was': json.loads(input())}))"]
    assert peers.run_arm("ours", told, {"a": 1}, required=True) == {"was": {"a": 1}}
