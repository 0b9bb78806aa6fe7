from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, final

import numpy as np

from fastinfer.errors import FastinferError

DATATYPES: tuple[str, ...]
DTYPES: tuple[str, ...]
TIME_PART_NAMES: tuple[str, ...]

class Tensor(NamedTuple):
    name: str
    datatype: str
    shape: tuple[int, ...]
    nullable: bool = False
    column: bool = False
    features: tuple[str, ...] = ()

@final
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batched: bool
    lenient: bool
    features: tuple[str, ...]
    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        *,
        batched: bool = True,
        ignored: Iterable[str] = (),
        lenient: bool = False,
    ) -> None: ...

@final
class Rows:
    signature: Signature
    def __init__(self, signature: Signature) -> None: ...
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]: ...

class Instruction(NamedTuple):
    kernel: str
    source: int
    target: int
    column: int = 0
    single: bool = False
    a: float = 0.0
    b: float = 0.0
    flags: int = 0
    table: Any = None
    sources: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()

@final
class Columns:
    def __init__(self, signature: Signature, objects: bytes) -> None: ...
    def take(self, i: int, values: Any, explicit: bool = False, nan: bool = False) -> bool: ...
    def take_mapping(self, columns: dict[str, Any]) -> list[int]: ...
    def take_codes(self, i: int, codes: np.ndarray[Any, Any], categories: list[Any]) -> bool: ...
    def take_matrix(self, array: np.ndarray[Any, Any], positions: Sequence[int]) -> list[int]: ...
    def take_records(self, records: list[dict[str, Any]]) -> list[int]: ...
    def take_frame(self, frame: Any) -> list[int]: ...

@final
class CompiledProgram:
    columns: Signature
    width: int
    dtype: str
    def __init__(
        self, columns: Signature, instructions: list[Instruction], numbers: int, texts: int, width: int, dtype: str,
        vectors: int = 0,
    ) -> None: ...
    def transform(self, columns: Columns | dict[str, Any]) -> np.ndarray[Any, Any]: ...
    def transform_sparse(self, columns: Columns | dict[str, Any]) -> tuple[np.ndarray[Any, Any], ...]: ...
    def refusals(self, columns: dict[str, Any]) -> list[tuple[int, int]]: ...

class Task(NamedTuple):
    kind: str
    label: str | None = None
    probabilities: str | None = None
    classes: tuple[str, ...] = ()
    value: str | None = None

@final
class Request:
    signature: Signature
    rows: int
    timeout_us: int
    priority: int
    raw: bool
    kind: int
    @property
    def id(self) -> str | None: ...
    def __new__(cls, signature: Signature, model: str = "") -> Self: ...

@final
class Policy:
    signature: Signature
    added: tuple[str, ...]
    def __new__(
        cls,
        inner: Signature,
        *,
        kept: Sequence[str],
        source: str,
        column: int = -1,
        decision: str = "",
        thresholds: Sequence[float] = (),
        classes: Sequence[float] = (),
        labels: Sequence[str] = (),
        score: tuple[str, bool, float, float, int, float, float] | None = None,
    ) -> Self: ...
    def apply(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]: ...

@final
class Encoder:
    def __new__(
        cls, name: str, version: str, signature: Signature, task: Task | None = None, beside: Sequence[str] = ()
    ) -> Self: ...

def decode(
    signature: Signature, kind: int, body: bytes, header_length: int = -1, model: str = ""
) -> dict[str, Any]: ...
def encode(
    encoder: Encoder,
    kind: int,
    body: bytes,
    outputs: list[np.ndarray[Any, Any]],
    start: int = 0,
    rows: int = -1,
    header_length: int = -1,
) -> tuple[bytes, int]: ...
def compare_blocks(block: bytes, wanted: int, fold: int) -> tuple[bool, int, bool]: ...
def parse_number(text: bytes) -> float | None: ...
def parse_plain_number(text: bytes, begin: int, single: bool, portable: bool) -> tuple[float, int] | None: ...
def render_number(value: float, single: bool, plainly: bool = False) -> str: ...

CHECKED: bool
BOUNDS: tuple[float, ...]
LANES: tuple[str, ...]
STATUSES: tuple[int, ...]
GAUGES: tuple[str, ...]

