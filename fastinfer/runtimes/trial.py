"""A file is loaded in another process first, where its library's loader may crash on a damaged one."""

import signal
import subprocess
import sys
from pathlib import Path

from fastinfer.errors import ModelLoadError

PATIENCE, PATIENCE_PER_BYTE = 120.0, 1e-6  # seconds
SCRIPT = """
import sys
from pathlib import Path
sys.path[:] = sys.argv[3:]
from importlib import import_module
import_module(sys.argv[1]).attempt(Path(sys.argv[2]))
"""


def check(module: str, path: Path) -> None:
    """Call the module's ``attempt(path)`` in another process; an exception there is nothing, since it comes here too.

    Raises:
        ModelLoadError: it crashed the process, or did not come back.
    """
    patience = PATIENCE + PATIENCE_PER_BYTE * path.stat().st_size
    command = [sys.executable, "-P", "-c", SCRIPT, module, str(path), *sys.path]
    try:
        code = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=patience).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        raise ModelLoadError(f"{path}: loading it takes longer than {patience:.0f} s.") from None
    if code < 0:
        raise ModelLoadError(f"{path} is damaged: loading it crashes its library ({signal.Signals(-code).name}).")
