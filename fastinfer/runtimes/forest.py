"""Forests that the core runs: trees as arrays, whatever library made them, and the file that the import writes.

The file is a zip archive of numpy arrays, as ``numpy.load(path, allow_pickle=False)`` reads it: those of
`fastinfer._core.Forest`, and ``about``, UTF-8 JSON, which holds the rest.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer._core import Engine, Forest, Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays, Runtime
from fastinfer.settings import ModelConfig, Settings

VERSION = 1
KINDS = {"strict": bool, "sentinel": str, "divisor": float, "link": str, "slope": float, "rule": str, "answers": str}


class Planted(NamedTuple):
    """A forest that is not yet in the core.

    Attributes:
        arrays: of `fastinfer._core.Forest`.
        options: its other arguments.
        names: of the features, where the file has some that somebody gave.
    """

    arrays: Arrays
    options: dict[str, Any]
    names: tuple[str, ...] = ()

    def forest(self) -> Forest:
        """
        Raises:
            ModelLoadError: the arrays are no forest.
        """
        return Forest(self.arrays, **self.options)

    def file(self) -> bytes:
        """The bytes of a file that `load` reads."""
        about = {name: value for name, value in self.options.items() if name != "labels"}
        about["sentinel"] = repr(float(about.get("sentinel", np.nan)))  # text: JSON has no NaN
        labels = self.options.get("labels")
        about |= {"version": VERSION, "labels": None if labels is None else labels.tolist()}
        text = json.dumps(about, ensure_ascii=False).encode()
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, about=np.frombuffer(text, np.uint8), **self.arrays)
        return stream.getvalue()


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load a forest that the import wrote.

    Raises:
        ModelLoadError: it is damaged, or of a newer version.
    """
    return served(path, planted, "forest", "fastinfer_forest")


def served(
    path: Path, plant: Callable[[bytes], Planted], what: str, platform: str, *, nullable: bool = False
) -> Runtime:
    """The forest that ``plant`` makes of a file's bytes; ``what`` the file is, for the message.

    Args:
        nullable: a value may be missing, which JSON says with null.

    Raises:
        ModelLoadError: it cannot be read.
    """
    try:
        found = plant(path.read_bytes())
        return ForestRuntime(found.forest(), platform, nullable, found.names)
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from None
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: the {what} cannot be read: {error}") from None


def planted(data: bytes) -> Planted:
    """The forest in a file's bytes.

    Raises:
        ModelLoadError: why there is none.
    """
    try:
        arrays = members(data)
        about = json.loads(arrays.pop("about").tobytes())
        version = about.pop("version")
        labels = about.pop("labels", None)
        width = about.pop("width")
    except ModelLoadError:
        raise
    except Exception as error:  # zipfile's, numpy's and json's share no base
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelLoadError(f"it is damaged ({reason})") from None
    if not isinstance(version, int) or version > VERSION:
        raise ModelLoadError(f"it is of version {version}, and this fastinfer reads {VERSION}")
    for name, value in about.items():
        if not isinstance(value, KINDS.get(name, ())):
            raise ModelLoadError(f"{name} is {str(value)[:40]!r}, which it cannot be")
    if type(width) is not int or abs(width) > 1 << 40:
        raise ModelLoadError("width is not a whole number")
    try:
        about["sentinel"] = float(about.get("sentinel", "nan"))
    except ValueError:
        raise ModelLoadError("sentinel is not a number") from None
    return Planted(arrays, {**about, "width": width, "labels": None if labels is None else label_array(labels)})


def members(data: bytes) -> Arrays:
    """The arrays of an archive, none of them compressed: they are no larger than the file. Each has a checksum."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ModelLoadError("an array is compressed")
            array = np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
            arrays[member.filename.removesuffix(".npy")] = np.ascontiguousarray(array)
    return arrays


def label_array(labels: Any) -> NDArray[Any]:
    """Labels as the core takes them: booleans, int64, or text as objects.

    Raises:
        ModelLoadError: they are something else, or of several kinds.
    """
    for kind, dtype in ((bool, np.bool_), (int, np.int64), (str, object)):
        if isinstance(labels, list) and labels and all(type(label) is kind for label in labels):
            try:
                "".join(map(str, labels)).encode()
                return np.array(labels, dtype)
            except (OverflowError, UnicodeEncodeError):
                break
    raise ModelLoadError("its labels are not text, integers or booleans")


class Sets(NamedTuple):
    """Which categories go right, one set a node that splits on them."""

    starts: NDArray[np.int64]
    words: NDArray[np.uint32]

    @classmethod
    def of(cls, sides: Iterable[NDArray[np.bool_]]) -> "Sets":
        """Of the sides of (missing, unknown, category 0, 1, …): true is right. Beyond the last, unknown's side."""
        words = [packed(each) for each in sides]
        starts = np.concatenate([[0], np.cumsum([len(each) for each in words])]).astype(np.int64)
        return cls(starts, np.concatenate(words) if words else np.empty(0, np.uint32))


def packed(sides: NDArray[np.bool_]) -> NDArray[np.uint32]:
    whole = np.full(-(-len(sides) // 32) * 32, sides[1])
    whole[: len(sides)] = sides
    return np.packbits(whole, bitorder="little").view("<u4").astype(np.uint32)


def tables(values: dict[int, NDArray[np.float64]]) -> Arrays:
    """The arrays of the features whose categories are places among values, by feature; most forests have none."""
    starts = np.concatenate([[0], np.cumsum([len(each) for each in values.values()])]).astype(np.int64)
    joined = np.concatenate(list(values.values())) if values else np.empty(0)
    return {"table_features": np.array(list(values), np.int32), "table_starts": starts, "tables": joined}


class ForestRuntime:
    """Trees in the core.

    Args:
        forest: laid out.
        platform: as the protocol's metadata names it.
        nullable: a value may be missing.
        names: of the features.
    """

    inline = True

    def __init__(self, forest: Forest, platform: str, nullable: bool = False, names: tuple[str, ...] = ()) -> None:
        self.native: Engine | None = forest
        self.platform = platform
        self.inputs = [Tensor(*each, nullable=nullable, features=() if each[0] in names else names)
                       for each in forest.inputs]
        self.outputs = [Tensor(*each) for each in forest.outputs]
        self.classes: dict[str, tuple[str, ...]] = {}
        self.run_forest = forest.run

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch."""
        return self.run_forest(inputs)
