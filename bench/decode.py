"""Decoding large JSON bodies in process: fastinfer beside orjson + numpy, one core, no server.

    python bench/decode.py              # the table
    python bench/decode.py --one-row    # and nanoseconds a request of one row; compiles decode_loop.pyx
    python bench/decode.py --json       # the figures of the first line, for table.py

orjson makes Python objects of the whole body and numpy an array of the list: what a server in Python does. Samples of
both alternate, in CPU time; the rate and the ratio are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
from loops import compiled

from fastinfer._core import Encoder, Signature, Tensor, decode

ROWS, COLUMNS = 1000, 32
ROUNDS = 15
SIGNATURE = Signature([Tensor("input", "FP32", (-1, COLUMNS))], [Tensor("output", "FP32", (-1, 2))])


class Result(NamedTuple):
    """MB/s, nanoseconds a number, and the time of orjson + numpy over fastinfer's."""

    rate: float
    number_ns: float
    ratio: float


def numbers() -> dict[str, list[str]]:
    """Texts of ROWS * COLUMNS numbers, of every kind that clients send."""
    source = np.random.default_rng(5)
    count = ROWS * COLUMNS
    singles = source.normal(size=count).astype(np.float32)
    digits = source.integers(3, 8, count)
    return {
        "float32, shortest text": [str(value) for value in singles],
        "decimals of 4 to 8 digits": [f"{value:.{places}f}" for value, places in
                                      zip(source.uniform(-9, 9, count), digits, strict=True)],
        "float64, shortest text": [repr(value) for value in source.normal(size=count).tolist()],
        "float32 as float64": [repr(value) for value in singles.tolist()],
        "integers": [str(value) for value in source.integers(-1000, 100_000, count)],
    }


def body_of(texts: list[str], rows: int, *, separator: str = ",", nested: bool = False) -> bytes:
    lines = [separator.join(texts[row * COLUMNS : (row + 1) * COLUMNS]) for row in range(rows)]
    data = f"[{f']{separator}['.join(lines)}]" if nested else separator.join(lines)
    head = f'"name":"input","shape":[{rows},{COLUMNS}],"datatype":"FP32"'
    return f'{{"inputs":[{{{head},"data":[{data}]}}]}}'.encode()


def bodies() -> Iterator[tuple[str, bytes]]:
    for name, texts in numbers().items():
        yield name, body_of(texts, ROWS)
        yield f"{name}, ', '", body_of(texts, ROWS, separator=", ")
        yield f"{name}, nested", body_of(texts, ROWS, nested=True)


def by_orjson(body: bytes) -> np.ndarray:
    tensor = orjson.loads(body)["inputs"][0]
    return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])


def by_fastinfer(body: bytes) -> np.ndarray:
    array: np.ndarray = decode(SIGNATURE, 0, body)["arrays"]["input"]
    return array


def nanoseconds(function: Callable[[bytes], Any], body: bytes, calls: int) -> float:
    began = time.process_time_ns()
    for _ in range(calls):
        function(body)
    return (time.process_time_ns() - began) / calls


def measure(body: bytes) -> Result:
    if by_fastinfer(body).tobytes() != by_orjson(body).tobytes():
        raise SystemExit("fastinfer and orjson disagree")
    own, ratios = [], []
    for _ in range(ROUNDS):
        own.append(nanoseconds(by_fastinfer, body, 5))
        ratios.append(nanoseconds(by_orjson, body, 1) / own[-1])
    median = statistics.median(own)
    return Result(len(body) / median * 1000, median / (ROWS * COLUMNS), statistics.median(ratios))


def one_row() -> None:
    """What one row costs where all buffers are there already, as on the fast lane; and answers."""
    loop = compiled("decode_loop")
    for name, texts in numbers().items():
        body = body_of(texts, 1)
        samples = [loop.decode_ns(SIGNATURE, body, 20_000) for _ in range(ROUNDS)]
        print(f"{name:36} {len(body):6} bytes {statistics.median(samples):7.0f} ns a request of one row")
    for rows, columns in ((1, 2), (ROWS, COLUMNS)):
        signature = Signature(SIGNATURE.inputs, [Tensor("output", "FP32", (-1, columns))])
        encoder, values = Encoder("model", "1", signature), np.random.default_rng(6).uniform(size=(rows, columns))
        calls = max(20_000 // (rows * columns), 5)
        samples = [loop.encode_ns(encoder, body, values.astype(np.float32), calls) for _ in range(ROUNDS)]
        print(f"answer of {rows:,} x {columns} float32".ljust(49), f"{statistics.median(samples):7.0f} ns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the first line's figures as one line of JSON")
    parser.add_argument("--one-row", action="store_true", help="requests and answers of one row as well")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.json:
        name, body = next(bodies())
        result = measure(body)
        detail = f"{name}: {result.number_ns:.1f} ns a number; orjson {orjson.__version__}"
        print(json.dumps({"rate": result.rate, "ratio": result.ratio, "detail": detail}))
        return
    print(f"{'1,000 rows of 32':36} {'MB/s':>8} {'ns a number':>12} {'over orjson + numpy':>20}")
    for name, body in bodies():
        result = measure(body)
        print(f"{name:36} {result.rate:8.0f} {result.number_ns:12.2f} {result.ratio:19.1f}×")
    if options.one_row:
        one_row()


if __name__ == "__main__":
    main()
