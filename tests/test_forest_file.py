"""The file of an imported forest: it comes back as it was written, and a damaged one is refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

import fastinfer
from fastinfer.errors import ModelLoadError
from fastinfer.importing import import_pipeline
from fastinfer.runtimes.forest import planted

RNG = np.random.default_rng(2)
ROWS = RNG.normal(size=(200, 3))
ROWS[:, 2] = RNG.integers(0, 9, 200)
LABELS = np.array(["no", "yés"])[((ROWS[:, 0] > 0) ^ (ROWS[:, 2] % 2 == 0)) * 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    fitted = HistGradientBoostingClassifier(max_iter=3, categorical_features=[2]).fit(ROWS, LABELS)
    import_pipeline(fitted, root / "histogram" / "1")
    import_pipeline(RandomForestClassifier(3, max_depth=3).fit(ROWS, LABELS), root / "forest" / "1")
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> bytes:
    return (folder / "histogram" / "1" / "model.npz").read_bytes()


def about(data: bytes) -> dict:
    return json.loads(np.load(io.BytesIO(data), allow_pickle=False)["about"].tobytes())


def changed(data: bytes, **members) -> bytes:
    arrays = dict(np.load(io.BytesIO(data), allow_pickle=False)) | members
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    return stream.getvalue()


def said(data: bytes, **entries) -> bytes:
    text = json.dumps(about(data) | entries).encode()
    return changed(data, about=np.frombuffer(text, np.uint8))


def test_numpy_reads_it_and_it_comes_back(data: bytes) -> None:
    assert about(data)["labels"] == ["no", "yés"]
    assert about(data)["version"] == 1
    first = planted(data)
    again = planted(first.file())
    features = np.concatenate([ROWS, np.full((1, 3), np.nan)])
    for name, answer in first.forest().run({"features": features}).items():
        assert again.forest().run({"features": features})[name].tolist() == answer.tolist()


def test_it_is_served_in_a_folder_and_as_a_file_with_its_program(folder: Path) -> None:
    for name in ("histogram", "forest"):
        for path in (folder / name, folder / name / "1" / "model.npz"):
            model = fastinfer.load(path)
            assert (model.platform, model.batch_invariant) == ("fastinfer_forest", True)
            answers = model.predict({f"x{i}": ROWS[:, i] for i in range(3)})
            assert set(answers["label"]) == {"no", "yés"}


def test_a_file_cut_or_changed_anywhere_is_refused_or_answers(data: bytes) -> None:
    for length in range(0, len(data), 17):
        with pytest.raises(ModelLoadError):
            planted(data[:length]).forest()
    refused = 0
    for place in RNG.integers(0, len(data), 1500).tolist():
        bad = bytearray(data)
        bad[place] ^= 1 << int(RNG.integers(8))
        try:
            planted(bytes(bad)).forest().run({"features": ROWS})
        except (ModelLoadError, ValueError):
            refused += 1
    assert refused > 1000  # what is left are dates and other fields that nobody reads


def test_it_may_not_be_compressed(data: bytes) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", b"x" * 1000)
    with pytest.raises(ModelLoadError, match="compressed"):
        planted(stream.getvalue())


@pytest.mark.parametrize(("entries", "message"), [
    ({"version": 2}, "it is of version 2, and this fastinfer reads 1"),
    ({"version": "x"}, "it is of version x"),
    ({"width": 2}, "a node reads none of the 2 features"),
    ({"width": 1e9}, "width is not a whole number"),
    ({"link": 3}, "link is '3', which it cannot be"),
    ({"link": "probit"}, "probit"),
    ({"colour": "red"}, "colour is 'red', which it cannot be"),
    ({"labels": ["a"]}, "1 labels do not go with 1 outputs"),
    ({"labels": ["a", 1]}, "its labels are not text, integers or booleans"),
    ({"labels": [1 << 70, 1]}, "its labels are not text, integers or booleans"),
    ({"labels": ["\ud800", "a"]}, "its labels are not text, integers or booleans"),
    ({"sentinel": "x"}, "sentinel is not a number"),
])  # fmt: skip
def test_what_it_says_of_itself_is_checked(data: bytes, entries: dict, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        planted(said(data, **entries)).forest()


@pytest.mark.parametrize(("members", "message"), [
    ({"starts": None}, "its arrays are not starts"),
    ({"about": None}, "damaged"),
    ({"about": np.frombuffer(b"[1]", np.uint8)}, "damaged"),
    ({"left": np.zeros(3)}, "left is not an array of int32"),
    ({"left": np.array([None])}, "damaged"),
    ({"extra": np.zeros(3)}, "its arrays are not starts"),
])  # fmt: skip
def test_its_arrays_are_checked(data: bytes, members: dict, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        planted(changed(data, **members)).forest()


def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.npz").write_bytes(data[:-50])
    with pytest.raises(ModelLoadError, match=r"model\.npz: the forest cannot be read: it is damaged"):
        fastinfer.load(tmp_path / "model.npz")
