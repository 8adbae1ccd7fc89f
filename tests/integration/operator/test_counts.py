"""What two real workers and a real finalize counted is what the operator writes into the status, and it adds up."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import operators
import orjson
import synthesis_support as support
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from simulation import Cluster, Ends, Runs

from instructpt.corpus.manifest import load_manifest
from instructpt.plan.naming import TASK_FINALIZE, TASK_WORK
from instructpt.plan.progress import merge_progress
from instructpt.storage import open_store
from instructpt.synthesis import worker
from instructpt.telemetry.metrics import registry_for
from instructpt_operator.progress import checked

DOCUMENTS = 40
FILTERS = {"minAnswerCharacters": 12, "minGroundedness": 0.9, "maxQuestionCharacters": 90}


def test_status_metrics_and_manifest_say_the_same_and_it_adds_up(tmp_path: Path) -> None:
    corpus = support.make_corpus(tmp_path, support.sentences(DOCUMENTS), per_shard=4)
    settings = {"filters": FILTERS, "convert": 0.8}
    spec = support.make_spec(corpus, tmp_path / "out", parallelism=2, settings=settings)
    contexts = [support.context(tmp_path / name, name) for name in ("w0", "w1")]
    threads = [threading.Thread(target=worker.run, args=(spec, ctx)) for ctx in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = worker.finalize(spec.finalizer(), support.context(tmp_path / "f"))
    counts = load_manifest(open_store(result.uri)).counts
    # What every worker answers the operator, over the wire's own check.
    answers = [checked(orjson.loads(orjson.dumps(ctx.progress.snapshot()))) for ctx in contexts]
    told = merge_progress([dict(answer) for answer in answers if answer is not None])
    assert len([answer for answer in answers if answer is not None]) == 2

    moments: dict[str, Runs | Ends] = {TASK_WORK: Runs(told), TASK_FINALIZE: Ends(result=result.to_wire())}
    cluster = Cluster(script=lambda step, task, attempt: moments[task])
    obj = operators.synthesis("s")
    key = cluster.apply(obj["kind"], "s", obj["spec"])
    cluster.settle(rounds=4)
    live = cluster.status(key)["counts"]
    assert live == {name: counts.get(name, 0) for name in told["counts"]}
    moments[TASK_WORK] = Ends()
    cluster.settle()
    status = cluster.status(key)
    assert status["phase"] == "Complete"
    assert status["counts"] == {**counts, "shards": 10}

    assert counts["documents"] == DOCUMENTS == counts["augmented"] + counts["raw"] + counts["dead_letters"]
    assert counts["raw"] == sum(number for name, number in counts.items() if name.startswith("raw_"))
    dropped = {name: number for name, number in counts.items() if name.startswith("filtered_")}
    assert len(dropped) > 1
    assert counts["parsed_pairs"] == counts["pairs"] + sum(dropped.values())
    assert {*dropped, "raw_not_converted"} <= live.keys()

    scraped: Counter[str] = Counter()
    for ctx in contexts:
        text = generate_latest(registry_for(ctx.progress, "synthesize")).decode()
        for family in text_string_to_metric_families(text):
            if family.type == "counter":
                name = family.name.removeprefix("instructpt_synthesis_")
                scraped[name] += int(next(s.value for s in family.samples if s.name.endswith("_total")))
    assert {name: number for name, number in scraped.items() if number} == {n: c for n, c in live.items() if c}
