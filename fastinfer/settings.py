"""Every option of the server and of a model, declared once.

The command line's flags, the FASTINFER_* variables, the keys of fastinfer.toml and model.toml, the pages in
docs/reference and the JSON schemas all derive from here. Precedence: flag, FASTINFER_*, fastinfer.toml, default.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastinfer.engines import DAY, CatboostConfig, OnnxConfig, PythonConfig, SklearnConfig, TorchConfig
from fastinfer.errors import ConfigurationError
from fastinfer.options import (
    BOOLEAN,
    CLASS,
    DURATION,
    FIELD_NAMES,
    INTEGER,
    LINE,
    MODEL_NAME,
    NAME,
    NAMES,
    NUMBER,
    NUMBERS,
    PATH,
    PEERS,
    SIZE,
    SWITCH,
    TEXT,
    TEXTS,
    URLS,
    VERSIONS,
    Option,
    TomlFile,
    check_fields,
    nearest,
    option,
    options,
    shown,
    take_table,
)

MIB = 1 << 20
SETTINGS_FILE = Path("fastinfer.toml")
PREFIX = "FASTINFER_"
NOT_SETTINGS = frozenset({"FASTINFER_CONFIG", "FASTINFER_BUILD", "FASTINFER_WERROR"})  # the file's path; setup.py's
# Kubernetes gives every pod variables for every service of its namespace: a service called "fastinfer" makes
# FASTINFER_SERVICE_HOST and FASTINFER_PORT=tcp://10.0.0.1:8000. They are nobody's settings.
SERVICE_LINK = re.compile(
    r"FASTINFER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
SERVICE_LINK_PORT = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is run with. Values may be written as in TOML (`max_body_bytes="64MiB"`).

    Raises:
        ConfigurationError: a value of the wrong type or out of bounds; names the option, the value and what it takes.
    """

    path: Path | None = option(
        None, PATH, "A model file, a model's folder, or a repository of models.", unset="none", flag=False)
    name: str | None = option(
        None, NAME, "Name of the model, where PATH is one model.", unset="the file's stem or the folder's name")
    host: str = option(
        "127.0.0.1", TEXT, "Address or host name to listen on; 0.0.0.0 for every IPv4 interface.")
    port: int = option(
        8000, INTEGER, "TCP port to listen on; 0 takes a free one.", low=0, high=65535)
    uds: Path | None = option(
        None, PATH, "Unix socket to listen on, in place of host and port.", unset="none")
    forwarded_allow_ips: tuple[str, ...] = option(
        (), PEERS, "Proxies that are believed in X-Forwarded-For and X-Forwarded-Proto: addresses, networks, unix: for "
        "what comes over `uds`, * for everybody.")
    grpc_port: int | None = option(
        None, INTEGER, "TCP port of the gRPC service on the same host, which needs the extra `grpc`; 0 takes a free "
        "one.", low=0, high=65535, unset="no gRPC")
    log_level: str = option(
        "info", TEXT, "Least severe log record that is written.",
        choices=("critical", "error", "warning", "info", "debug"))
    log_format: str | None = option(
        None, TEXT, "Form of a log record.", choices=("text", "json"), unset="text on a terminal, else json")
    access_log: bool = option(
        False, BOOLEAN, "Log a record of level info for every request, written by a thread of its own; where that "
        "cannot keep up, records are dropped and their number is logged.")
    strict_readiness: bool = option(
        True, BOOLEAN, "Be ready only if every model is; else if any model is.")
    shutdown_timeout: float = option(
        30.0, DURATION, "Longest time that admitted requests have to finish after SIGTERM.", low=0, high=DAY)
    drain_delay: float = option(
        0.0, DURATION, "Time between SIGTERM, which ends readiness, and the end of accepting.", low=0, high=DAY)
    model_control: str = option(
        "none", TEXT, "How models come and go while the server runs: not at all, as the repository on disk changes, or "
        "by calls that load and unload them, which anybody may make who reaches the server.",
        choices=("none", "poll", "explicit"))
    load_model: tuple[str, ...] = option(
        (), NAMES, "A model to load at the start with model_control explicit, where no other is; may be given several "
        "times, and * is all of them.")
    poll_period: float = option(
        5.0, DURATION, "Time between two looks at the repository with model_control poll. What has changed is loaded "
        "when two looks in a row have seen the same.", low=0.05, high=DAY)
    memory_budget: int | None = option(
        None, SIZE, "Memory that models may take, a worker: what has not been asked for longest leaves, and is loaded "
        "again when it is asked for. A model counts with what the process has grown by, and at least with its files.",
        low=1, high=1 << 50, unset="none: every model stays in memory")
    workers: int = option(
        1, INTEGER, "Server processes, each with the models and an event loop of its own.", low=1, high=256)
    worker_timeout: float = option(
        30.0, DURATION, "With several workers: how long one's event loop may stand still before it is killed and "
        "replaced.", low=2, high=DAY)
    max_connections: int | None = option(
        None, INTEGER, "Connections open at once, a worker.", low=1, high=1 << 20, unset="80% of the open-file limit")
    max_body_bytes: int = option(
        64 * MIB, SIZE, "Largest request body, decompressed too.", low=1, high=1 << 40)
    inflight_bytes: int = option(
        512 * MIB, SIZE, "Bodies of all requests in flight, together, a worker.", low=1, high=1 << 44)
    head_timeout: float = option(
        10.0, DURATION, "Longest time in which a request's head must arrive.", low=0.1, high=DAY)
    idle_timeout: float = option(
        75.0, DURATION, "How long a connection without a request is kept.", low=0.1, high=DAY)
    fast_lane: bool = option(
        True, BOOLEAN, "Answer plain infer requests in the compiled core alone; off, or with "
        "compress_responses, all go through Starlette. The answers are the same.")
    server_timing: bool = option(
        False, BOOLEAN, "Tell the durations of the phases (queue, preprocess, run) in a Server-Timing field of every "
        "inference's answer; off, only a request with `Prefer: server-timing` gets it.")
    compress_responses: bool = option(
        False, BOOLEAN, "Compress answers to clients that accept it.")
    allow_python_models: bool = option(
        False, BOOLEAN, "Serve Python files: each is run with the server's own rights, when it is loaded and for every "
        "request.")
    trust_pickle: bool = option(
        False, BOOLEAN, "Serve pickle and joblib files of scikit-learn, and programs of PyTorch that hold more than "
        "tensor operations: loading one runs whatever code is in it.")
    queue_rows: int = option(
        4096, INTEGER, "Rows that wait for one model; model.toml may say otherwise.", low=1, high=1 << 30)
    queue_bytes: int = option(
        64 * MIB, SIZE, "Bytes of rows that wait for one model; model.toml may say otherwise.", low=1, high=1 << 44)
    run_timeout_ms: int = option(
        30_000, INTEGER, "Longest run of a batch, in milliseconds; model.toml may say otherwise.",
        low=1, high=DAY * 1000)
    inline_budget_us: int = option(
        500, INTEGER, "A batch predicted to take less than this, in microseconds, runs on the event loop, any other on "
        "a thread; model.toml may say otherwise.", low=0, high=1_000_000)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """The table [decision.score]: points of the judged number."""

    name: str = option(
        "score", TEXT, "Name of the output.")
    scale: str = option(
        "linear", TEXT, "What is multiplied: the judged number p itself, or its log-odds ln(p / (1 - p)).",
        choices=("linear", "log_odds"))
    factor: float = option(
        1.0, NUMBER, "Points of one unit.")
    offset: float = option(
        0.0, NUMBER, "Points that are added.")
    decimals: int | None = option(
        None, INTEGER, "Digits behind the point to which the sum is rounded, halves to the even digit.", low=0, high=15,
        unset="not rounded")
    low: float | None = option(
        None, NUMBER, "Fewest points, applied last; log_odds takes both bounds.", unset="none")
    high: float | None = option(
        None, NUMBER, "Most points.", unset="none")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.factor == 0:
            raise DecisionError(("score", "factor"), "is 0: every score would be the same")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise DecisionError(("score", "low"), f"is {self.low:g} and high is {self.high:g}")
        if self.scale == "log_odds" and (self.low is None or self.high is None):
            raise DecisionError(("score", "scale"), "is log_odds, which needs low and high: the odds of 0 and of 1 "
                                "have no end")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionConfig:
    """The table [decision]: what is answered for a model's number, beside it or in its place."""

    version: str | None = option(
        None, TEXT, "What you call this state of the policy; the model's metadata tells it.", unset="none")
    name: str = option(
        "decision", TEXT, "Name of the output.")
    output: str | None = option(
        None, TEXT, "The model's output that is judged.", unset="the classifier's probabilities, the "
        "regressor's value, or the only output")
    positive: str | None = option(
        None, CLASS, "The class whose probability is judged; where the model names no classes, the number of the "
        "column.", unset="none; needed where thresholds or a score judge one of several columns")
    thresholds: tuple[float, ...] | None = option(
        None, NUMBERS, "Where a band begins: a number at or above a threshold is in the band above it.", unset="none")
    labels: tuple[str, ...] | None = option(
        None, TEXTS, "Names of the bands, one more than thresholds, lowest first.",
        unset="of one threshold and two classes: the other class and the positive one")
    missing: str | None = option(
        None, TEXT, "The decision where the model gives no number (NaN); needed wherever something is decided.",
        unset="none")
    otherwise: str | None = option(
        None, TEXT, "With [decision.classes] for every class: the decision where none reaches its threshold.",
        unset="none")
    only: bool = option(
        False, BOOLEAN, "Answer with the decision and the score alone; the model's own outputs are not served.")
    classes: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    score: ScoreConfig | None = None
    source: str = field(default="decision", compare=False)  # where it is written, for errors

    def __post_init__(self) -> None:
        check_fields(self)
        for keys, fault in _faults(self):
            raise DecisionError(keys, fault)

    @property
    def decides(self) -> bool:
        """Whether there is a decision; else there is a score alone."""
        return bool(self.thresholds or self.classes or self.names)

    @classmethod
    def read(cls, file: TomlFile) -> "DecisionConfig":
        """The table [decision] of a file.

        Raises:
            ConfigurationError: an unknown key (names the nearest), a bad value, keys that do not fit together; names
                file and line.
        """
        values = take_table(options(cls), file, "decision", tables=["classes", "names", "score"])
        table = file.table["decision"]
        try:
            for name, take in (("classes", CLASS_THRESHOLD), ("names", CLASS_NAME)):
                values[name] = {
                    key: take.take(value, f"{file.place('decision', name, key)}: decision.{name}.{key}")
                    for key, value in table.get(name, {}).items()
                }
            if "score" in table:
                values["score"] = ScoreConfig(**take_table(options(ScoreConfig), file, "decision", "score"))
            return cls(**values, source=f"{file.place('decision')}: decision")
        except DecisionError as fault:
            place = file.place("decision", *fault.keys)
            raise ConfigurationError(f"{place}: {fault}") from None


