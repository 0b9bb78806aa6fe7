"""What a client hears of the server's load beside an inference's answer, if it asks: an ORCA load report.

Sources: triton-inference-server/server `src/orca_http.cc`, for the fields' names; cncf/xds
`xds/data/orca/v3/orca_load_report.proto`, for what is in it; Envoy, for the two forms.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastinfer.model import Model
    from fastinfer.settings import Settings

ASKS = b"endpoint-load-metrics-format"
FIELD = b"endpoint-load-metrics"


def load_report(model: Model, settings: Settings, form: bytes) -> bytes | None:
    """The field's value, `TEXT name=value, …` or `JSON {…}`; None for another form, which is no error.

    `application_utilization` is how full the model's queue is, 0 to 1; `queue_rows` wait in it, and `in_flight`
    requests are under way on all workers.
    """
    most = settings.queue_rows if model.config.queue_rows is None else model.config.queue_rows
    waiting = model.batcher.pending_rows
    used = min(1.0, waiting / most)
    named = {"queue_rows": waiting, "in_flight": int(model.endpoint.counters()["in_flight"])}
    match form.strip().lower():
        case b"json":
            return b"JSON " + json.dumps({"application_utilization": used, "named_metrics": named}).encode()
        case b"text":
            fields = [f"application_utilization={used:g}", *(f"named_metrics.{key}={named[key]}" for key in named)]
            return b"TEXT " + ", ".join(fields).encode()
        case _:
            return None
