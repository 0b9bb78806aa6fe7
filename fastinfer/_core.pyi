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
