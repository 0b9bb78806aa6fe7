"""`fastinfer conformance`: check a server against the protocol, and say what it does."""

from collections.abc import Iterator

import click

from fastinfer.conformance import kit, report
from fastinfer.conformance.server import Server


def run_conformance(
    url: str, *, grpc: str | None = None, model: str | None = None, as_json: bool = False, differences: bool = False
) -> int:
    """Print a table of all checks, or JSON. Returns 0, or 1 if any failed.

    Args:
        url: of the server, over HTTP.
        grpc: HOST:PORT of the same server over gRPC.
        model: that requests are sent to; by default whichever of the server's serves a check.
        differences: whether to list where fastinfer answers otherwise than Triton on purpose.

    Raises:
        ConfigurationError: the URL is none, or nobody answers there.
    """
    server = Server(url, wanted=model)
    done: list[kit.Outcome] = []

    def results() -> Iterator[kit.Outcome]:
        for outcome in report.outcomes(server, grpc):
            done.append(outcome)
            yield outcome

    if as_json:
        click.echo(report.dump(report.document(server, results())))
    else:
        for line in report.table(results()):
            click.echo(line)
        if differences:
            click.echo("Where fastinfer answers otherwise than Triton, on purpose:")
            for where, what in report.DIFFERENCES:
                click.echo(f"  {where}: {what}")
    return int(any(each.result == kit.FAIL for each in done))
