"""GET /: one self-contained page that says what is served and how to ask for it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

from fastinfer import __version__

if TYPE_CHECKING:
    from starlette.types import Scope

    from fastinfer._core import Tensor
    from fastinfer.model import Model
    from fastinfer.service import Service

HTML = b"text/html; charset=utf-8"
HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
MAX_SHOWN = 200  # models; the repository index lists any number
MAX_CATEGORIES = 12
BINARY_ONLY = ("FP16", "BF16")
STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--soft:#5b6877;--line:#dde3ea;--card:#fff;--ground:#f5f7fa;--accent:#0b6bcb;
--good:#1a7f4b;--bad:#b3261e;--code:#0f1720;--codeink:#e6edf3}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#93a1b0;--line:#2a3441;--card:#161d26;--ground:#0e141b;
--accent:#6cb2f7;--good:#4cc38a;--bad:#f2827a;--code:#0a0f15}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header>div{max-width:62rem;margin:0 auto;padding:0 1.25rem}
header{border-bottom:1px solid var(--line);background:var(--card)}
header>div{display:flex;flex-wrap:wrap;align-items:baseline;gap:.4rem 1.2rem;padding-block:1.1rem}
h1{font-size:1.3rem;margin:0;letter-spacing:-.01em}h1 small{font-weight:400;color:var(--soft);font-size:.9rem}
nav{margin-left:auto;display:flex;gap:1.1rem}a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.2rem 1.35rem;margin:1.4rem 0}
h2{margin:0;font-size:1.15rem;overflow-wrap:anywhere}h3{font-size:.8rem;text-transform:uppercase;letter-spacing:.06em;
color:var(--soft);margin:1.3rem 0 .4rem}
p{margin:.35rem 0;color:var(--soft)}.state{font-size:.85rem;font-weight:600}
.up{color:var(--good)}.down{color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;font-weight:500;color:var(--soft)}th,td{padding:.32rem 1rem .32rem 0;
border-bottom:1px solid var(--line);vertical-align:top}tr:last-child td{border-bottom:0}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.86rem}
pre{background:var(--code);color:var(--codeink);border-radius:8px;padding:.85rem 1rem;margin:0;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere}
"""


