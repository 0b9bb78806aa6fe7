"""`fastinfer serve`: settings, an early no to what cannot be served, then the server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastinfer.errors import ConfigurationError
from fastinfer.repository import Repository, find
from fastinfer.settings import Settings, resolve


def run_serve(flags: Mapping[str, Any], config: Path | None) -> int:
    """Serve until told to stop. Returns the exit code.

    Raises:
        ConfigurationError: a setting is wrong, or there is nothing that could be served.
    """
    settings = resolve(flags, config=config)
    refuse_what_cannot_be_served(found(settings, "serve"))
    from fastinfer.server import run  # after the refusals: it brings uvicorn and onnxruntime

    return run(settings)


def found(settings: Settings, command: str) -> Repository:
    """What lies under the settings' path.

    Raises:
        ConfigurationError: no path is given, or no model is there.
    """
    if settings.path is None:
        raise ConfigurationError(f"{command} needs a PATH: a model file, a model's folder, or a repository of models.")
    return find(settings.path, settings.name)


def refuse_what_cannot_be_served(repository: Repository) -> None:
    """Raises the first model's error when every model has one: a server without any model helps nobody."""
    errors = [each.error for each in repository.found if each.error is not None]
    if len(errors) == len(repository.found):
        more = f" ({len(errors) - 1} more: see fastinfer check)" if len(errors) > 1 else ""
        raise ConfigurationError(f"{errors[0]}{more}")
