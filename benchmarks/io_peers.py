"""Peers that fetch objects from S3, each by its own asynchronous client; runs in the environment of the peers.

One line of JSON in (endpoint, bucket, keys, requests at once), one out (seconds, objects, bytes). The client has
answered once before the clock starts. Nothing is decoded: a peer's work ends with the bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

Get = Callable[[str], Awaitable[int]]


async def run_obstore(job: dict[str, Any]) -> dict[str, Any]:
    """obstore: a Rust client."""
    from obstore.store import S3Store

    store = S3Store(
        job["bucket"],
        endpoint=job["endpoint"],
        region="us-east-1",
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )

    async def get(key: str) -> int:
        answer = await store.get_async(key)
        return len(await answer.bytes_async())

    return await fetch_all(job, get)


async def run_aioboto3(job: dict[str, Any]) -> dict[str, Any]:
    """aioboto3: boto3 over aiohttp."""
    import aioboto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, max_pool_connections=job["requests"])
    client_of = aioboto3.Session().client
    async with client_of("s3", endpoint_url=job["endpoint"], region_name="us-east-1", config=config) as client:

        async def get(key: str) -> int:
            answer = await client.get_object(Bucket=job["bucket"], Key=key)
            async with answer["Body"] as body:
                return len(await body.read())

        return await fetch_all(job, get)


async def run_fsspec(job: dict[str, Any]) -> dict[str, Any]:
    """The s3fs of fsspec."""
    import s3fs

    files = s3fs.S3FileSystem(
        asynchronous=True,
        endpoint_url=job["endpoint"],
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={"max_pool_connections": job["requests"]},
    )
    await files.set_session()

    async def get(key: str) -> int:
        return len(await files._cat_file(f"{job['bucket']}/{key}"))

    return await fetch_all(job, get)


async def fetch_all(job: dict[str, Any], get: Get) -> dict[str, Any]:
    """Fetch every key with so many requests at once."""
    await get(job["keys"][0])
    pending = iter(job["keys"])
    total = 0

    async def work_off() -> None:
        nonlocal total
        for key in pending:
            size = await get(key)
            total += size

    begun = time.perf_counter()
    await asyncio.gather(*(work_off() for _ in range(job["requests"])))
    return {"seconds": time.perf_counter() - begun, "objects": len(job["keys"]), "bytes": total}


PEERS = {"obstore": run_obstore, "aioboto3": run_aioboto3, "fsspec": run_fsspec}

if __name__ == "__main__":
    work: dict[str, Any] = json.loads(sys.stdin.readline())
    print(json.dumps(asyncio.run(PEERS[work["arm"]](work))))
