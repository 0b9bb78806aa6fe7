from typing import Any, NamedTuple, final

import numpy as np

DATATYPES: tuple[str, ...]
DTYPES: tuple[str, ...]

class Tensor(NamedTuple):
    name: str
    datatype: str
    shape: tuple[int, ...]
    nullable: bool = False
    column: bool = False

@final
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batched: bool
    def __init__(self, inputs: Any, outputs: Any, *, batched: bool = True) -> None: ...

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

@final
class CompiledProgram:
    columns: Signature
    width: int
    dtype: str
    def __init__(
        self, columns: Signature, instructions: list[Instruction], numbers: int, texts: int, width: int, dtype: str
    ) -> None: ...
    def transform(self, columns: dict[str, Any]) -> np.ndarray[Any, Any]: ...
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
    def __init__(self, signature: Signature, model: str = "") -> None: ...

@final
class Encoder:
    def __init__(self, name: str, version: str, signature: Signature, task: Task | None = None) -> None: ...

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
def parse_number(text: bytes) -> float | None: ...
def render_number(value: float, single: bool) -> str: ...
