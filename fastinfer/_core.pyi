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
