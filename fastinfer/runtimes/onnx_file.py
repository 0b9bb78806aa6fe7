"""What an ONNX file says and onnxruntime does not, read from its protocol buffers: large ones are passed over."""

import mmap
from collections.abc import Iterator
from pathlib import Path

# Numbers of fields in onnx.proto.
GRAPH = 7  # of ModelProto
INPUT, INITIALIZER = 11, 5  # of GraphProto
NAME, TYPE = 1, 2  # of ValueInfoProto
INITIALIZER_NAME = 8  # of TensorProto
TENSOR, SHAPE = 1, 2  # of TypeProto, and of TypeProto.Tensor
VARINT, WIDE, BYTES, NARROW = 0, 1, 2, 5  # forms of a field

Part = tuple[int, int]  # first byte, end


def shapeless_inputs(path: Path) -> list[str]:
    """Inputs that are tensors without a shape, of a file that onnxruntime has loaded; none where it is not read."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = list(parts(data, (0, len(data)), GRAPH))
            given = {text(data, name) for graph in graphs for each in parts(data, graph, INITIALIZER)
                     for name in parts(data, each, INITIALIZER_NAME)}
            return [name for graph in graphs for each in parts(data, graph, INPUT)
                    if (name := named(data, each)) not in given and is_shapeless(data, each)]
    except (ValueError, IndexError, OSError):
        return []


def named(data: mmap.mmap, value: Part) -> str:
    return "".join(text(data, name) for name in parts(data, value, NAME))


def is_shapeless(data: mmap.mmap, value: Part) -> bool:
    tensors = [tensor for kind in parts(data, value, TYPE) for tensor in parts(data, kind, TENSOR)]
    return bool(tensors) and not any(True for tensor in tensors for _ in parts(data, tensor, SHAPE))


def text(data: mmap.mmap, part: Part) -> str:
    return data[part[0] : part[1]].decode()


def parts(data: mmap.mmap, message: Part, wanted: int) -> Iterator[Part]:
    """Where a message's fields of bytes with a number are; raises ValueError for what is no message."""
    place, end = message
    while place < end:
        tag, place = varint(data, place)
        number, form = tag >> 3, tag & 7
        if form == BYTES:
            size, place = varint(data, place)
            if number == wanted:
                yield place, place + size
            place += size
        elif form == VARINT:
            _, place = varint(data, place)
        elif form in (WIDE, NARROW):
            place += 8 if form == WIDE else 4
        else:
            raise ValueError("a group")
        if place > end:
            raise ValueError("a field ends behind its message")


def varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number that is too long")
