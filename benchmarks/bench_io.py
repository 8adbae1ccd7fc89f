"""Reading a corpus from S3 beside curl, boto3 and other clients; resuming a training at any step.

A real S3 server on loopback, and again behind a delay of 20 ms in each direction, over 64 objects of 16 MiB
(``jsonl.zst``) and 20,000 of 8 KiB (``txt``). Arms run one after the other in every repetition, each in a process of
its own. Behind the delay, and by arms that are slow or alike, fewer of them are fetched: each run says how many, and
ratios are of rates.

    python benchmarks/bench_io.py --output benchmarks/results/io.json
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import io_resume
import orjson
import peers
import zstandard
from delay import delayed
from environment import command_line, commit, ended, environment
from io_arms import PEER_ARMS, Job, measure
from read_corpus import texts
from servers import SERVERS, describe, s3_server
from summary import Run, Summary, figures, paired, summarize, write_result

LARGE_BYTES, SMALL_BYTES = 16 << 20, 8 << 10
DELAY_SECONDS = 0.02
REQUESTS = 32
DISTINCT = 4
PACKAGES = ("instructpt", "boto3", "botocore", "orjson", "pyarrow", "zstandard", "numpy")
STEPS = (1_000, 1_000_000)
REPLAY_STEP = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Objects of one size, at one distance, and the arms that read them."""

    name: str
    delayed: bool
    objects: dict[str, int]


