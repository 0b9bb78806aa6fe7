"""The command line: `fastinfer serve`, `check`, `import`, `score` and `models`.

Exit codes: 0 done, 1 `check` found something wrong, `score` rejected rows or `models` was refused, 2 usage or
configuration, in one or two lines on stderr, 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` default to the process's own. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and features may be none of the terminal's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # while the command is still being imported, too
        return 130  # as the shell counts an interrupt


def _run(arguments: Sequence[str] | None) -> int:
    import click  # here, so that the package's modules can be imported without it

    from fastinfer.cli.commands import fastinfer, usage
    from fastinfer.errors import ConfigurationError

    try:
        return int(fastinfer.main(arguments, "fastinfer", standalone_mode=False) or 0)
    except click.UsageError as error:
        return _refuse(usage(error))
    except ConfigurationError as error:
        return _refuse(str(error))
    except click.Abort:
        return 130
    except BrokenPipeError:  # `fastinfer check models | head -1`: nobody reads on, and the exit must not try to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _refuse(message: str) -> int:
    sys.stderr.write(f"fastinfer: {message}\n")
    return 2
