"""All checks of a server, and the report of what became of them."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastinfer.conformance import basics, extensions, faults, inference, kit
from fastinfer.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastinfer.conformance.kit import Outcome
    from fastinfer.conformance.server import Server

NOTE = 88  # characters of a note in the table
# Where fastinfer and Triton both refuse, or both answer, and not with the same status.
DIFFERENCES = (
    ("not ready, or not there: .../ready", "Triton 400, fastinfer 503 and 404"),
    ("unknown version, or model without one", "Triton 400, fastinfer 404"),
    ("load of a model that there is not", "Triton 500 and INTERNAL, fastinfer 404 and NOT_FOUND"),
    ("statistics of a model that there is not", "Triton 400 and INVALID_ARGUMENT, fastinfer 404 and NOT_FOUND"),
    ("bytes that are no message", "Triton INTERNAL, fastinfer INVALID_ARGUMENT"),
    ("more raw_input_contents than inputs", "Triton passes over them, fastinfer INVALID_ARGUMENT"),
    ("JSON values of the wrong type, or none", "Triton 500, fastinfer 400"),
    ("data nested otherwise than its shape says", "Triton takes the values as they come, fastinfer 400"),
    ("more rows than max_batch_size; no rows", "Triton 400, fastinfer answers"),
    ("a version with leading zeros", "Triton takes the number, fastinfer 404"),
    ("a Content-Encoding that is not known", "Triton 501, fastinfer 415"),
    ("an output requested twice", "Triton answers it once, fastinfer 400 and INVALID_ARGUMENT"),
    ("refused or expired, overloaded", "Triton 400, 503 and UNAVAILABLE; fastinfer 503 with Retry-After, UNAVAILABLE "
     "or DEADLINE_EXCEEDED with grpc-retry-pushback-ms"),
    ("a body over the bound", "Triton 400, fastinfer 413"),
    ("every error", "Triton {\"error\"}; fastinfer also \"code\" and \"at\", over gRPC in the trailing metadata"),
)  # fmt: skip


def http_checks() -> Iterator[kit.Check]:
    for group in (basics.health, basics.metadata, inference.infer):
        yield from group.all
    yield from inference.datatype_checks()
    for group in (inference.framing, inference.binary, faults.faults, extensions.extensions):
        yield from group.all


def outcomes(server: Server, grpc_address: str | None) -> Iterator[Outcome]:
    """Every check's, over HTTP and, where there is an address, over gRPC.

    Raises:
        ConfigurationError: the server does not answer, or gRPC's packages are not installed.
    """
    if grpc_address is not None and find_spec("grpc") is None:
        raise ConfigurationError("--grpc needs the extra `grpc`: pip install 'fastinfer[grpc]'.")
    try:
        server.get("/v2/health/live")
    except OSError as error:
        raise ConfigurationError(f"{server.url} does not answer: {error}.") from error
    yield from kit.run(http_checks(), server)
    if grpc_address is not None:
        from fastinfer.conformance import grpc

        target = grpc.Target(grpc_address, server)
        try:
            yield from kit.run(grpc.checks.all, target)
        finally:
            target.channel.close()


def table(results: Iterable[Outcome]) -> Iterator[str]:
    """A line a check, as it is done, and a last one that counts."""
    counts: Counter[str] = Counter()
    for each in results:
        counts[each.result] += 1
        note = " ".join(each.note.split())
        note = note if len(note) <= NOTE else note[: NOTE - 1] + "…"
        yield f"{each.result:<4}  {each.name:<32}  {note or each.says}"
    yield summary(counts)


def summary(counts: Counter[str]) -> str:
    return f"{counts[kit.PASS]} passed, {counts[kit.FAIL]} failed, {counts[kit.SKIP]} do not apply."


def document(server: Server, results: Iterable[Outcome]) -> dict[str, Any]:
    """The report for programs."""
    checks = [
        {"check": each.name, "says": each.says, "result": each.result.lower(), "note": each.note,
         "seconds": round(each.seconds, 4)}
        for each in results
    ]  # fmt: skip
    counts = Counter(check["result"] for check in checks)
    return {
        "url": server.url,
        "models": [model.name for model in server.models] if "models" in server.__dict__ else [],
        "passed": counts["pass"],
        "failed": counts["fail"],
        "skipped": counts["skip"],
        "checks": checks,
        "differences": [{"where": where, "what": what} for where, what in DIFFERENCES],
    }


def dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
