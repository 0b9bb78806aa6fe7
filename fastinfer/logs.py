"""The form of log records: text for a person at a terminal, a JSON object a line for everything else."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from fastinfer import _core

if TYPE_CHECKING:
    from fastinfer.settings import Settings

FLUSH = 2.0  # seconds that the last access records may take to be written


class JsonFormatter(logging.Formatter):
    """{"time", "level", "logger", "message", "worker", "pid", ...fields of the record}; the two under --workers."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self.origin = {} if worker is None else {"worker": worker, "pid": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.origin,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """12:30:05.123 WARNING message key=value ...; under --workers [worker:pid] before the message."""

    default_msec_format = "%s.%03d"

    def __init__(self, worker: int | None = None) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {origin(worker, text=True)}%(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        text = super().formatMessage(record)
        fields = getattr(record, "fields", {})
        return " ".join([text, *(f"{key}={_shown(value)}" for key, value in fields.items())])

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        return f"{super().formatTime(record, datefmt)}.{int(record.msecs):03d}"


def _shown(value: Any) -> str:
    """A field as text: quoted where it could be taken for two, so that no client forges a record."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def configure(settings: Settings, worker: int | None = None) -> None:
    """Send this package's records, and the server library's warnings, to standard error.

    `worker`: which of several this process is, told in every record.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(worker) if is_text(settings) else JsonFormatter(worker))
    for name, level in (("fastinfer", settings.log_level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def is_text(settings: Settings) -> bool:
    return settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())


def origin(worker: int | None, *, text: bool) -> str:
    """What tells one of several workers in a record: before its message as text, after it as JSON's members."""
    if worker is None:
        return ""
    return f"[{worker}:{os.getpid()}] " if text else f', "worker": {worker}, "pid": {os.getpid()}'


class AccessWriter:
    """The access log of one server process, and the thread that writes it to standard error.

    Attributes:
        log: what the connections and the routes note answers in.
    """

    def __init__(self, settings: Settings, worker: int | None = None) -> None:
        text = is_text(settings)
        self.log = _core.AccessLog(text, origin=origin(worker, text=text).encode())
        self._thread = threading.Thread(
            target=self.log.run, args=(sys.stderr.fileno(),), name="fastinfer-access", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Write what is left; whoever does not read it does not keep the process."""
        self.log.close()
        self._thread.join(FLUSH)


def access_writer(settings: Settings, worker: int | None = None) -> AccessWriter | None:
    """A writer where the settings ask for access records, which are of level info."""
    wanted = settings.access_log and settings.log_level in ("debug", "info")
    return AccessWriter(settings, worker) if wanted else None