class DecisionError(ConfigurationError):
    """Keys of a policy that do not fit together, or not to the model; `keys` is the one to look at."""

    def __init__(self, keys: tuple[str, ...], fault: str) -> None:
        super().__init__(f"{'.'.join(('decision', *keys))} {fault}.")
        self.keys = keys


CLASS_THRESHOLD = Option(kind=NUMBER, text="")
CLASS_NAME = Option(kind=TEXT, text="")


def _faults(policy: DecisionConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with a policy, whatever the model."""
    if not policy.decides and policy.score is None:
        yield (), "decides nothing: it takes thresholds, [decision.classes], [decision.names] or [decision.score]"
    if policy.thresholds and policy.classes:
        yield ("thresholds",), "are for one number, [decision.classes] for all classes: keep one of them"
    if policy.labels is not None and not policy.thresholds:
        yield ("labels",), "name the bands of thresholds, and there are none"
    if policy.labels is not None and policy.thresholds and len(policy.labels) != len(policy.thresholds) + 1:
        yield ("labels",), (f"are {len(policy.labels)}, and {len(policy.thresholds)} threshold"
                            f"{'s' * (len(policy.thresholds) > 1)} make {len(policy.thresholds) + 1} bands")
    if policy.decides and policy.missing is None:
        yield ("missing",), "is not given: say what is decided where the model gives no number (NaN)"
    if not policy.decides and policy.missing is not None:
        yield ("missing",), "is given, and nothing is decided: it takes thresholds or [decision.classes]"
    if policy.otherwise is not None and not policy.classes:
        yield ("otherwise",), "is for [decision.classes], which is not there"
    if policy.names and policy.labels is not None:
        yield ("names",), "are names of classes, and labels names the bands already: keep one of them"
    if policy.decides and policy.score is not None and policy.name == policy.score.name:
        yield ("name",), f"and decision.score.name are both {policy.name!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """The table [triton] of model.toml: the Triton Inference Server that runs the model."""

    url: tuple[str, ...] = option(
        (), URLS, "Where Triton answers: host and port, with or without http://, https://, grpc:// or grpcs://. Of "
        "several the one that has the least to do gets a batch.")
    model: str | None = option(
        None, TEXT, "The model's name there.", unset="the folder's name")
    version: int | None = option(
        None, INTEGER, "The model's version there.", low=1, high=(1 << 63) - 1,
        unset="the highest that Triton serves when the model is loaded")
    protocol: str | None = option(
        None, TEXT, "How batches travel.", choices=("http", "grpc"), unset="told by the url, else http")
    in_flight: int | None = option(
        None, INTEGER, "Batches that may be on their way or run at one url.", low=1, high=64,
        unset="learned under load: as many as Triton has instances of the model, or one more where that is faster")
    connections: int | None = option(
        None, INTEGER, "Most connections to one url, over HTTP.", low=1, high=256,
        unset="as many as batches that may be in flight, and two")
    connect_timeout: float = option(
        1.0, DURATION, "Longest time in which a connection must come about, and readiness must be answered.",
        low=0.01, high=60)
    probe_interval: float = option(
        1.0, DURATION, "Time between two questions for readiness, while no batch tells.", low=0.05, high=3600)
    forward_headers: tuple[str, ...] = option(
        (), FIELD_NAMES, "Header fields of clients' requests, and metadata of their gRPC calls, that go on to Triton.")
    shared_memory: bool | str = option(
        "auto", SWITCH, "Hand tensors over in shared memory, where Triton takes it: true tries so at any url, auto at "
        "those of the loopback, and for batches that are worth it.")
    ca_file: Path | None = option(
        None, PATH, "Certificates that Triton's is trusted by, PEM; relative to model.toml.", unset="the system's")
    cert_file: Path | None = option(
        None, PATH, "Certificate of this client, PEM.", unset="none")
    key_file: Path | None = option(
        None, PATH, "Key of cert_file, PEM.", unset="none")
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, file: TomlFile) -> "TritonConfig":
        """The table [triton] of a model.toml.

        Raises:
            ConfigurationError: an unknown key (names the nearest), a bad value, no url; names file and line.
        """
        values = take_table(options(cls), file, "triton", tables=["headers"])
        values["headers"] = {}
        for name, value in file.table["triton"].get("headers", {}).items():
            place = f"{file.place('triton', 'headers', name)}: triton.headers.{name}"
            if not HEADER_NAME.fullmatch(name) or name.lower() in OWN_HEADERS:
                raise ConfigurationError(f"{place} is not a header that can be set.")
            values["headers"][name] = HEADER.take(value, place)
        files = {name: file.path.parent / path for name, path in values.items() if isinstance(path, Path)}
        config = cls(**values | files)
        for key, fault in config.faults():
            raise ConfigurationError(f"{file.place('triton', key)}: triton.{key} {fault}.")
        return config

    def faults(self) -> Iterator[tuple[str, str]]:
        """Keys that do not fit together, and why."""
        if not self.url:
            yield "url", "is not given: where does Triton answer?"
        for url in self.url:
            if not (found := URL.fullmatch(url)) or not 0 < int(found["port"]) < 1 << 16:
                yield "url", (f"is {shown(url)}; it takes host:port, with or without http://, https://, grpc:// or "
                              "grpcs://")
        schemes = {url.partition("://")[0] if "://" in url else None for url in self.url}
        if len(schemes) > 1:
            yield "url", "names addresses of several kinds: write all with the same scheme"
        if self.protocol and any(scheme and not scheme.startswith(self.protocol) for scheme in schemes):
            yield "protocol", f"is {self.protocol!r}, and the url says otherwise"
        if (self.cert_file is None) != (self.key_file is None):
            yield "cert_file", "and key_file go together"
        if (self.ca_file or self.cert_file) and not self.secure:
            yield "ca_file" if self.ca_file else "cert_file", "is for https:// and grpcs://, and the url is neither"

    @property
    def transport(self) -> str:
        """http or grpc."""
        return self.protocol or ("grpc" if self.url[0].startswith("grpc") else "http")

    @property
    def secure(self) -> bool:
        """Whether connections are encrypted."""
        return any(url.startswith(("https://", "grpcs://")) for url in self.url)

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port of each url."""
        return tuple(url.rpartition("://")[2].rstrip("/") for url in self.url)


HEADER = Option(kind=LINE, text="")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OWN_HEADERS = frozenset({
    "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "accept-encoding",
    "inference-header-content-length", "expect", "te", "trailer", "upgrade",
})  # fmt: skip
URL = re.compile(r"((https?|grpcs?)://)?(\[[0-9A-Fa-f:.]+\]|[^\s/:@?#\[\]]+):(?P<port>[0-9]{1,5})/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """The table [version_policy]: which versions of a model are loaded; all of them where it says nothing."""

    latest: int | None = option(
        None, INTEGER, "So many of the highest versions.", low=1, high=1 << 20, unset="none")
    specific: tuple[int, ...] | None = option(
        None, VERSIONS, "These versions; one that is not there is reported.", unset="none")
    all: bool | None = option(
        None, BOOLEAN, "Every version.", unset="true, unless another key is given")

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("latest", "specific", "all") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigurationError(f"version_policy takes one of latest, specific and all, and has "
                                     f"{' and '.join(given)}.")
        if self.all is False:
            raise ConfigurationError("version_policy.all is false; leave it out, and say latest or specific.")

    def chosen(self, versions: Iterable[int]) -> list[int]:
        """The versions to load, highest first, of those that there are; specific ones may not be there."""
        ordered = sorted(versions, reverse=True)
        if self.specific is not None:
            return sorted(self.specific, reverse=True)
        return ordered[: self.latest]

    def triton(self) -> dict[str, Any]:
        """As Triton's ModelConfig has it."""
        if self.specific is not None:
            return {"specific": {"versions": list(self.specific)}}
        return {"all": {}} if self.latest is None else {"latest": {"num_versions": self.latest}}


ALIASED = Option(kind=INTEGER, text="", low=1, high=10**18 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What model.toml says of one model; None where the server's own setting holds."""

    runtime: str | None = option(
        None, TEXT, "Engine that runs the model.",
        choices=(
            "onnx",
            "catboost",
            "forest",
            "lightgbm",
            "python",
            "sklearn",
            "torch",
            "triton",
            "xgboost",
        ), unset="told by the file")
    max_batch_size: int = option(
        64, INTEGER, "Rows in a batch; 0 runs every request alone.", low=0, high=1 << 16)
    max_delay_us: int = option(
        0, INTEGER, "How long a batch may wait for more rows, in microseconds; rounded up to whole milliseconds. "
        "0 never makes a lone request wait.", low=0, high=10_000_000)
    instances: int = option(
        1, INTEGER, "Batches of this model that may run at the same time.", low=1, high=64)
    batch_invariant: bool = option(
        False, BOOLEAN, "Answer a row with the same bits whatever runs beside it: every run has max_batch_size rows, "
        "and where fewer wait, it is filled up. Each run then costs what a full one does.")
    slo_ms: int | None = option(
        None, INTEGER, "Longest time from a request's arrival to its answer, in milliseconds; a client may ask for "
        "less. What waits longer is answered 503 and does not run.", low=1, high=DAY * 1000,
        unset="none: only what clients ask for counts")
    warmup_rows: int = option(
        8, INTEGER, "Rows of the load's own trial run, beside 1 and max_batch_size.", low=1, high=1 << 16)
    queue_rows: int | None = option(
        None, INTEGER, "Rows that wait for this model.", low=1, high=1 << 30, unset="the server's queue_rows")
    queue_bytes: int | None = option(
        None, SIZE, "Bytes of rows that wait for this model.", low=1, high=1 << 44, unset="the server's queue_bytes")
    run_timeout_ms: int | None = option(
        None, INTEGER, "Longest run of a batch, in milliseconds.", low=1, high=DAY * 1000,
        unset="the server's run_timeout_ms")
    inline_budget_us: int | None = option(
        None, INTEGER, "A batch predicted to take less than this, in microseconds, runs on the event loop.",
        low=0, high=1_000_000, unset="the server's inline_budget_us")
    extra_fields: str = option(
        "refuse", TEXT, "A field of a record that the model does not take: an error, which finds misspelt names, or "
        "passed over.", choices=("refuse", "ignore"))
    onnx: OnnxConfig = field(default_factory=OnnxConfig)
    triton: TritonConfig | None = None
    catboost: CatboostConfig = field(default_factory=CatboostConfig)
    python: PythonConfig = field(default_factory=PythonConfig)
    sklearn: SklearnConfig = field(default_factory=SklearnConfig)
    torch: TorchConfig = field(default_factory=TorchConfig)
    decision: DecisionConfig | None = None
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    aliases: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, path: Path) -> "ModelConfig":
        """The model.toml at `path`.

        Raises:
            ConfigurationError: not TOML, an unknown key (names the nearest), a bad value; names file and line.
        """
        file = TomlFile(path)
        values = take_table(
            options(cls), file, tables=[*ENGINES, "triton", "decision", "version_policy", "aliases"])
        if "decision" in file.table:
            values["decision"] = DecisionConfig.read(file)
        if "triton" in file.table:
            values["triton"] = TritonConfig.read(file)
        if (values.get("runtime") == "triton") != ("triton" in file.table):
            raise ConfigurationError(f"{file.place('triton' if 'triton' in file.table else 'runtime')}: "
                                     "runtime = 'triton' and the table [triton] go together.")
        for name, declaration in ENGINES.items():
            if name in file.table:
                values[name] = declaration.read(file)
        if "version_policy" in file.table:
            policy = take_table(options(VersionPolicy), file, "version_policy")
            try:
                values["version_policy"] = VersionPolicy(**policy)
            except ConfigurationError as error:
                raise ConfigurationError(f"{file.place('version_policy')}: {error}") from None
        values["aliases"] = _aliases(file)
        return cls(**values)


# Engines' own tables of model.toml that concern nobody else.
ENGINES: Mapping[str, Any] = {
    "onnx": OnnxConfig, "catboost": CatboostConfig, "python": PythonConfig, "sklearn": SklearnConfig,
    "torch": TorchConfig,
}


def _aliases(file: TomlFile) -> dict[str, int]:
    """[aliases]: names of versions."""
    result = {}
    for name, version in file.table.get("aliases", {}).items():
        place = f"{file.place('aliases', name)}: aliases.{name}"
        if not MODEL_NAME.fullmatch(name):
            raise ConfigurationError(f"{place} is no name of an alias, which takes letters, digits, '.', '_' and '-', "
                                     "a letter or digit first, at most 128.")
        result[name] = ALIASED.take(version, place)
    return result


def flag(declared: Option) -> str:
    return "--" + declared.name.replace("_", "-")


def variable(declared: Option) -> str:
    return PREFIX + declared.name.upper()


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, config: Path | None = None) -> Settings:
    """The settings of a command line.

    Args:
        flags: text (or bool, for a boolean) by option name, of what the command line gave; None is not given.
        environ: variables.
        config: the settings file; else FASTINFER_CONFIG, else fastinfer.toml of this folder where there is one.

    Raises:
        ConfigurationError: an unknown name (names the nearest known one) or a bad value, by flag, variable or line.
    """
    values = _from_file(config, environ) | _from_environment(environ)
    for declared in options(Settings):
        given = flags.get(declared.name)
        if given is not None and given != ():  # a flag that may be given several times
            place = flag(declared) if declared.flag else declared.name.upper()
            convert = declared.read if isinstance(given, str) else declared.take
            values[declared.name] = convert(given, place)
    return Settings(**values)


def _from_file(config: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    named = config or environ.get("FASTINFER_CONFIG")
    path = Path(named or SETTINGS_FILE)
    if not named and not path.exists():
        return {}
    values = take_table(options(Settings), TomlFile(path))
    # A path in the file is meant from where the file lies, whatever folder the server was started in.
    return {name: path.parent / value if isinstance(value, Path) else value for name, value in values.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {variable(declared): declared for declared in options(Settings)}
    values = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or _is_service_link(name, environ[name]):
            continue
        if name not in known:
            hint = nearest(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known])
            raise ConfigurationError(f"{name} is not a known variable.{hint.replace(chr(39), chr(39) + PREFIX, 1)}")
        values[known[name].name] = known[name].read(environ[name], name)
    return values


def _is_service_link(name: str, value: str) -> bool:
    return SERVICE_LINK.fullmatch(name) is not None or (name.endswith("PORT") and bool(SERVICE_LINK_PORT.match(value)))
