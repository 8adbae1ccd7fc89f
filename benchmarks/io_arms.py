"""Arms of ``bench-io`` that run in the project's environment; each in a process of its own.

One line of JSON in (:class:`Job`), one out: seconds, objects, bytes as stored and, where an arm decodes, documents and
characters. Clients are made and have answered once before the clock starts.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers import run_arm

Found = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an arm fetches.

    Attributes:
        arm: Its name.
        endpoint: URL of the server, or of the proxy before it.
        bucket: The bucket.
        prefix: Of the keys; its objects are the first ``objects`` in order.
        objects: How many.
        requests: At once, where the arm works side by side.
    """

    arm: str
    endpoint: str
    bucket: str
    prefix: str
    objects: int
    requests: int


def client(job: Job) -> Any:
    """A boto3 client as the product's."""
    from instructpt.storage.credentials import Target, client_for

    return client_for(Target(endpoint=job.endpoint))


def keys_of(job: Job) -> list[str]:
    """The keys, listed."""
    pages = client(job).get_paginator("list_objects_v2").paginate(Bucket=job.bucket, Prefix=job.prefix)
    found = itertools.islice((item["Key"] for page in pages for item in page.get("Contents", ())), job.objects)
    return list(found)


def run_curl(job: Job) -> Found:
    """Limit of the transfer: one curl process over signed URLs; the bodies go nowhere."""
    import boto3
    from botocore.config import Config

    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    s3 = boto3.client("s3", endpoint_url=job.endpoint, region_name="us-east-1", config=config)
    lines = []
    for key in keys_of(job):
        url = s3.generate_presigned_url("get_object", Params={"Bucket": job.bucket, "Key": key}, ExpiresIn=3600)
        lines += [f'url = "{url}"', f'output = "{os.devnull}"', "write-out = " + r'"%{http_code} %{size_download}\n"']
    with tempfile.NamedTemporaryFile("w", suffix=".curl") as urls:
        urls.write("\n".join(lines))
        urls.flush()
        command = ["curl", "--silent", "--show-error", "--parallel", "--parallel-immediate"]
        command += ["--parallel-max", str(job.requests), "--config", urls.name]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begun
    answers = [line.split() for line in done.stdout.splitlines()]
    assert {code for code, _ in answers} == {"200"}, done.stdout[:200]
    return {"seconds": seconds, "objects": len(answers), "bytes": sum(int(size) for _, size in answers)}


def run_decode(job: Job) -> Found:
    """Limit of the decoder: zstandard and orjson over bodies in memory, one thread, nothing of ours."""
    import orjson
    import zstandard

    bodies: dict[str, bytes] = {}
    keys, s3 = keys_of(job), client(job)
    held = {}
    for key in keys:
        tag = s3.head_object(Bucket=job.bucket, Key=key)["ETag"]
        if tag not in bodies:  # equal objects are held once
            bodies[tag] = s3.get_object(Bucket=job.bucket, Key=key)["Body"].read()
        held[key] = bodies[tag]
    documents = characters = 0
    begun = time.perf_counter()
    for key in keys:
        rest = b""
        stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(held[key]), read_across_frames=True)
        while data := stream.read(1 << 20):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                characters += len(orjson.loads(line)["text"])
            documents += len(lines)
    seconds = time.perf_counter() - begun
    size = sum(len(body) for body in held.values())
    return {
        "seconds": seconds,
        "objects": len(keys),
        "bytes": size,
        "documents": documents,
        "characters": characters,
    }


def run_boto3(job: Job) -> Found:
    """Peer: ``download_fileobj`` of one object after the other, with boto3's own settings."""
    s3, keys = client(job), keys_of(job)
    total = 0
    begun = time.perf_counter()
    for key in keys:
        sink = io.BytesIO()
        s3.download_fileobj(job.bucket, key, sink)
        total += sink.getbuffer().nbytes  # parts come in any order: where it stands says nothing
    return {"seconds": time.perf_counter() - begun, "objects": len(keys), "bytes": total}


def run_ours(job: Job) -> Found:
    """The product's reader, as the inspection of a corpus uses it: GET -> decode -> documents."""
    from instructpt.api.base import Access
    from instructpt.corpus.document import Document
    from instructpt.corpus.readers import read_objects
    from instructpt.corpus.records import ReadOptions
    from instructpt.corpus.sources import resolve_files

    uri = f"s3://{job.bucket}/{job.prefix}"
    source = resolve_files(uri, Access(endpoint=job.endpoint), "auto", field="benchmark")
    objects = source.objects[: job.objects]
    options = ReadOptions(text_field="text", max_document_bytes=10 << 20)
    assert source.store is not None
    documents = characters = 0
    begun = time.perf_counter()
    for item in read_objects(source.store, objects, options):
        assert isinstance(item.result, Document), item.result
        documents += 1
        characters += len(item.result.text)
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "objects": len(objects),
        "bytes": sum(found.size for found in objects),
        "documents": documents,
        "characters": characters,
    }


ARMS: dict[str, Callable[[Job], Found]] = {
    "curl": run_curl,
    "decode": run_decode,
    "boto3": run_boto3,
    "ours": run_ours,
}
PEER_ARMS = ("obstore", "aioboto3", "fsspec")


def measure(job: Job, peer: Path | None) -> Found | None:
    """One run of one arm, in a process of its own; credentials come from the environment. None of a peer that failed.

    Raises:
        SystemExit: An arm of ours failed; with what it said.
    """
    if job.arm in ARMS:
        command, given = [sys.executable, __file__], asdict(job)
    else:
        command = [str(peer), str(Path(__file__).with_name("io_peers.py"))]
        given = {**asdict(job), "keys": keys_of(job)}
    return run_arm(job.arm, command, given, required=job.arm in ARMS)


if __name__ == "__main__":
    work = Job(**json.loads(sys.stdin.readline()))
    print(json.dumps(ARMS[work.arm](work)))
