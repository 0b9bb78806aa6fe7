"""A program as an object: what it takes and gives, its file, its certificate, and what it refuses by name."""

import base64
import copy
import json
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)

from fastinfer._core import Task
from fastinfer.errors import ConfigurationError, InvalidRecordError, ModelLoadError, UnknownCategoryError
from fastinfer.preprocessing.program import Program
from fastinfer.preprocessing.spec import OPERATIONS

FRAME = pd.DataFrame({
    "age": [39.0, 25.5, np.nan, 61.0],
    "job": pd.Series(["clerk", "cook", None, "Ärztin"], dtype="str"),
    "branch": [1, 2, 2, 7],
    "member": [True, False, True, True],
    "id": ["a", "b", "c", "d"],
})
PIPELINE = ColumnTransformer([
    ("age", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["age"]),
    ("job", OneHotEncoder(handle_unknown="ignore"), ["job"]),
    ("branch", OneHotEncoder(sparse_output=False), ["branch"]),
    ("member", OrdinalEncoder(), ["member"]),
    ("log", make_pipeline(SimpleImputer(), FunctionTransformer(np.log1p)), ["age"]),
    ("bins", make_pipeline(SimpleImputer(), KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf")), ["age"]),
]).fit(FRAME)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program.from_sklearn(PIPELINE, sample=FRAME, dtype="float32")


@pytest.fixture
def document(program: Program) -> dict[str, Any]:
    return json.loads(program.to_json())


def load(document: Any) -> Program:
    return Program.from_json(json.dumps(document))


def uncertified(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "certificate"}


# ---- what it takes ---------------------------------------------------------------------------------------------
def test_columns(program: Program) -> None:
    assert [(c.name, c.datatype, c.dtype, c.nullable) for c in program.columns] == [
        ("age", "FP64", "float64", True), ("job", "BYTES", "str", True), ("branch", "INT64", "int64", False),
        ("member", "BOOL", "bool", False)]
    assert program.ignored == ("id",)
    assert program.columns[1].categories == ("clerk", "cook", "Ärztin")
    assert program.columns[1].example == "clerk"
    assert [(t.name, t.datatype, t.shape, t.nullable, t.column) for t in program.signature.inputs] == [
        ("age", "FP64", (-1, 1), True, True), ("job", "BYTES", (-1, 1), True, True),
        ("branch", "INT64", (-1, 1), False, True), ("member", "BOOL", (-1, 1), False, True)]
    assert list(program.get_feature_names_out()) == [
        "age__age", "age__missingindicator_age", "job__job_clerk", "job__job_cook", "job__job_Ärztin", "job__job_nan",
        "branch__branch_1", "branch__branch_2", "branch__branch_7", "member__member", "log__age", "bins__age_0.0",
        "bins__age_1.0", "bins__age_2.0"]
    assert (program.width, program.dtype) == (14, "float32")


def test_the_range_of_numbers_is_told_and_decides_nothing(program: Program, tmp_path: Path) -> None:
    ranges = {column.name: column.range for column in program.columns}
    assert ranges == {"age": (25.5, 61.0), "job": None, "branch": None, "member": None}
    program.save(tmp_path / "features.json")
    document = json.loads((tmp_path / "features.json").read_text())
    assert document["columns"][0]["range"] == [25.5, 61.0]
    assert Program.load(tmp_path / "features.json").columns == program.columns
    document["columns"][0]["range"] = [0, 1]
    (tmp_path / "other.json").write_text(json.dumps(document))
    assert Program.load(tmp_path / "other.json").columns[0].range == (0.0, 1.0)
    scaler = MinMaxScaler().fit([[1.0, 5.0], [3.0, 2.0]])
    assert [column.range for column in Program.from_sklearn(scaler).columns] == [(1.0, 3.0), (2.0, 5.0)]
    for wrong in ([2, 1], [1], "1 to 2"):
        document["columns"][0]["range"] = wrong
        (tmp_path / "other.json").write_text(json.dumps(document))
        with pytest.raises(ConfigurationError, match=r"columns\[0\]\.range"):
            Program.load(tmp_path / "other.json")


def test_every_holder_of_columns_gives_the_same(program: Program) -> None:
    expected = np.asarray(PIPELINE.transform(FRAME)).astype("float32")
    records = [{key: None if value != value else value for key, value in record.items()}
               for record in FRAME.to_dict("records")]
    for data in (FRAME, FRAME[["member", "job", "branch", "age"]], pl.from_pandas(FRAME), pa.Table.from_pandas(FRAME),
                 {name: FRAME[name].to_list() for name in FRAME}, {name: FRAME[name].to_numpy() for name in FRAME},
                 records, FRAME.astype({"age": object, "job": object, "branch": "Int64", "member": "boolean"}),
                 FRAME[["age", "job", "branch", "member"]].to_numpy(object)):
        got = program.transform(data)
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, expected)


def test_no_rows(program: Program) -> None:
    assert program.transform(FRAME[:0]).shape == (0, program.width)
    assert program.transform([]).shape == (0, program.width)


WRONG: list[tuple[str, list[Any], str]] = [
    ("age", [1.0, "old"], r"row 1, field 'age': str 'old', and the column takes numbers"),
    ("job", ["cook", 3], r"row 1, field 'job': int 3, and the column takes text"),
    ("branch", [1, None], r"row 1, field 'branch': missing, and the column takes integers"),
    ("branch", [1, 1.5], r"row 1, field 'branch': float 1.5, and the column takes integers"),
    ("branch", [1, True], r"row 1, field 'branch': bool True, and the column takes integers"),
    ("branch", [1, 2**63], r"row 1, field 'branch': int 9223372036854775808, and the column takes integers of 64"),
    ("member", [True, 1], r"row 1, field 'member': int 1, and the column takes true and false"),
    ("age", [1.0, np.inf], r"row 1, field 'age': infinite"),
]


@pytest.mark.parametrize(("name", "values", "message"), WRONG)
def test_a_wrong_value_is_named(program: Program, name: str, values: list[Any], message: str) -> None:
    columns = {"age": [1.0, 2.0], "job": ["cook", "cook"], "branch": [1, 2], "member": [True, False], name: values}
    with pytest.raises(InvalidRecordError, match=message) as caught:
        program.transform(columns)
    assert caught.value.at == f"$.records[1].{name}"


def test_an_unknown_category_is_named(program: Program) -> None:
    columns = {"age": [1.0] * 600, "job": ["pilot"] * 600, "branch": [1] * 599 + [3], "member": [True] * 600}
    with pytest.raises(UnknownCategoryError, match="row 599, field 'branch'") as caught:
        program.transform(columns)
    assert caught.value.at == "$.records[599].branch"


def test_a_missing_column_and_other_lengths_are_named(program: Program) -> None:
    with pytest.raises(InvalidRecordError, match="the column 'job' is missing"):
        program.transform(FRAME.drop(columns="job"))
    with pytest.raises(InvalidRecordError, match="the column 'job' has 1 rows"):
        program.transform({"age": [1.0, 2.0], "job": ["cook"], "branch": [1, 2], "member": [True, False]})
    with pytest.raises(InvalidRecordError, match="an array of shape"):
        program.transform(np.zeros((2, 7)))
    with pytest.raises(InvalidRecordError, match="row 0, field 'job': a text that is not valid Unicode"):
        program.transform({"age": [1.0], "job": ["\ud800"], "branch": [1], "member": [True]})
    with pytest.raises(InvalidRecordError, match="the column 'job' is str; it takes a list"):
        program.transform({"age": [1.0], "job": "cook", "branch": [1], "member": [True]})
    with pytest.raises(InvalidRecordError, match="the column 'age' is float; it takes a list"):
        program.transform({"age": 1.0, "job": ["cook"], "branch": [1], "member": [True]})
    with pytest.raises(InvalidRecordError, match="row 1: int, and rows are records, or lists as long as the first"):
        program.transform([[1.0, "cook", 1, True], 7])
    with pytest.raises(InvalidRecordError, match="a masked array"):
        program.transform({"age": np.ma.array([1.0], mask=[True]), "job": ["cook"], "branch": [1], "member": [True]})


def test_threads_share_a_program(program: Program) -> None:
    big = {name: np.tile(FRAME[name].to_numpy(object), 500) for name in ("age", "job", "branch", "member")}
    expected = program.transform(big)
    results: list[bool] = []

    def run() -> None:
        results.extend(np.array_equal(program.transform(big), expected) for _ in range(10))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


# ---- its file --------------------------------------------------------------------------------------------------
def test_save_and_load(program: Program, tmp_path: Path) -> None:
    task = Task("classifier", "label", "probabilities", ("bad", "good"))
    program.with_task(task).save(tmp_path / "features.json")
    again = Program.load(tmp_path / "features.json")
    assert again.task == task
    assert again.to_json() == program.with_task(task).to_json()
    np.testing.assert_array_equal(again.transform(FRAME), program.transform(FRAME))
    assert program.task is None


def test_a_line_a_step(program: Program) -> None:
    lines = program.to_json().splitlines()
    assert sum(line.startswith('    {"op": ') for line in lines) == len(program.spec.steps)
    assert max(map(len, lines[:-2])) < 1000


def test_loading_needs_no_scikit_learn(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "features.json")
    script = ("import sys; from fastinfer.preprocessing.program import Program; "
              f"Program.load({str(tmp_path / 'features.json')!r}); "
              "print([m for m in ('sklearn', 'pandas', 'scipy', 'onnxruntime', 'starlette') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"none\.json: No such file"):
        Program.load(tmp_path / "none.json")
    for text in ("", "{", '{"fastinfer": 1, "fastinfer": 1}', "[" * 100_000, "\ud800"):
        (tmp_path / "bad.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ConfigurationError, match=r"bad\.json: not JSON"):
            Program.load(tmp_path / "bad.json")


EDITS: list[tuple[str, Any, str]] = [
    ("$", [], "$: expected an object"),
    ("$.fastinfer", 3, "$.fastinfer: written by a newer fastinfer (format 3)"),
    ("$.fastinfer", 0, "$.fastinfer: expected a format from 1 to 2, got 0"),
    ("$.fastinfer", "1", "$.fastinfer: expected an integer"),
    ("$.stages", [], "$.stages: unknown member; known are fastinfer, columns, steps, output"),
    ("$.columns", {}, "$.columns: expected a list"),
    ("$.columns[0].name", 7, "$.columns[0].name: expected a string, got 7"),
    ("$.columns[0].name", "job", "$.columns[1]: the column 'job' stands twice"),
    ("$.columns[0].name", "\0code", "$.columns[0].name: expected a name that does not begin with NUL"),
    ("$.columns[0].datatype", "FP32", "$.columns[0].datatype: expected 'FP64' or 'INT64'"),
    ("$.columns[0].dtype", "int64", "$.columns[0].dtype: expected 'float64'"),
    ("$.columns[2].nullable", True, "$.columns[2].nullable: a column of datatype INT64 cannot be missing"),
    ("$.columns[0].nullable", 1, "$.columns[0].nullable: expected true or false"),
    ("$.columns[1].missing", "null", "$.columns[1].missing: expected 'nan' or 'none'"),
    ("$.columns[0].example", [1], "$.columns[0].example: expected a string, a number"),
    ("$.steps[0].op", "chek", "$.steps[0].op: expected 'cast' or 'check'"),
    ("$.steps[0].from", [], "$.steps[0].from: expected one value or more"),
    ("$.steps[0].from", ["agee"], "$.steps[0].from[0]: no column and no earlier step is called 'agee'"),
    ("$.steps[0].from", [["age"]], "$.steps[0].from[0]: expected a string"),
    ("$.steps[0].from", ["branch"], "$.steps[0].from[0]: 'branch' is integer, and the operation takes number or text"),
    ("$.steps[0].alow", "nan", "$.steps[0].alow: unknown member; known are op, from, allow, path"),
    ("$.steps[1].to", ["age"], "$.steps[1].to[0]: 'age' exists already"),
    ("$.steps[1].to", ["a", "b"], "$.steps[1].to: 2 values for 1"),
    ("$.steps[1].fill", [1.0, 2.0], "$.steps[1].fill: 2 entries for 1 values"),
    ("$.steps[1].fill", ["old"], '$.steps[1].fill[0]: expected a number, "nan", "inf" or "-inf", got "old"'),
    ("$.steps[1].fill", [10**400], "$.steps[1].fill[0]: expected a number within float64"),
    ("$.steps[1].missing", "none", '$.steps[1].missing: expected "nan" or a number'),
    ("$.steps[1].missing", {"txt": "?"}, "$.steps[1].missing.txt: unknown member"),
    ("$.output.dtype", "float16", "$.output.dtype: expected 'float64' or 'float32'"),
    ("$.output.allow", "all", "$.output.allow: expected 'finite' or 'nan' or 'any'"),
    ("$.output.features", [], "$.output.features: 0 features; a program gives 1 to 16,384"),
    ("$.output.features[0].value", "nope", "$.output.features[0].value: no column and no step is called 'nope'"),
    ("$.output.features[0].value", "job", "$.output.features[0].value: 'job' is text; cast or encode it"),
    ("$.ignored", [1], "$.ignored[0]: expected a string"),
    ("$.task", {"kind": "ranker"}, "$.task.kind: expected 'classifier' or 'regressor'"),
    ("$.task", {"kind": "classifier"}, "$.task: the member 'label' is missing"),
    ("$.task", {"kind": "classifier", "label": "l", "probabilities": "p"}, "$.task: probabilities need the names"),
    ("$.task", {"kind": "classifier", "label": "l", "classes": ["a", "a"]}, "$.task.classes: a class stands twice"),
    ("$.task", {"kind": "regressor", "value": 3}, "$.task.value: expected a string"),
]


def edited(document: dict[str, Any], path: str, value: Any) -> Any:
    """The document with the place changed."""
    if path == "$":
        return value
    changed = copy.deepcopy(document)
    *way, last = path.replace("[", ".[").split(".")[1:]
    target: Any = changed
    for part in way:
        target = target[int(part[1:-1])] if part.startswith("[") else target[part]
    target[int(last[1:-1]) if last.startswith("[") else last] = value
    return changed


@pytest.mark.parametrize(("path", "value", "message"), EDITS)
def test_a_fault_is_named_by_its_place(document: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(edited(uncertified(document), path, value))
    assert str(caught.value).startswith(message)
    assert caught.value.at == message.split(": ")[0]


def steps_of(op: str, document: dict[str, Any]) -> int:
    return next(i for i, step in enumerate(document["steps"]) if step["op"] == op)


ENCODING_EDITS: list[tuple[str, str, Any, str]] = [
    ("onehot", "categories", ["clerk", "clerk", "cook"], "categories: a category stands twice"),
    ("onehot", "categories", ["clerk"], "categories: 1 categories and 3 results"),
    ("onehot", "categories", ["a", "b", 1], "categories[0]: expected a number"),
    ("onehot", "categories", [1, 2, 3], "categories[0]: expected a category of kind text"),
    ("onehot", "positions", [0, 1, 9], "positions: a position past the 4 values of `to`"),
    ("onehot", "positions", [0, 1, -1], "positions[2]: expected a position from 0 on, or null"),
    ("onehot", "unknown", "zeros", "unknown: expected an integer"),
    ("ordinal", "unknown", None, 'unknown: expected a number, "nan"'),
    ("ordinal", "codes", [0.0], "categories: 2 categories and 1 results"),
    ("bucketize", "edges", [2.0, 1.0], "edges: the edges must ascend"),
    ("bucketize", "edges", ["nan"], "edges: the edges must ascend"),
    ("function", "function", "system", "function: expected 'absolute' or 'ceil'"),
    ("function", "dtype", "float16", "dtype: expected 'float64' or 'float32'"),
]


@pytest.mark.parametrize(("op", "member", "value", "message"), ENCODING_EDITS)
def test_a_fault_of_an_encoding(document: dict[str, Any], op: str, member: str, value: Any, message: str) -> None:
    i = steps_of(op, document)
    with pytest.raises(ConfigurationError) as caught:
        load(edited(uncertified(document), f"$.steps[{i}].{member}", value))
    assert str(caught.value).startswith(f"$.steps[{i}].{message}")


def places(value: Any, path: str = "$") -> list[str]:
    found = [path]
    if isinstance(value, dict):
        found += [place for key, item in value.items() for place in places(item, f"{path}.{key}")]
    elif isinstance(value, list):
        found += [place for i, item in enumerate(value) for place in places(item, f"{path}[{i}]")]
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
    | st.sampled_from(["nan", "none", "refuse", "float32", "age", "job", "age@1", 0, 1, -1, 2**63, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "op", "name"]), inner),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_edit_loads_or_is_refused(program: Program, data: st.DataObject) -> None:
    """Whatever is written at whatever place: a working program or a ConfigurationError, never anything else."""
    document = json.loads(program.to_json())
    document = uncertified(document) if data.draw(st.booleans()) else document
    path = data.draw(st.sampled_from(places(document)))
    try:
        changed = load(edited(document, path, data.draw(json_values)))
    except ConfigurationError:
        return
    try:
        out = changed.transform({name: FRAME[name].to_list() for name in FRAME})
    except (InvalidRecordError, UnknownCategoryError):
        return
    assert out.shape == (len(FRAME), changed.width)


# ---- its certificate -------------------------------------------------------------------------------------------
def test_the_certificate_notices_another_number(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    fill = changed["steps"][1]["fill"]
    fill[0] = float(np.nextafter(fill[0], np.inf)) + 1e-5
    with pytest.raises(ModelLoadError, match=r"golden row \d+, feature \d+ \('age__age'\): expected .*, got .*age="):
        load(changed)
    assert load(uncertified(changed)).columns[0].name == "age"


def test_the_certificate_notices_other_bytes(document: dict[str, Any], program: Program) -> None:
    raw = bytearray(zlib.decompress(base64.b64decode(document["certificate"]["expected"])))
    raw[0] ^= 1
    document["certificate"]["expected"] = base64.b64encode(zlib.compress(bytes(raw))).decode()
    with pytest.raises(ModelLoadError, match=r"golden row 0, feature 0 \('age__age'\)"):
        load(document)


def test_one_ulp_is_allowed_behind_a_logarithm_only(document: dict[str, Any], program: Program) -> None:
    names = list(program.get_feature_names_out())
    for feature, passes in (("log__age", True), ("age__age", False)):
        changed = copy.deepcopy(document)
        raw = zlib.decompress(base64.b64decode(changed["certificate"]["expected"]))
        cells = np.frombuffer(raw, "float32").reshape(-1, program.width).copy()
        cells[0, names.index(feature)] = np.nextafter(cells[0, names.index(feature)], np.float32(np.inf))
        changed["certificate"]["expected"] = base64.b64encode(zlib.compress(cells.tobytes())).decode()
        if passes:
            load(changed)
        else:
            with pytest.raises(ModelLoadError, match="age__age"):
                load(changed)


def test_a_change_that_no_golden_row_shows_is_noticed_too(document: dict[str, Any]) -> None:
    i = steps_of("onehot", document)
    document["steps"][i]["categories"][0] = "clerc"
    rows = document["certificate"]["rows"]["job"]
    document["certificate"]["rows"]["job"] = ["clerc" if value == "clerk" else value for value in rows]
    with pytest.raises(ModelLoadError, match="the program was changed after its certificate was made"):
        load(document)


@pytest.mark.parametrize(("member", "value", "message"), [
    ("expected", "!", r"is not base64 of deflated bytes"),
    ("expected", base64.b64encode(zlib.compress(b"\0" * 12)).decode(), r"holds 12 bytes for \d+ rows"),
    ("rows", {}, "the member 'age' is missing"),
    ("rows", {"age": [], "job": [], "branch": [], "member": []}, "has no rows"),
    ("rows", {"age": [1], "job": ["a"], "branch": [], "member": [True]}, "has not as many rows"),
    ("rows", {"age": [1], "job": ["a"], "branch": [2**63], "member": [True]}, "an integer of 64 bits"),
    ("spec", 5, "expected a string"),
    ("golden", 5, "unknown member"),
])
def test_a_broken_certificate(document: dict[str, Any], member: str, value: Any, message: str) -> None:
    document["certificate"][member] = value
    with pytest.raises(ConfigurationError, match=message):
        load(document)


def test_golden_rows_take_each_branch(document: dict[str, Any]) -> None:
    rows = document["certificate"]["rows"]
    assert {"clerk", "cook", "Ärztin", None, ""} < set(rows["job"])
    assert any(value not in ("clerk", "cook", "Ärztin", None, "") for value in rows["job"])
    assert set(rows["branch"]) == {1, 2, 7}
    assert set(rows["member"]) == {True, False}
    assert "nan" in rows["age"]
    assert len({len(values) for values in rows.values()}) == 1


def test_the_reference_names_each_operation_and_parameter() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "features.md").read_text()
    for name, operation in OPERATIONS.items():
        assert f"`{name}`" in page
        assert all(f"`{parameter}`" in page for parameter in (*operation.required, *operation.optional))
