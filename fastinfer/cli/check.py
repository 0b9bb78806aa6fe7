"""`fastinfer check`: load every model as the server would, answer one record with it, and say what is wrong."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastinfer.cli.serve import found
from fastinfer.errors import FastinferError, InvalidRequestError, RuntimeFailedError
from fastinfer.settings import resolve

if TYPE_CHECKING:
    from fastinfer.lifecycle import Registry
    from fastinfer.model import Model

KIND_RECORDS = 1
MOST_RUNS = 20  # lines of a parity report


class Run(NamedTuple):
    """Features from ``begin`` to before ``end`` of a program, whose worst golden row is so many ulps away."""

    begin: int
    end: int
    ulps: int


class Verdict(NamedTuple):
    """One line of the table."""

    name: str
    version: str
    good: bool
    sentence: str
    parity: tuple[str, ...] = ()


def run_check(flags: Mapping[str, Any], config: Path | None) -> int:
    """Print a table of all models and what is wrong with each. Returns 0, or 1 if anything is wrong.

    Raises:
        ConfigurationError: a setting is wrong, or there is no model to check.
    """
    logging.getLogger("fastinfer").addHandler(logging.NullHandler())  # the table says it all, once
    settings = resolve(flags, config=config)
    stray = found(settings, "check").stray
    from fastinfer.lifecycle import Registry  # after the refusals: it brings onnxruntime

    registry = Registry(settings)
    try:
        registry.load()
        verdicts = sorted(asyncio.run(judge(registry)))
    finally:
        registry.close()
    sys.stdout.writelines(f"{line}\n" for line in (*table(verdicts), *(f"note: {sentence}" for sentence in stray)))
    return 0 if all(verdict.good for verdict in verdicts) else 1


async def judge(registry: "Registry") -> list[Verdict]:
    """A verdict on everything that was found, loaded or not."""
    registry.attach(asyncio.get_running_loop())
    verdicts = [Verdict(*key, False, str(reason)) for key, reason in registry.failures.items()]
    for model in registry.models():
        try:
            says = f"{summary(model)}, {await run_once(model)}"
            verdicts.append(Verdict(model.name, model.version, True, says, tuple(parity(model))))
        except FastinferError as error:
            verdicts.append(Verdict(model.name, model.version, False, f"{error} (answering its example record)"))
    return verdicts


async def run_once(model: "Model") -> str:
    """Answer the model's example record, or, where a model knows none and refuses the made-up one, run other values.

    Raises:
        FastinferError: nothing can be answered.
    """
    try:
        return await answer(model)
    except (RuntimeFailedError, InvalidRequestError):
        from fastinfer import probe

        times = [] if model.program is not None else probe.warm_up(model.runtime.run, model.inner, [1], repeats=1)
        if not times:
            raise
        return f"a row in {times[0][1] / 1e6:.2f} ms"


async def answer(model: "Model") -> str:
    """Answer the model's example record on the way that a request takes."""
    body = json.dumps({"records": [model.record()]}).encode()
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    started = time.perf_counter()
    model.endpoint.submit(KIND_RECORDS, body, -1, done.set_result)
    (await done).encode()
    return f"a record in {(time.perf_counter() - started) * 1e3:.2f} ms"


def summary(model: "Model") -> str:
    """What the model is, in a few words."""
    inputs = len(model.signature.inputs)
    task = model.task.kind if model.task is not None else "model"
    batches = f"batches of {model.max_batch_size}" if model.max_batch_size else "requests run alone"
    return f"{task} of {inputs} input{'s' * (inputs != 1)}, {batches}{certificate(model)}"


def certificate(model: "Model") -> str:
    """The golden rows of its feature program, which the load has compared: a program that fails them does not load."""
    if model.program is None:
        return ""
    golden = model.program.spec.certificate
    rows = 0 if golden is None else max(len(values) for values in golden["rows"].values())
    return f", {rows} golden rows equal" if rows else ", no certificate"


def parity(model: "Model") -> Iterator[str]:
    """The parity report of a feature program: how many ulps the worst golden row is away, by feature."""
    found = None if model.program is None else model.program.parity()
    if model.program is None or found is None:
        return
    output = model.program.spec.output
    made_by = ", ".join([f"{name} {version}" for name, version in found.made_by.items()])
    yield (f"parity of {model.name} {model.version} with {made_by or 'what made it'}: {found.rows} golden rows, "
           f"largest difference in ulps of {output.dtype}")
    runs = runs_of(found.ulps.tolist())
    shown = sorted(sorted(runs, key=lambda run: -run.ulps)[:MOST_RUNS])
    names = [called(output.features, run) for run in shown]
    width = max(map(len, names))
    yield from (f"  {name:<{width}}  {run.ulps}" for name, run in zip(names, shown, strict=True))
    if len(runs) > len(shown):
        left = sorted(set(runs) - set(shown))
        count = sum(run.end - run.begin for run in left)
        yield f"  {f'{count:,} other features':<{width}}  {max(run.ulps for run in left)}"


def runs_of(ulps: list[int]) -> list[Run]:
    """Features beside one another that are equally far away."""
    begins = [0, *[i for i in range(1, len(ulps)) if ulps[i] != ulps[i - 1]]]
    return [Run(begin, end, ulps[begin]) for begin, end in zip(begins, [*begins[1:], len(ulps)], strict=True)]


def called(features: Any, run: Run) -> str:
    first, last = (features[i][0] for i in (run.begin, run.end - 1))
    return first if run.end - run.begin == 1 else f"{first} … {last} ({run.end - run.begin:,} features)"


def table(verdicts: list[Verdict]) -> Iterator[str]:
    rows = [("MODEL", "VERSION", "RESULT")]
    for verdict in verdicts:
        first, *more = f"{'ok' if verdict.good else 'FAILED'}: {verdict.sentence}".splitlines()
        rows += [(verdict.name, verdict.version or "-", first), *(("", "", line) for line in more)]
    name, version = (max(len(row[column]) for row in rows) for column in (0, 1))
    yield from (f"{row[0]:<{name}}  {row[1]:<{version}}  {row[2]}".rstrip() for row in rows)
    failed = sum(not verdict.good for verdict in verdicts)
    yield from (line for verdict in verdicts for line in verdict.parity)
    yield f"{failed} of {len(verdicts)} failed." if failed else f"{len(verdicts)} checked, nothing wrong."