def index(service: Service, base: str) -> bytes:
    """The page as HTML.

    Args:
        base: scheme, host and prefix that the curls ask, without a trailing slash.
    """
    models = service.registry.models()
    failures = [entry for entry in service.registry.index() if entry["state"] != "READY"]
    state = '<span class="state up">ready</span>' if service.ready else '<span class="state down">not ready</span>'
    first = {model.name: model for model in reversed(models)}  # which answers where no version is named
    parts = [_model(model, base, named=first[model.name] is not model) for model in models[:MAX_SHOWN]]
    if len(models) > MAX_SHOWN:
        parts.append(f"<p>and {len(models) - MAX_SHOWN} more: POST {_text(base)}/v2/repository/index</p>")
    parts += [_failure(entry) for entry in failures[:MAX_SHOWN]]
    if not parts:
        parts.append("<section><p>No model is loaded.</p></section>")
    return _PAGE.format(style=STYLE, version=_text(__version__), state=state, body="".join(parts)).encode(
        "utf-8", "replace"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>fastinfer</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><header><div><h1>fastinfer <small>{version}</small></h1>{state}
<nav><a href="docs">Docs</a><a href="openapi.json">OpenAPI</a><a href="metrics">Metrics</a></nav></div></header>
<main>{body}</main></body></html>
"""


@cache
def policy() -> bytes:
    """The Content-Security-Policy: this page's style and nothing else."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return policy.encode()


def base_url(scope: Scope) -> str:
    """Where the client reached the application, by its Host field when that is plain, else by the socket's address."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    if not HOST.fullmatch(host):
        server = scope.get("server") or ("localhost", None)
        host = server[0] if server[1] is None else f"{server[0]}:{server[1]}"
        host = host if HOST.fullmatch(host) else "localhost"
    return f"{scope.get('scheme', 'http')}://{host}{scope.get('root_path', '').rstrip('/')}"


def curl(model: Model, base: str, *, socket: str | None = None, named: bool = False) -> str:
    """A command that can be pasted into a shell and answers with a prediction; ``named`` asks for the very version."""
    options = [] if socket is None else ["--unix-socket", socket]
    path = f"{model.name}/versions/{model.version}" if named else model.name
    if not speaks_json(model):
        return _binary_curl(model, f"{base}/v2/models/{path}/infer", options)
    words = ["curl", "-s", *options, f"{base}/v1/models/{path}:predict"]
    body = json.dumps({"records": [model.record()]}, ensure_ascii=False)
    return f"{shlex.join(words)} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def speaks_json(model: Model) -> bool:
    """Whether JSON can carry what the model takes and gives."""
    tensors = (*model.signature.inputs, *model.signature.outputs)
    return all(tensor.datatype not in BINARY_ONLY for tensor in tensors)


def _binary_curl(model: Model, url: str, options: list[str]) -> str:
    """Zeros as binary tensors where there is no other way, and a binary answer."""
    example = model.example()
    inputs, zeros = [], 0
    for tensor in model.signature.inputs:
        entry = one_row(model, tensor, example[tensor.name])
        if tensor.datatype in BINARY_ONLY:
            size = 2 * len(entry.pop("data"))
            entry["parameters"] = {"binary_data_size": size}
            zeros += size
        inputs.append(entry)
    body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}, ensure_ascii=False)
    words = ["curl", "-s", *options, url, "--data-binary", "@-", "--output", "-"]
    header = f"-H 'Inference-Header-Content-Length: {len(body.encode())}'"
    return f"{{ printf %s {shlex.quote(body)}; head -c {zeros} /dev/zero; }} | {shlex.join(words)} {header}"


def one_row(model: Model, tensor: Tensor, value: Any) -> dict[str, Any]:
    """A tensor of an infer request that holds a record's value."""
    shape = [1 if dim < 0 else dim for dim in tensor.shape]
    if model.signature.batched:
        shape[0] = 1
    return {"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": _flat(value)}


def _flat(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    return [leaf for item in value for leaf in _flat(item)]


def _model(model: Model, base: str, *, named: bool) -> str:
    kind = "" if model.task is None else f" · {model.task.kind}"
    classes = "" if model.task is None or not model.task.classes else f"<p>Classes: {_listed(model.task.classes)}</p>"
    batches = f"batches of up to {model.max_batch_size} rows" if model.max_batch_size else "one request at a time"
    return (
        f"<section><h2>{_text(model.name)}</h2>"
        f"<p>version {_text(model.version)} · {_text(model.platform)}{_text(kind)} · {batches}</p>{classes}"
        f"<h3>Inputs</h3>{_inputs(model)}<h3>Outputs</h3>{_outputs(model)}"
        f"<h3>Try it</h3><pre>{_text(curl(model, base, named=named))}</pre></section>"
    )


def _failure(entry: dict[str, str]) -> str:
    reason = entry["reason"] or "is loading"
    return (
        f"<section><h2>{_text(entry['name'])}</h2><p>version {_text(entry['version'])} · "
        f'<span class="state down">{_text(entry["state"].lower())}</span></p><pre>{_text(reason)}</pre></section>'
    )


def _inputs(model: Model) -> str:
    example = model.example()
    rows = []
    for tensor in model.signature.inputs:
        value = json.dumps(example.get(tensor.name), ensure_ascii=False)
        notes = [f"<code>{_text(value if len(value) <= 80 else value[:77] + '...')}</code>"]
        known = categories(model, tensor.name)
        if known:
            notes.append(f"one of {_listed(known)}")
        seen = number_range(model, tensor.name)
        if seen is not None:
            notes.append(f"seen from {seen[0]:.6g} to {seen[1]:.6g}")
        if is_date(model, tensor.name):
            notes.append("an ISO 8601 date, or date and time")
        if tensor.nullable:
            notes.append("may be null" if tensor.column else "values may be null")
        if tensor.features:
            notes.append(f"in a record also by name: {_listed(tensor.features)}")
        rows.append([*_cells(tensor), ", ".join(notes)])
    return _table(["name", "datatype", "shape", "example"], rows)


def _outputs(model: Model) -> str:
    return _table(["name", "datatype", "shape"], [_cells(tensor) for tensor in model.signature.outputs])


def categories(model: Model, column: str) -> tuple[Any, ...]:
    """The values that a feature program knows in a column; empty where it takes any."""
    if model.program is None:
        return ()
    for each in model.program.columns:
        if each.name == column:
            return tuple(each.categories or ())
    return ()


def number_range(model: Model, column: str) -> tuple[float, float] | None:
    """The smallest and the largest number that a program's column had when it was fitted, where that is known."""
    columns = () if model.program is None else model.program.columns
    return next((each.range for each in columns if each.name == column), None)


def is_date(model: Model, column: str) -> bool:
    """Whether the text in a feature program's column is a date."""
    columns = () if model.program is None else model.program.columns
    return any(each.name == column and each.kind == "time" for each in columns)


def _cells(tensor: Tensor) -> list[str]:
    return [f"<code>{_text(tensor.name)}</code>", tensor.datatype, f"<code>{list(tensor.shape)}</code>"]


def _table(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{body}</table></div>'


def _listed(values: tuple[Any, ...]) -> str:
    shown = [f"<code>{_text(str(value))}</code>" for value in values[:MAX_CATEGORIES]]
    if len(values) > MAX_CATEGORIES:
        shown.append(f"and {len(values) - MAX_CATEGORIES} more")
    return ", ".join(shown)


def _text(value: str) -> str:
    return html.escape(value)