@final
class Scoreboard:
    other: ClassVar[int]
    nobody: ClassVar[int]
    workers: int
    def __init__(self, memory: Any, workers: int) -> None: ...
    @staticmethod
    def size(workers: int) -> int: ...
    def find(self, name: str, version: str) -> int: ...
    def add(self, name: str, version: str, max_batch_size: int) -> int: ...
    def rows(self) -> list[tuple[int, str, str]]: ...
    def count(self, worker: int, row: int, lane: str, status: int) -> None: ...
    def set_gauge(self, worker: int, name: str, value: int) -> None: ...
    def gauge(self, worker: int, name: str) -> int: ...
    def note_lag(self, worker: int, nanoseconds: int) -> None: ...
    def loop_lag(self) -> tuple[list[int], float]: ...
    def reset_gauges(self, worker: int) -> None: ...
    def counters(self, row: int) -> dict[str, Any]: ...

SPLITS: dict[str, int]
LINKS: tuple[str, ...]
RULES: tuple[str, ...]
ARRAYS: dict[str, tuple[str, ...]]

def narrow_vectors(yes: bool) -> None: ...
def through_passes(yes: bool) -> None: ...

class Engine: ...

def natural_logs(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]: ...

@final
class Forest(Engine):
    inputs: list[tuple[str, str, tuple[int, ...]]]
    outputs: list[tuple[str, str, tuple[int, ...]]]
    def __init__(
        self,
        arrays: dict[str, np.ndarray[Any, Any]],
        *,
        width: int,
        strict: bool = False,
        sentinel: float = ...,
        divisor: float = 0.0,
        link: str = "identity",
        slope: float = 1.0,
        labels: np.ndarray[Any, Any] | None = None,
        rule: str = "most_probable",
        answers: str = "FP64",
    ) -> None: ...
    def run(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]: ...

@final
class Session(Engine):
    inputs: list[tuple[str, str, tuple[int, ...]]]
    outputs: list[tuple[str, str, tuple[int, ...]]]
    plain: bool
    def __init__(
        self,
        library: str,
        path: str,
        *,
        intra_op_threads: int = 1,
        inter_op_threads: int = 1,
        optimisation: int = 99,
        entries: dict[str, str] | None = None,
    ) -> None: ...
    def run(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]: ...

@final
class Batcher:
    signature: Signature
    lost: int
    max_batch_size: int
    forwards: Callable[[Iterable[tuple[bytes, bytes]]], object] | None
    def __init__(
        self,
        signature: Signature,
        run: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]],
        *,
        max_batch_size: int = 64,
        max_delay_us: int = 0,
        instances: int = 1,
        queue_rows: int = 4096,
        queue_bytes: int = ...,
        inline_budget_us: int = 500,
        run_timeout_ms: int = 30_000,
        slo_ms: int = 0,
        fixed_size: bool = False,
        engine: Engine | None = None,
        policy: Policy | None = None,
        run_async: Callable[..., Awaitable[dict[str, np.ndarray[Any, Any]]]] | None = None,
        pace: Callable[[int, bool, float], int] | None = None,
        stop: Callable[[int], None] | None = None,
    ) -> None: ...
    def attach(
        self,
        *,
        call_soon: Callable[..., Any],
        call_later: Callable[..., Any],
        call_soon_threadsafe: Callable[..., Any],
        submit: Callable[..., Any],
        create_task: Callable[..., Any] | None = None,
    ) -> None: ...
    def detach(self) -> None: ...
    def seed(self, rows: int, nanoseconds: int) -> None: ...
    def close(self) -> None: ...
    @property
    def idle(self) -> bool: ...
    @property
    def stuck(self) -> bool: ...
    @property
    def pending_rows(self) -> int: ...

def hold_clock(nanoseconds: int) -> None: ...
def mix_answers(yes: bool) -> None: ...

@final
class Arrival:
    timeout_ns: int
    trace: bytes | None
    fields: Iterable[tuple[bytes, bytes]] | None
    def __init__(self, arrived_ns: int, timeout_ns: int = 0, key: int = 0) -> None: ...

@final
class Decoded: ...

@final
class Ticket:
    endpoint: Endpoint
    rows: int
    error: FastinferError | None
    preprocess_ns: int
    queue_ns: int
    run_ns: int
    identity: int
    client: bytes | None
    started_ns: int
    queued_ns: int
    finished_ns: int
    @property
    def path(self) -> bytes: ...
    @property
    def large(self) -> bool: ...
    def server_timing(self) -> bytes: ...
    def encode(self) -> tuple[bytes, int]: ...
    def cancel(self) -> None: ...

