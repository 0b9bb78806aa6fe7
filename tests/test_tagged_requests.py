"""Many clients at once, of two models, with requests of 1 to 300 rows that all differ; some hang up in the middle.

``FASTINFER_TAGGED=1000000`` sends a million; the suite sends some thousands. An answer that is wrong, lost, of another
request or given twice is counted and shown.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_models
import pytest
from conftest import ServerProcess

REQUESTS = int(os.environ.get("FASTINFER_TAGGED", "4000"))
CONNECTIONS = 64
MOST_ROWS = 300
HANGS_UP = 0.01
MODELS = {"floats": ("FP32", "<f4"), "wholes": ("INT64", "<i8")}


def values(tag: int, rows: int, dtype: str) -> np.ndarray:
    """[rows, 2], exact in float32; those of requests that are in flight together differ in every one."""
    base = tag % 16384 * 1024
    return np.arange(base, base + 2 * rows).astype(dtype).reshape(rows, 2)


class Asked:
    """A request's bytes, and whether an answer's are right."""

    def __init__(self, tag: int, source: random.Random) -> None:
        self.tag = tag
        self.model = source.choice(list(MODELS))
        self.rows = source.choice([1, 1, 1, 2, 5, 17, source.randint(1, MOST_ROWS)])
        self.binary = source.random() < 0.7
        datatype, dtype = MODELS[self.model]
        self.x = values(tag, self.rows, dtype)
        entry = {"name": "x", "shape": [self.rows, 2], "datatype": datatype}
        document = {"id": str(tag), "inputs": [entry]}
        blob, extra = b"", ""
        if self.binary:
            blob = self.x.tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            document["parameters"] = {"binary_data_output": True}
        else:
            entry["data"] = self.x.ravel().tolist()
        text = json.dumps(document).encode()
        if self.binary:
            extra = f"Inference-Header-Content-Length: {len(text)}\r\n"
        head = f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: t\r\nContent-Length: {len(text) + len(blob)}\r\n"
        self.message = f"{head}{extra}\r\n".encode() + text + blob

    def fault(self, head: bytes, body: bytes) -> str | None:
        """What is wrong with an answer."""
        if not head.startswith(b"HTTP/1.1 200 "):
            return head.split(b"\r\n")[0].decode()
        found = re.search(rb"(?i)inference-header-content-length: (\d+)", head)
        document = json.loads(body[:int(found[1])] if found else body)
        if document["id"] != str(self.tag):
            return "the answer of another request"
        output = document["outputs"][0]
        if document["model_name"] != self.model or output["shape"] != [self.rows, 2]:
            return "another model or shape"
        if self.binary:
            right = found is not None and body[int(found[1]):] == self.x.tobytes()
        else:
            right = output["data"] == self.x.ravel().tolist()
        return None if right else "wrong values"


async def client(port: int, tags: Callable[[], int | None], source: random.Random, seen: Counter[str]) -> None:
    """One connection after the other, one to three requests in flight on each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    while True:
        asked = []
        for _ in range(source.choice([1, 1, 2, 3])):
            tag = tags()
            if tag is not None:
                asked.append(Asked(tag, source))
        if not asked:
            break
        message = b"".join(each.message for each in asked)
        if source.random() < HANGS_UP:
            writer.write(message[:source.choice([len(message), source.randrange(len(message))])])
            await asyncio.sleep(source.choice([0, 0, 0.002]))
            writer.transport.abort()
            seen["abandoned"] += len(asked)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
            continue
        writer.write(message)
        for each in asked:
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
            except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
                seen["lost"] += 1
                continue
            seen[each.fault(head, body) or "right"] += 1
    # Whatever comes now was not asked for.
    writer.write_eof()
    if await asyncio.wait_for(reader.read(), 60):
        seen["answered twice"] += 1
    writer.close()


async def everybody(port: int) -> Counter[str]:
    counter = itertools.count()
    seen: Counter[str] = Counter()

    def tags() -> int | None:
        tag = next(counter)
        return tag if tag < REQUESTS else None

    await asyncio.gather(*[client(port, tags, random.Random(f"{number} of {REQUESTS}"), seen)
                           for number in range(CONNECTIONS)])
    return seen


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """One model runs on the loop, the other on worker threads; there is room for all, however slow the machine is."""
    room = f"queue_rows = {4 * CONNECTIONS * MOST_ROWS}\n"
    for name, (datatype, _) in MODELS.items():
        onnx_models.identity(tmp_path / "models" / name / "1" / "model.onnx", datatype)
        (tmp_path / "models" / name / "model.toml").write_text(room)
    (tmp_path / "models" / "wholes" / "model.toml").write_text(room + "inline_budget_us = 0\ninstances = 2\n")
    return tmp_path / "models"


@pytest.mark.parametrize("lane", ["fast", "standard"])
def test_no_answer_is_wrong_or_lost_or_given_twice(models: Path, start_server: Callable[..., ServerProcess],
                                                   lane: str) -> None:
    server = start_server(models, *([] if lane == "fast" else ["--no-fast-lane"]))
    seen = asyncio.run(everybody(server.port))
    assert set(seen) == {"right", "abandoned"}, seen
    assert seen["right"] + seen["abandoned"] == REQUESTS
    assert seen["abandoned"] < REQUESTS // 20
    with server.client() as client:
        text = client.get("/metrics").text
    assert re.search(r"^fastinfer_requests_in_flight(\{.*\})? [1-9]", text, re.MULTILINE) is None
    print(dict(seen))
