"""Where a batch's tensors lie in a region of shared memory."""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import Contract
from fastinfer.runtimes.triton.exchange import Failed, Question, itemsize
from fastinfer.runtimes.triton.regions import MARK, Region, Regions

ALIGNMENT = 64
MOST_KNOWN = 256  # layouts that are remembered
Shapes = tuple[tuple[int, ...], ...]


class Place(NamedTuple):
    """Of a tensor in a region, in bytes."""

    offset: int
    size: int


class Layout(NamedTuple):
    """Of a batch; tensors that are not in it travel."""

    inputs: Mapping[str, Place]
    outputs: Mapping[str, Place]
    size: int


class Placed(NamedTuple):
    """A batch's inputs as they lie in a region, and the room of its outputs."""

    region: Region
    layout: Layout


Exchange = Callable[[Contract, Question, Placed | None], Awaitable[Arrays]]


class Placer:
    """Lays the batches of one link into its regions."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.contract: Contract | None = None  # whose layouts are known, by the shapes of the inputs
        self.known: dict[Shapes, Layout | None] = {}

    async def infer(self, contract: Contract, question: Question, exchange: Exchange) -> Arrays:
        """Have a batch answered, in shared memory where there is some; raises as ``exchange`` does."""
        placed = self.put(contract, question)
        if placed is None:
            return await exchange(contract, question, None)
        try:
            outputs = await exchange(contract, question, placed)
        except BaseException as error:
            if not isinstance(error, Failed):
                self.regions.retire(placed.region)
            elif error.unseen:
                self.regions.give_back(placed.region)
            else:
                self.regions.retire(placed.region)
                if error.forgotten:
                    self.regions.forget()
                    return await exchange(contract, question, None)
            raise
        self.regions.give_back(placed.region)
        return outputs

    def put(self, contract: Contract, question: Question) -> Placed | None:
        """The batch's inputs in a region of its own, which is to be given back or retired; None: the batch travels."""
        if self.regions.consent.given is False:
            return None
        layout = self.layout(contract, question)
        if layout is None or layout.size < self.regions.consent.least:
            return None
        region = self.regions.take(layout.size)
        if region is None:
            return None
        for name, place in layout.inputs.items():
            region.put(place.offset, question.inputs[name])
        for place in layout.outputs.values():
            region.mark_end(place.offset + place.size)
        return Placed(region, layout)

    def layout(self, contract: Contract, question: Question) -> Layout | None:
        """None where nothing of it can lie in shared memory."""
        if self.contract is not contract:
            self.contract = contract
            self.known.clear()
        shapes = tuple(question.inputs[tensor.name].shape for tensor in contract.inputs)
        if shapes not in self.known:
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            self.known[shapes] = laid_out(contract, shapes)
        return self.known[shapes]


def laid_out(contract: Contract, shapes: Shapes) -> Layout | None:
    end = 0

    def place(size: int) -> Place:
        nonlocal end
        found = Place(end, size)
        end += -(-size // ALIGNMENT) * ALIGNMENT
        return found

    inputs, outputs = {}, {}
    for tensor, shape in zip(contract.inputs, shapes, strict=True):
        size = math.prod(list(shape)) * itemsize(tensor)
        if tensor.datatype != "BYTES" and size:
            inputs[tensor.name] = place(size)
    for tensor in contract.outputs:
        dims = [shapes[0][0], *tensor.shape[1:]] if contract.max_batch_size else list(tensor.shape)
        if tensor.datatype == "BYTES" or -1 in dims:
            continue
        size = math.prod(dims) * itemsize(tensor)
        if size >= MARK:
            outputs[tensor.name] = place(size)
    return Layout(inputs, outputs, end) if end else None