@final
class Endpoint:
    name: str
    version: str
    signature: Signature
    inner: Signature
    batcher: Batcher
    @property
    def last_ns(self) -> int: ...
    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        batcher: Batcher,
        program: CompiledProgram | None = None,
        task: Task | None = None,
    ) -> None: ...
    def submit(
        self,
        kind: int,
        body: bytes,
        header_length: int,
        done: Callable[[Ticket], None],
        arrival: Arrival | None = None,
    ) -> Ticket: ...
    def decode(self, kind: int, body: bytes, header_length: int) -> Decoded: ...
    def submit_decoded(
        self, decoded: Decoded, done: Callable[[Ticket], None], arrival: Arrival | None = None
    ) -> Ticket: ...
    def gate(self, kind: int, size: int, arrival: Arrival) -> None: ...
    def count_in(self, board: Scoreboard, worker: int, row: int) -> None: ...
    def statistics(self) -> dict[str, Any]: ...
    def counters(self) -> dict[str, Any]: ...

def split_rows(
    data: Any, most: int, last: bool, delimiter: str | None = None
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int, int]: ...
def decode_lines(
    signature: Signature, data: Any, lines: np.ndarray[Any, Any]
) -> tuple[Rows, list[tuple[int, FastinferError]]]: ...
def transform_rows(program: CompiledProgram, rows: Rows, start: int, count: int) -> np.ndarray[Any, Any]: ...
def encode_lines(
    encoder: Encoder, outputs: list[np.ndarray[Any, Any]], numbers: Any, extras: list[bytes] | None = None
) -> bytes: ...
def message_target(body: bytes) -> tuple[str, str]: ...
def request_timeout(values: list[bytes]) -> int: ...
def prefers_server_timing(value: bytes) -> bool: ...

@final
class Credentials:
    def __init__(self) -> None: ...
    def set(self, entries: Mapping[bytes, int]) -> None: ...

@final
class Proxies:
    def __init__(self, peers: Iterable[str] = ()) -> None: ...
    def client(self, host: bytes, lines: list[bytes]) -> tuple[tuple[str, int] | None, int]: ...

@final
class Routes:
    def __init__(self, endpoints: Iterable[tuple[Endpoint, Iterable[str]]]) -> None: ...

@final
class Lane:
    credentials: Credentials
    def __init__(
        self,
        prefix: bytes,
        max_body: int,
        *,
        server_timing: bool = False,
        access: AccessLog | None = None,
        proxies: Proxies | None = None,
    ) -> None: ...
    def open(self, routes: Routes) -> None: ...
    def close(self) -> None: ...
    def tick(self, date: bytes) -> None: ...
    def untold(self) -> list[tuple[str, int]]: ...

@final
class Connection:
    body_bytes: int
    for_head: bool
    @property
    def head_since(self) -> int: ...
    @property
    def body_since(self) -> int: ...
    @property
    def idle_since(self) -> int: ...
    def __init__(self, protocol: Any, lane: Lane) -> None: ...
    def attach(self, transport: Any, client: bytes = b"", host: bytes = b"") -> None: ...
    @property
    def sender(self) -> tuple[str, int] | None: ...
    @property
    def scheme(self) -> str | None: ...
    def lost(self) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def answered(self) -> None: ...
    def arrived(self, timeout_ns: int) -> Arrival: ...
    def writable(self, yes: bool) -> None: ...
    def eof(self) -> bool: ...
    def drain(self) -> bool: ...
    def rendered(
        self, ticket: Ticket, answer: tuple[bytes, int] | None, error: Exception | None
    ) -> None: ...

@final
class AccessLog:
    def __init__(self, text: bool, capacity: int = 8192, origin: bytes = b"") -> None: ...
    def record(
        self,
        status: int,
        size: int,
        *,
        request_id: bytes = b"",
        client: bytes = b"",
        method: bytes = b"",
        path: bytes = b"",
        model: bytes = b"",
        version: bytes = b"",
        code: bytes = b"",
        ticket: Ticket | None = None,
        total_ns: int = -1,
    ) -> None: ...
    def close(self) -> None: ...
    def run(self, file: int) -> None: ...
