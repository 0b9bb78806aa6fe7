"""The columns that a program is handed, as objects of Python."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from fastinfer._core import Columns, Signature, Tensor


@pytest.mark.parametrize("count", [0, 1, 5, 100])
@pytest.mark.parametrize("taken", [False, True])
def test_the_collector_may_take_what_they_refer_to_before_them(count: int, taken: bool) -> None:
    """In a cycle, as of an exception with its frames, their signature is gone when they are freed."""
    signature = Signature([Tensor(f"x{i}", "FP64", (-1,)) for i in range(count)], [])
    gc.disable()
    try:
        for _ in range(3):
            columns = Columns(signature, bytes(count))
            if taken:
                for i in range(count):
                    assert columns.take(i, np.arange(3.0))
            cycle: list[Any] = [columns]  # younger, so that the collector comes to the columns first
            cycle.append(cycle)
            del columns, cycle
            gc.collect()
    finally:
        gc.enable()
