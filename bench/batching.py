"""What batching costs who is alone, and what answers of the same bits in any batch cost.

    python bench/batching.py                 # a minute

Both compare fastinfer with itself, two servers on one core that are driven in turn. A lone client: a model with
batching and without (``max_batch_size = 0``), one connection. The same bits: onnxruntime's logistic regression, whose
answer differs in the last bits between sizes of batches, as it is and with ``batch_invariant = true``, which fills
every run up to ``max_batch_size`` rows; at 1 and at 64 connections.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
from collections.abc import Mapping
from typing import NamedTuple

import environments
import harness
import wrk
from process import Cores, ServerError

LONE = {"with batching": "max_batch_size = 64\n", "without": "max_batch_size = 0\n"}
BITS = {"the same bits": "max_batch_size = 64\nbatch_invariant = true\n", "as it is": "max_batch_size = 64\n"}


class Compared(NamedTuple):
    """Two settings of one model. ``ratio`` is the median over the rounds of the first's p50 over the second's."""

    names: tuple[str, str]
    p50_us: tuple[float, float]
    cpu_us: tuple[float, float]
    rate: tuple[float, float]
    ratio: float
    cpu_ratio: float
    rounds: int


def compare(model: str, settings: Mapping[str, str], connections: tuple[int, ...], options: argparse.Namespace,
            cores: Cores) -> dict[int, Compared]:
    """A model under two model.toml, by number of connections.

    Raises:
        ServerError: a server did not start, or answered nothing.
    """
    harness.ensure_models([model], options)
    script = wrk.infer_script(model)
    with contextlib.ExitStack() as stack:
        sides = []
        for number, (name, text) in enumerate(settings.items()):
            folder = harness.BENCH / "repositories" / f"{model}-{number}-of-{len(settings)}" / model
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(harness.models.model_path(model).parent, folder / "1")
            (folder / "model.toml").write_text(text)
            server = stack.enter_context(harness.serving(f"{model}-{number}", [str(folder.parent)], options, cores))
            sides.append(harness.Side(name, server, script))
        return {count: compared(harness.rounds(sides, count, options, cores), sides) for count in connections}


def compared(found: list[harness.Round], sides: list[harness.Side]) -> Compared:
    first, second = sides[0].name, sides[1].name
    failed = sum(measured[side.name].failed for measured in found for side in sides)
    if failed:
        raise ServerError(f"{failed} requests failed")

    def both(key: str) -> tuple[float, float]:
        one, two = (statistics.median(getattr(each[name], key) for each in found) for name in (first, second))
        return one, two

    return Compared((first, second), both("p50_us"), both("cpu_us"), both("rate"),
                    harness.ratio(found, first, second, lambda each: each.p50_us),
                    harness.ratio(found, first, second, lambda each: each.cpu_us), len(found))


def lone_client(options: argparse.Namespace, cores: Cores) -> Compared:
    """One connection, the MLP, with batching and without."""
    return compare("mlp", LONE, (1,), options, cores)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=5, seconds=2)
    options = parser.parse_args()
    try:
        cores = harness.settle(options)
        lines = [("MLP, a lone client", lone_client(options, cores))]
        lines += [(f"logistic regression, {count} connections", found)
                  for count, found in compare("logistic", BITS, (1, 64), options, cores).items()]
    except (ServerError, environments.InstallError) as error:
        print(error, file=sys.stderr)
        return 1
    print("| what | p50, µs | requests/s | CPU µs a request | p50 ratio | CPU ratio |\n|---|---|---|---|---|---|")
    for title, found in lines:
        print(f"| {title}: {found.names[0]} / {found.names[1]} | {found.p50_us[0]:.0f} / {found.p50_us[1]:.0f} "
              f"| {found.rate[0]:,.0f} / {found.rate[1]:,.0f} | {found.cpu_us[0]:.1f} / {found.cpu_us[1]:.1f} "
              f"| {found.ratio:.3f} | {found.cpu_ratio:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