def cases(scale: float) -> list[Case]:
    """The four cases, or their small likeness: every arm with the number of objects it reads."""
    large, small = max(4, round(64 * scale)), max(100, round(20_000 * scale))
    others = dict.fromkeys(PEER_ARMS, small // 5)
    return [
        Case(
            name="large",
            delayed=False,
            objects={**dict.fromkeys(("curl", "ours", "boto3", *PEER_ARMS), large), "decode": large // 4},
        ),
        Case(
            name="small",
            delayed=False,
            objects={"curl": small, "ours": small, **others, "obstore": small, "boto3": small // 10},
        ),
        Case(name="large", delayed=True, objects=dict.fromkeys(("curl", "ours", "boto3"), large // 4)),
        Case(
            name="small",
            delayed=True,
            objects={**dict.fromkeys(("curl", "ours", *PEER_ARMS), small // 10), "boto3": small // 100},
        ),
    ]


def large_bodies(count: int) -> list[bytes]:
    """``jsonl.zst`` bodies of at least 16 MiB, drawn from a seed."""
    bodies = []
    lines = (orjson.dumps({"id": n, "text": t}, option=orjson.OPT_APPEND_NEWLINE) for n, t in enumerate(texts(1 << 62)))
    for _ in range(count):
        compressor, parts, size = zstandard.ZstdCompressor(level=3).compressobj(), [], 0
        while size < LARGE_BYTES:
            parts.append(compressor.compress(next(lines)))
            size += len(parts[-1])
        bodies.append(b"".join([*parts, compressor.flush()]))
    return bodies


def small_bodies() -> Iterator[bytes]:
    """Texts of 8 KiB, drawn from a seed."""
    rest = b""
    for text in texts(1 << 62):
        rest += text.encode() + b"\n"
        while len(rest) >= SMALL_BYTES:
            piece = rest[:SMALL_BYTES].decode(errors="ignore").encode()
            yield piece + b"." * (SMALL_BYTES - len(piece))
            rest = rest[SMALL_BYTES:].lstrip(bytes(range(0x80, 0xC0)))


def upload(server: Any, scale: float) -> None:
    """The objects of all cases."""
    from instructpt.api.base import Access
    from instructpt.storage import map_ahead, open_store

    store = open_store(f"s3://{server.bucket}", access=Access(endpoint=server.endpoint))
    put = functools.partial(_put, store)
    wanted = Counter[str]()
    for case in cases(scale):
        wanted[case.name] = max(wanted[case.name], *case.objects.values())
    bodies = large_bodies(min(DISTINCT, wanted["large"]))
    large = ((f"large/{n:05d}.jsonl.zst", bodies[n % len(bodies)]) for n in range(wanted["large"]))
    small = ((f"small/{n:05d}.txt", body) for n, body in zip(range(wanted["small"]), small_bodies(), strict=False))
    for objects in (large, small):
        for _ in map_ahead(store, put, objects):
            pass


def _put(store: Any, item: tuple[str, bytes]) -> None:
    store.put(*item)


def run_cases(server: Any, scale: float, repetitions: int, peer: Path | None) -> Iterator[dict[str, Any]]:
    """Every arm of every case, interleaved; one run at a time."""
    with delayed(server.endpoint, DELAY_SECONDS) as far:
        for repetition in range(repetitions):
            for case in cases(scale):
                for arm, objects in case.objects.items():
                    if arm in PEER_ARMS and peer is None:
                        continue
                    job = Job(
                        arm=arm,
                        endpoint=far if case.delayed else server.endpoint,
                        bucket=server.bucket,
                        prefix=f"{case.name}/",
                        objects=objects,
                        requests=REQUESTS,
                    )
                    found = measure(job, peer)
                    if found is None:
                        continue
                    assert found["objects"] == objects, (arm, found)
                    yield {"case": case.name, "delayed": case.delayed, "arm": arm, "repetition": repetition, **found}


def run_resumes(folder: Path, repetitions: int) -> Iterator[dict[str, Any]]:
    """Looks at the steps, interleaved, and the orders once."""
    for repetition in range(repetitions):
        for step in STEPS:
            found = io_resume.look(folder, step, replay=False)
            yield {"case": "resume", "arm": "ours", "step": step, "repetition": repetition, **found}
        found = io_resume.look(folder, REPLAY_STEP, replay=True)
        yield {"case": "resume", "arm": "replay", "step": REPLAY_STEP, "repetition": repetition, **found}
    steps = [0, 1, STEPS[0], STEPS[1], io_resume.STEPS - 1]
    for size, digest in io_resume.orders(*io_resume.opened(folder), steps).items():
        yield {"case": "order", "arm": "ours", "world_size": size, "steps": steps, "digest": digest, "repetition": 0}


def bytes_per_second(run: Run) -> float:
    """As stored."""
    return float(run["bytes"]) / float(run["seconds"])


def objects_per_second(run: Run) -> float:
    """Of a run."""
    return float(run["objects"]) / float(run["seconds"])


def ratios(runs: Sequence[Run]) -> Summary:
    """The published figures. A limit is the slower of transfer and decoder, in each repetition."""

    def of(case: str, arm: str, far: bool) -> dict[int, float]:
        rate = bytes_per_second if case == "large" else objects_per_second
        return figures(runs, rate, case=case, arm=arm, delayed=far)

    named: dict[str, list[float]] = {}
    decode = of("large", "decode", False)
    for far, ending in ((False, ""), (True, "_delayed")):
        curl = of("large", "curl", far)
        limit = {n: min(curl[n], decode[n]) for n in curl.keys() & decode.keys()}
        named[f"ours_over_limit{ending}"] = paired(of("large", "ours", far), limit)
        named[f"ours_over_boto3_large{ending}"] = paired(of("large", "ours", far), of("large", "boto3", far))
        for arm in ("curl", "boto3", *PEER_ARMS):
            named[f"ours_over_{arm}_small{ending}"] = paired(of("small", "ours", far), of("small", arm, far))
        for arm in PEER_ARMS:
            named[f"{arm}_over_boto3_small{ending}"] = paired(of("small", arm, far), of("small", "boto3", far))
    near, late = (figures(runs, _seconds, case="resume", arm="ours", step=step) for step in STEPS)
    named["resume_late_over_early"] = paired(late, near)
    named["resume_seconds_late"] = list(late.values())
    named["resume_replay_over_ours"] = paired(figures(runs, _seconds, case="resume", arm="replay"), near)
    digests = [run["digest"] for run in runs if run["case"] == "order"]
    if digests:
        named["orders_over_world_sizes"] = [float(len(set(digests)))]
    return summarize(named)


def _seconds(run: Run) -> float:
    return float(run["seconds"])


def main(arguments: list[str]) -> int:
    """Run the benchmark and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the objects, such as 0.01 for a trial")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--server", choices=SERVERS, default="versitygw")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--folder", type=Path, help="where the server keeps its objects (default: the system's)")
    options = parser.parse_args(arguments)
    peer = peers.interpreter("io")
    curl = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    more = {
        "server": describe(options.server),
        "curl": curl,
        "delay_seconds_each_direction": DELAY_SECONDS,
        "requests_at_once": REQUESTS,
        "peers": {} if peer is None else peers.peer_versions(peer, ("obstore", "aioboto3", "s3fs")),
    }
    around = environment(PACKAGES, **more)
    runs: list[dict[str, Any]] = []

    def write() -> Summary:
        found = ratios(runs)
        if options.output is not None:
            write_result(
                options.output,
                runs=runs,
                summary=found,
                environment=ended(around),
                command=command_line(),
                commit=commit(),
            )
        return found

    with tempfile.TemporaryDirectory(dir=options.folder) as name, s3_server(options.server, Path(name)) as server:
        upload(server, options.scale)
        io_resume.write_tokens(Path(name))
        runs += run_resumes(Path(name), options.repetitions)
        for run in run_cases(server, options.scale, options.repetitions, peer):
            if run["repetition"] > runs[-1]["repetition"]:
                write()  # a run that is ended early leaves its whole repetitions
            runs.append(run)
            print(*(f"{key}={value}" for key, value in run.items()), flush=True)
    found = write()
    for title, value in found.medians.items():
        print(f"{title:<34} {value:>10}  {found.spread[title]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
