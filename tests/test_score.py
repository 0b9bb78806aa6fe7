"""`fastinfer score`: files in and out, bad rows, interruptions; the same bytes in process, in files and over HTTP."""

import decimal
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_models
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import fastinfer
from fastinfer import scoring
from fastinfer.cli import main
from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing.program import Program
from fastinfer.scoring import checkpoint, fields, sources

PACKAGE = Path(fastinfer.__file__).parent.parent
FORMS = ["parquet", "csv", "ndjson", "csv.gz", "ndjson.gz"]
ROWS = 150


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FASTINFER_")}
    return {**kept, "PYTHONPATH": paths}


def applications(rows: int) -> pd.DataFrame:
    random = np.random.default_rng(7)
    frame = pd.DataFrame({
        "id": [f"no {i}" for i in range(rows)],
        "age": random.integers(18, 80, rows).astype(float),
        "income": random.lognormal(7, 1, rows),
        "job": random.choice(["fixed", "freelance", "part, time", 'a "job"', "é\nü"], rows),
        "children": random.integers(0, 4, rows),
    })
    frame.loc[frame.index % 7 == 3, "income"] = np.nan
    frame.loc[frame.index % 11 == 5, "job"] = None
    return frame


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from fastinfer.importing import import_pipeline

    root = tmp_path_factory.mktemp("models")
    frame = applications(400).drop(columns="id")
    job = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    steps = make_column_transformer(
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["age", "income"]), (job, ["job"]),
        remainder="passthrough")
    trees = GradientBoostingClassifier(n_estimators=15, max_depth=2, random_state=0)
    labels = np.where(frame["income"].fillna(0) + 20 * frame["age"] > 2500, "good", "bad")
    import_pipeline(make_pipeline(steps, trees).fit(frame, labels), root / "credit" / "1", sample=frame)
    onnx_models.with_program(root / "people" / "1")
    onnx_models.with_dates(root / "dates" / "1")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    onnx_models.classifier(root / "classifier" / "1" / "model.onnx")
    onnx_models.two_inputs(root / "two" / "1" / "model.onnx")
    onnx_models.picky(root / "picky" / "1" / "model.onnx")
    onnx_models.identity(root / "words" / "1" / "model.onnx", "BYTES", ["n", 1])
    onnx_models.identity(root / "varying" / "1" / "model.onnx", "FP32", ["n", "m"])
    onnx_models.identity(root / "flags" / "1" / "model.onnx", "BOOL", ["n", 1])
    onnx_models.identity(root / "single" / "1" / "model.onnx", "FP32", [1, 3])
    onnx_models.fixed_batch(root / "fixed" / "1" / "model.onnx")
    jobs = pd.DataFrame({"job": pd.Series(["clerk", None], dtype=object)})
    for name, program in (
        ("decimals", Program.fit({"age": [1.0, 2.0]}, {"features": [{"columns": "age"}]})),
        ("nones", Program.from_sklearn(OneHotEncoder(handle_unknown="ignore").fit(jobs), sample=jobs)),
    ):
        onnx_models.identity(root / name / "1" / "model.onnx", "FP64", ["n", program.width])
        program.save(root / name / "1" / "features.json")
    return root


@pytest.fixture
def small(monkeypatch):
    """Many blocks in a small file, and a state after each."""
    monkeypatch.setattr(sources, "CHUNK", 700)
    monkeypatch.setattr(scoring, "CHUNK", 700)
    monkeypatch.setattr(fields, "MIN_ROWS", 1)
    monkeypatch.setattr(fields, "MAX_ROWS", 23)
    monkeypatch.setattr(checkpoint, "INTERVAL", 0)


def write(frame: pd.DataFrame, path: Path) -> Path:
    """A file of the suffix's format; NDJSON and CSV with every digit of the floats."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False, row_group_size=50)
    else:
        plain = "csv" in path.name
        text = frame.to_csv(index=False, lineterminator="\n") if plain else "".join(
            json.dumps({k: None if v is None or v != v else v for k, v in row.items()}) + "\n"
            for row in frame.to_dict("records"))
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pandas()
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".csv" in path.suffixes[-2:] and path.suffix != ".ndjson":
        table = pa.csv.read_csv(pa.BufferReader(data))
        return table.to_pandas()
    return pd.DataFrame([flat(json.loads(line)) for line in data.splitlines()])


def flat(record: dict) -> dict:
    found = {}
    for key, value in record.items():
        found |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def rejects_of(out: Path) -> list[dict]:
    file = out.with_name(out.name + ".rejects.ndjson")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def left(folder: Path) -> set[str]:
    """Files that only an unfinished run has."""
    return {each.name for each in folder.iterdir() if each.name.endswith((".partial", ".state.json", ".new"))}


# -- the same everywhere ---------------------------------------------------------------------------------------------
def test_the_same_bytes_in_process_in_files_and_over_http(models, tmp_path, start_server):
    """A pipeline with a feature program: floats bit by bit, and JSON text as the server writes it."""
    frame = applications(120)
    model = fastinfer.load(models / "credit")
    want = model.predict(frame)
    outs = {}
    for name in ("parquet", "csv", "ndjson"):
        source = write(frame, tmp_path / f"in.{name}")
        for target in ("parquet", "csv", "ndjson"):
            out = tmp_path / f"{name}.{target}"
            assert main(["score", str(models / "credit"), str(source), "--out", str(out)]) == 0
            outs[name, target] = out
    probabilities = want[model.task.probabilities]
    for out in outs.values():
        got = read(out)
        assert list(got) == ["row", "label", "probabilities.bad", "probabilities.good"]
        assert got["label"].tolist() == list(want[model.task.label].ravel())
        for i, name in enumerate(model.task.classes):
            assert got[f"probabilities.{name}"].to_numpy(np.float32).tobytes() == probabilities[:, i].tobytes()
    for target in ("parquet", "csv", "ndjson"):
        assert len({outs[name, target].read_bytes() for name in ("parquet", "csv", "ndjson")}) == 1

    server = start_server(models / "credit")
    records = [json.loads(line) for line in (tmp_path / "in.ndjson").read_text().splitlines()]
    for record in records:
        del record["id"]
    with server.client() as client:
        answer = client.post("/v1/models/credit:predict", json={"records": records}).text
    lines = outs["parquet", "ndjson"].read_text().splitlines()
    bare = ["{" + line.split(",", 1)[1] for line in lines]
    assert answer.endswith('"predictions":[' + ",".join(bare) + "]}")


def test_the_same_bytes_of_a_bare_model(models, tmp_path, start_server):
    """Tensors as columns of lists, as a column a feature, and as NDJSON."""
    x = np.random.default_rng(1).standard_normal((60, 4)).astype(np.float32)
    want = fastinfer.load(models / "affine").predict(x)["y"]
    wide = pd.DataFrame(x.astype(float), columns=list("abcd"))
    pq.write_table(pa.table({"x": x.tolist()}), tmp_path / "list.parquet")
    pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)}),
                   tmp_path / "fixed.parquet")
    for name in ("wide.parquet", "wide.csv", "wide.ndjson"):
        write(wide, tmp_path / name)
    (tmp_path / "nested.ndjson").write_text("".join(json.dumps({"x": row}) + "\n" for row in x.tolist()))
    texts = set()
    for source in ("list.parquet", "fixed.parquet", "wide.parquet", "wide.csv", "wide.ndjson", "nested.ndjson"):
        for target in ("parquet", "csv", "ndjson"):
            out = tmp_path / f"{source}.out.{target}"
            assert main(["score", str(models / "affine"), str(tmp_path / source), "--out", str(out)]) == 0
            got = read(out)["y"]
            rows = [json.loads(row) if isinstance(row, str) else list(row) for row in got]
            assert np.array(rows, dtype=np.float32).tobytes() == want.tobytes()
        texts.add(out.read_text())
    assert len(texts) == 1
    server = start_server(models / "affine")
    with server.client() as client:
        answer = client.post("/v1/models/affine:predict", json={"records": [{"x": row} for row in x.tolist()]}).text
    bare = ["{" + line.split(",", 1)[1] for line in texts.pop().splitlines()]
    assert answer.endswith('"predictions":[' + ",".join(bare) + "]}")


# -- formats and bad rows --------------------------------------------------------------------------------------------
def spoiled() -> pd.DataFrame:
    frame = pd.DataFrame({"age": np.linspace(1, 90, ROWS), "job": ["clerk", "fixed", "other"] * (ROWS // 3),
                          "id": range(ROWS)})
    frame.loc[4, "age"] = np.nan
    frame.loc[75, "job"] = "nobody"
    frame.loc[[76, 149], "job"] = None
    return frame


@pytest.mark.parametrize("source", FORMS)
def test_nothing_is_lost(models, tmp_path, small, source):
    frame = spoiled()
    write(frame, tmp_path / f"in.{source}")
    for target in FORMS:
        out = tmp_path / f"out.{target}"
        summary = scoring.score(models / "people", tmp_path / f"in.{source}", out, keep=["id"])
        assert (summary.scored, summary.rejected, summary.interrupted) == (ROWS - 4, 4, False)
        got, rejects = read(out), rejects_of(out)
        assert list(got) == ["row", "id", "value"]
        assert [(each["row"], each["field"], each["code"]) for each in rejects] == [
            (4, "age", "invalid_record"), (75, "job", "unknown_category"), (76, "job", "invalid_record"),
            (149, "job", "invalid_record")]
        assert sorted([*got["row"], *(each["row"] for each in rejects)]) == list(range(ROWS))
        assert got["id"].astype(int).tolist() == got["row"].tolist()
        good = frame.drop(index=[4, 75, 76, 149])[["age", "job"]]
        want = fastinfer.load(models / "people").predict(good)["value"].ravel()
        assert got["value"].to_numpy(np.float32).tobytes() == want.tobytes()
        assert left(tmp_path) == set()


def test_csv_as_people_write_it(models, tmp_path, small):
    text = ("\ufeffjob,unread,age\r\n"
            "clerk,x,30\r\n"
            '"fixed","a ""quoted"",\nfield", 40.5 \r\n'
            "\r\n"
            "other,,thirty\r\n"
            "other,y,1e1\r\n"
            "clerk,y\r\n"
            "clerk,y,1,2\r\n"
            "fixed,5\" pipe,NA\r\n"
            "clerk,y,inf\r\n"
            "clerk,y,+3\r\n").encode() + b"cl\xffrk,y,3\r\nclerk,,-2"
    (tmp_path / "in.csv").write_bytes(text)
    out = tmp_path / "out.csv"
    assert main(["score", str(models / "people"), str(tmp_path / "in.csv"), "--out", str(out)]) == 1
    rejects = rejects_of(out)
    assert [(each["row"], each["line"], each.get("field")) for each in rejects] == [
        (2, 6, "age"), (4, 8, None), (5, 9, None), (6, 10, "age"), (7, 11, "age"), (9, 13, None)]
    assert rejects[0]["reason"] == "the text 'thirty', and the column takes numbers"
    assert rejects[1]["reason"] == "2 fields, the header has 3"
    assert rejects[5]["reason"] == "not valid UTF-8"
    want = fastinfer.load(models / "people").predict({
        "age": [30, 40.5, 10, 3, -2], "job": ["clerk", "fixed", "other", "clerk", "clerk"]})["value"]
    assert read(out)["row"].tolist() == [0, 1, 3, 8, 10]
    assert read(out)["value"].to_numpy(np.float32).tobytes() == want.tobytes()


def test_a_mark_of_byte_order_at_the_beginning_of_a_row_is_a_character(models, tmp_path):
    (tmp_path / "in.csv").write_text("job,age\n\ufeffclerk,30\nclerk,30\n")
    scoring.score(models / "people", tmp_path / "in.csv", tmp_path / "out.csv")
    assert [(each["row"], each["code"]) for each in rejects_of(tmp_path / "out.csv")] == [(0, "unknown_category")]


def test_integers_booleans_and_text_in_csv(models, tmp_path):
    cases = {
        "picky": ("i", ["0", "3.0", "1.5", "x", "9223372036854775808", "", "99", "2"], [0, 1, 7]),
        "flags": ("x", ["true", "False", "yes", "1", "", "TRUE"], [0, 1, 5]),
        "words": ("x", ["a", "b c", '"d,e"', "NA"], [0, 1, 2]),
    }
    for name, (column, values, good) in cases.items():
        (tmp_path / "in.csv").write_text("\n".join([f"{column},_", *(f"{value},_" for value in values)]))
        out = tmp_path / f"{name}.ndjson"
        assert main(["score", str(models / name), str(tmp_path / "in.csv"), "--out", str(out)]) == 1
        assert read(out)["row"].tolist() == good
        assert [each["row"] for each in rejects_of(out)] == [row for row in range(len(values)) if row not in good]
    assert {each["code"] for each in rejects_of(tmp_path / "picky.ndjson")} == {"invalid_record", "runtime_failed"}


def test_lines_that_are_no_records(models, tmp_path, small, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ROW", 2000)
    lines = ['{"age":30,"job":"clerk","more":[{"a":null}]}', "", '{"age":30', '{"age":"30","job":"clerk"}',
             '{"age":1,"job":"clerk"},{"age":1,"job":"clerk"}', '{"age":1,"job":"clerk","age":2}', "[1]",
             '{"job":"clerk"}', '{"age":40,"job":"' + "x" * 5000 + '"}', "[" * 500, '{"age":[1],"job":"clerk"}',
             '{"age":40,"job":"fixed"}']
    (tmp_path / "in.ndjson").write_text("\n".join(lines))
    out = tmp_path / "out.ndjson"
    assert main(["score", str(models / "people"), str(tmp_path / "in.ndjson"), "--out", str(out)]) == 1
    assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [0, 10]
    rejects = rejects_of(out)
    assert [(each["row"], each["line"]) for each in rejects] == [(row, row + 2) for row in range(1, 10)]
    assert [each["code"] for each in rejects] == [
        "invalid_json", "invalid_record", "invalid_json", "invalid_json", "invalid_record", "invalid_record",
        "invalid_record", "invalid_json", "invalid_record"]
    assert rejects[1]["reason"] == 'FP64 takes a number, got "30"'
    assert rejects[5]["reason"] == "lacks the field 'age'"
    assert "longer than" in rejects[6]["reason"]


def test_types_of_parquet(models, tmp_path):
    """What is text in a frame may be a dictionary, what is a number may be a decimal."""
    ages = [30, 40, None]
    for kind in (pa.int8(), pa.float32(), pa.decimal128(25, 1), pa.dictionary(pa.int8(), pa.int64())):
        age = pa.array(ages, pa.int64()).cast(pa.int64() if pa.types.is_dictionary(kind) else kind)
        age = age.dictionary_encode() if pa.types.is_dictionary(kind) else age
        for job in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
            jobs = pa.array(["clerk", "fixed", "other"])
            jobs = jobs.dictionary_encode() if pa.types.is_dictionary(job) else jobs.cast(job)
            pq.write_table(pa.table({"job": jobs, "age": age, "job ": jobs}), tmp_path / "in.parquet")
            out = tmp_path / "out.parquet"
            scoring.score(models / "people", tmp_path / "in.parquet", out, keep=["age", "job"])
            want = fastinfer.load(models / "people").predict({"age": [30.0, 40.0], "job": ["clerk", "fixed"]})["value"]
            assert read(out)["value"].to_numpy(np.float32).tobytes() == want.tobytes()
            assert [each["row"] for each in rejects_of(out)] == [2]


def test_decimals_are_read_and_kept_to_the_last_digit(models, tmp_path):
    digits = ["0.000000776", "0.57", "1234567890123456.789012345", "-99.99"]
    ages = pa.array([decimal.Decimal(text) for text in digits], pa.decimal128(30, 9))
    rows = pa.table({"age": ages, "job": ["clerk"] * 4, "id": ages})
    pq.write_table(rows, tmp_path / "in.parquet")
    model = fastinfer.load(models / "decimals")
    want = model.predict({"age": [float(text) for text in digits]})["y"]
    outs = {form: tmp_path / f"out.{form}" for form in ("parquet", "ndjson", "csv")}
    for out in outs.values():
        scoring.score(models / "decimals", tmp_path / "in.parquet", out, keep=["id"])
    assert read(outs["parquet"])["y"].tolist() == want[:, 0].tolist()
    assert pq.read_table(outs["parquet"])["id"].to_pylist() == ages.to_pylist()
    assert outs["csv"].read_text().splitlines()[3].startswith('2,"1234567890123456.789012345",')
    assert outs["ndjson"].read_text().splitlines()[2].startswith('{"row":2,"id":1234567890123456.789012345,')


def test_a_column_of_nothing_but_nulls_is_of_missing_texts(models, tmp_path):
    """None, where the pipeline was fitted on None, though Arrow has no type for the column."""
    pq.write_table(pa.table({"job": pa.nulls(2)}), tmp_path / "in.parquet")
    (tmp_path / "in.ndjson").write_text('{"job":null}\n{"job":null}\n')
    outs = []
    for form in ("parquet", "ndjson"):
        scoring.score(models / "nones", tmp_path / f"in.{form}", tmp_path / f"{form}.out.ndjson")
        outs.append((tmp_path / f"{form}.out.ndjson").read_text())
    assert outs[0] == outs[1] == '{"row":0,"y":[0.0,1.0]}\n{"row":1,"y":[0.0,1.0]}\n'


def test_dates_are_text_or_timestamps(models, tmp_path):
    texts = ["2024-02-29T12:30:00.000001", "1969-12-31", "9999-12-31T23:00:00"]
    seen = [None, "2024-01-01", None]
    (tmp_path / "in.ndjson").write_text("".join(json.dumps({"when": a, "seen": b}) + "\n"
                                                for a, b in zip([*texts, "soon"], [*seen, None], strict=True)))
    (tmp_path / "in.csv").write_text("\n".join(["when,seen", *(f"{a},{b or ''}" for a, b in zip(texts, seen,
                                                                                               strict=True))]))
    moments = pa.array(texts).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"when": moments, "seen": pa.array(seen).cast(pa.date32())}), tmp_path / "in.parquet")
    outs = []
    for name in ("ndjson", "csv", "parquet"):
        out = tmp_path / f"{name}.out.ndjson"
        scoring.score(models / "dates", tmp_path / f"in.{name}", out)
        outs.append(out.read_text())
    assert len(set(outs)) == 1
    assert outs[0].count("\n") == 3
    assert [each["field"] for each in rejects_of(tmp_path / "ndjson.out.ndjson")] == ["when"]


def test_only_the_rows_on_which_the_model_fails_are_rejected(models, tmp_path, small):
    bad = {0, 21, 22, 23, 77, 99}
    frame = pd.DataFrame({"i": [9 if i in bad else i % 4 for i in range(100)]})
    for name in ("parquet", "csv", "ndjson"):
        out = tmp_path / f"{name}.out.csv"
        scoring.score(models / "picky", write(frame, tmp_path / f"in.{name}"), out)
        assert {each["row"] for each in rejects_of(out)} == bad
        assert {each["code"] for each in rejects_of(out)} == {"runtime_failed"}
        assert read(out)["y"].tolist() == [10.0 * (1 + i % 4) for i in range(100) if i not in bad]


def test_a_model_that_takes_one_row_at_a_time(models, tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    write(pd.DataFrame(x, columns=list("abc")), tmp_path / "in.csv")
    (tmp_path / "in.ndjson").write_text("".join(json.dumps({"x": [row]}) + "\n" for row in x.tolist()))
    for name in ("csv", "ndjson"):
        out = tmp_path / f"{name}.parquet"
        assert scoring.score(models / "single", tmp_path / f"in.{name}", out).rejected == (4 if name == "ndjson" else 0)
    assert np.array(read(tmp_path / "csv.parquet")["y"].tolist()).tolist() == x.tolist()


def test_rows_of_several_sizes(models, tmp_path):
    rows = [[1.0], [2.0, 3.0], [4.0, 5.0], [], [6.0]]
    (tmp_path / "in.ndjson").write_text("".join(json.dumps({"x": row}) + "\n" for row in rows))
    pq.write_table(pa.table({"x": rows}), tmp_path / "in.parquet")
    for name in ("ndjson", "parquet"):
        for target in ("parquet", "ndjson", "csv"):
            out = tmp_path / f"{name}.out.{target}"
            assert scoring.score(models / "varying", tmp_path / f"in.{name}", out).scored == len(rows)
            got = [json.loads(row) if isinstance(row, str) else list(row) for row in read(out)["y"]]
            assert got == rows


def test_kept_columns_are_what_they_were(models, tmp_path):
    values = ["NA", "", "007", 'a "b", c', "é"]
    frame = pd.DataFrame({"id": values, "age": 30.0, "job": "clerk"})
    frame.to_csv(tmp_path / "in.csv", index=False)
    scoring.score(models / "people", tmp_path / "in.csv", tmp_path / "out.parquet", keep=["id", "job"])
    assert read(tmp_path / "out.parquet")["id"].tolist() == values
    values = ["1", '[1,{"b":null}]', '"\\u00e9"', "null", "1e400", "9" * 5000, "true"]
    (tmp_path / "in.ndjson").write_text("".join(f'{{"id":{value},"age":30,"job":"clerk"}}\n' for value in values))
    scoring.score(models / "people", tmp_path / "in.ndjson", tmp_path / "out.ndjson", keep=["id"])
    assert [line.split(",\"value\"")[0] for line in (tmp_path / "out.ndjson").read_text().splitlines()] == [
        '{"row":0,"id":1', '{"row":1,"id":[1, {"b": null}]', '{"row":2,"id":"é"', '{"row":3,"id":null',
        '{"row":4,"id":null', '{"row":6,"id":true']
    assert [each["row"] for each in rejects_of(tmp_path / "out.ndjson")] == [5]
    scoring.score(models / "people", tmp_path / "in.ndjson", tmp_path / "out.csv", keep=["id"])
    assert pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["id"].tolist() == [
        "1", '[1, {"b": null}]', "é", "", "null", "true"]


def test_features_by_name_and_several_inputs(models, tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "p": [1.0, 2.0], "q": [3.0, 4.0], "r": [5.0, 6.0], "s": [7.0, 8.0]})
    write(frame, tmp_path / "in.csv")
    out = tmp_path / "out.csv"
    order = ["s", "r", "q", "p"]
    assert main(["score", str(models / "affine"), str(tmp_path / "in.csv"), "--out", str(out), "--keep", "id",
                 "--features", ",".join(order)]) == 0
    want = fastinfer.load(models / "affine").predict(frame[order].to_numpy(np.float32))["y"]
    assert np.array([json.loads(row) for row in read(out)["y"]], np.float32).tobytes() == want.tobytes()
    (tmp_path / "two.ndjson").write_text('{"a":[1,2],"b":[3,4]}\n{"a":[5,6]}\n')
    scoring.score(models / "two", tmp_path / "two.ndjson", tmp_path / "two.out.ndjson")
    assert (tmp_path / "two.out.ndjson").read_text() == '{"row":0,"total":[4.0,6.0],"difference":[-2.0,-2.0]}\n'


def test_a_folder_of_files_is_one_input(models, tmp_path, small):
    frame = spoiled()
    for name in ("parquet", "csv", "ndjson.gz"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for i in range(3):
            write(frame.iloc[50 * i : 50 * (i + 1)], folder / f"part-{i}.{name}")
        (folder / "_SUCCESS").write_text("")
        write(frame, tmp_path / f"whole.{name}")
        scoring.score(models / "people", folder, tmp_path / "parts.ndjson", keep=["id"])
        scoring.score(models / "people", tmp_path / f"whole.{name}", tmp_path / "whole.ndjson", keep=["id"])
        assert (tmp_path / "parts.ndjson").read_bytes() == (tmp_path / "whole.ndjson").read_bytes()
        assert [(each["row"], each["file"]) for each in rejects_of(tmp_path / "parts.ndjson")] == [
            (4, f"part-0.{name}"), (75, f"part-1.{name}"), (76, f"part-1.{name}"), (149, f"part-2.{name}")]


@pytest.mark.parametrize("target", FORMS)
def test_an_input_without_rows(models, tmp_path, target):
    pq.write_table(pa.table({"age": pa.array([], pa.float64()), "job": pa.array([], pa.string())}),
                   tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("age,job\n")
    (tmp_path / "in.ndjson").write_text("\n\n")
    for source in ("parquet", "csv", "ndjson"):
        out = tmp_path / f"out.{target}"
        assert main(["score", str(models / "people"), str(tmp_path / f"in.{source}"), "--out", str(out)]) == 0
        assert len(read(out) if "ndjson" not in target and "csv" not in target else []) == 0
        assert out.exists()
        assert left(tmp_path) == set()


# -- interruptions ---------------------------------------------------------------------------------------------------
class Stop(Exception):
    pass


@pytest.mark.parametrize(("source", "target"), [("parquet", "parquet"), ("csv", "csv.gz"), ("ndjson", "ndjson"),
                                                ("ndjson.gz", "parquet"), ("csv", "ndjson"), ("parquet", "csv")])
def test_a_run_that_ends_anywhere_goes_on(models, tmp_path, small, source, target):
    """After each block, and with bytes behind what the state counts on, as a kill leaves them."""
    file = write(spoiled(), tmp_path / f"in.{source}")
    whole, out = tmp_path / f"whole.{target}", tmp_path / f"out.{target}"
    scoring.score(models / "people", file, whole, keep=["id"])
    blocks = 0

    def stop(progress):
        nonlocal blocks
        blocks += 1
        raise Stop

    runs = 0
    while True:
        runs += 1
        try:
            summary = scoring.score(models / "people", file, out, keep=["id"], report=stop)
            break
        except Stop:
            for partial in (out, out.with_name(out.name + ".rejects.ndjson")):
                with open(f"{partial}.partial", "ab") as end:
                    end.write(b"{ half a line")
    assert runs > 5
    assert summary.resumed == ROWS
    assert out.read_bytes() == whole.read_bytes()
    assert rejects_of(out) == rejects_of(whole)
    assert left(tmp_path) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from fastinfer import scoring
from fastinfer.scoring import checkpoint, fields, sources
scoring.CHUNK = sources.CHUNK = 700
fields.MIN_ROWS, fields.MAX_ROWS, checkpoint.INTERVAL = 1, 23, 0
model, source, out = map(Path, sys.argv[1:4])
def report(progress):
    if progress.fresh > 60:
        os.kill(os.getpid(), int(sys.argv[4]))
summary = scoring.score(model, source, out, report=report)
print(summary.scored + summary.rejected)
sys.exit(130 if summary.interrupted else 0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_goes_on(models, tmp_path, small, number):
    file = write(spoiled(), tmp_path / "in.parquet")
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    scoring.score(models / "people", file, whole)
    command = [sys.executable, "-P", "-c", KILLED, str(models / "people"), str(file), str(out), str(int(number))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == (-number if number == signal.SIGKILL else 130), done.stderr
    assert not out.exists()
    summary = scoring.score(models / "people", file, out)
    assert 60 < summary.resumed < ROWS
    assert out.read_bytes() == whole.read_bytes()
    assert rejects_of(out) == rejects_of(whole)
    assert left(tmp_path) == set()


def test_a_run_that_ends_while_files_are_put_into_place_goes_on(models, tmp_path, small, monkeypatch):
    file = write(spoiled(), tmp_path / "in.csv")
    whole = tmp_path / "whole.parquet"
    scoring.score(models / "people", file, whole)
    for step in range(3):  # at the first, the second, the third file that is put into place
        out = tmp_path / f"out{step}.parquet"
        count = 0

        def replaced(self, target, step=step, original=Path.replace):
            nonlocal count
            if not str(self).endswith(".json.new"):
                count += 1
                if count > step:
                    raise Stop
            return original(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replaced)
            if step < 2:
                with pytest.raises(Stop):
                    scoring.score(models / "people", file, out)
        scoring.score(models / "people", file, out)
        assert out.read_bytes() == whole.read_bytes()
        assert rejects_of(out) == rejects_of(whole)
        assert left(tmp_path) == set()


def begun(models, tmp_path, **options):
    def stop(progress):
        raise Stop

    file = write(spoiled(), tmp_path / "in.csv")
    with pytest.raises(Stop):
        scoring.score(models / "people", file, tmp_path / "out.csv", report=stop, **options)
    return file


def test_a_run_does_not_go_on_with_something_else(models, tmp_path, small, capsys):
    file = begun(models, tmp_path)
    out = tmp_path / "out.csv"
    command = ["score", str(models / "people"), str(file), "--out", str(out)]
    assert main([*command, "--keep", "id"]) == 2
    assert "with options that changed since (" in capsys.readouterr().err
    file.write_text(file.read_text() + "5,clerk,9\n")
    assert main(command) == 2
    assert "out.csv was begun with an input that changed since" in capsys.readouterr().err
    assert main([*command, "--restart"]) == 1
    assert len(read(out)) == ROWS - 4 + 1
    file = begun(models, tmp_path)
    other = onnx_models.with_program(tmp_path / "people" / "1").parent
    features = other / "features.json"
    features.write_text(features.read_text() + "\n")
    with pytest.raises(ConfigurationError, match="begun with a model that changed"):
        scoring.score(tmp_path / "people", file, out)


def test_two_runs_do_not_write_one_file(models, tmp_path, small):
    file = write(spoiled(), tmp_path / "in.csv")
    other = checkpoint.Checkpoint(tmp_path / "out.csv", tmp_path / "r", {})
    other.open()
    with pytest.raises(ConfigurationError, match="being written by another process"):
        scoring.score(models / "people", file, tmp_path / "out.csv")
    other.close()


def test_a_full_disk_is_said_and_what_is_done_is_kept(models, tmp_path, small, monkeypatch):
    file = write(spoiled(), tmp_path / "in.csv")
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    scoring.score(models / "people", file, whole)
    original, calls = os.fdatasync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls > 9:
            raise OSError(28, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(ConfigurationError, match="No space left on device"):
            scoring.score(models / "people", file, out)
    assert scoring.score(models / "people", file, out).resumed > 0
    assert out.read_bytes() == whole.read_bytes()


# -- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("arguments", "message"), [
    (["nobody", "in.csv", "--out", "o.csv"], "nobody: no such file or folder."),
    (["people", "im.csv", "--out", "o.csv"], "im.csv: no such file. Did you mean 'in.csv'?"),
    (["people", "in.xls", "--out", "o.csv"], "IN is in.xls; it takes a name that ends in .parquet,"),
    (["people", "in.csv", "--out", "o.xlsx"], "--out is o.xlsx; it takes a name that ends in .parquet,"),
    (["people", "in.csv", "--out", "o.parquet.gz"], "--out is o.parquet.gz; it takes a name"),
    (["people", "in.csv", "--out", "o.csv.bz2"], "--out: bz2 is read, not written; write .gz"),
    (["people", "in.csv", "--out", "in.csv"], "IN, --out and --rejects are different files."),
    (["people", "in.csv", "--out", "gone/o.csv"], "gone is no folder to write into."),
    (["people", "in.csv", "--out", "o.csv", "--keep", "idd"], "--keep names 'idd'; the file has age, job, row."),
    (["people", "in.csv", "--out", "o.csv", "--keep", "row"], "--keep: the output has a column 'row' of its own"),
    (["people", "in.csv", "--out", "o.csv", "--keep", ""], "--keep is ''; it takes a list of names"),
    (["people", "in.csv", "--out", "o.csv", "--features", "age"], "--features names 1 columns; model people takes age"),
    (["people", "twice.csv", "--out", "o.csv"], "the file has the column 'age' twice."),
    (["people", "less.csv", "--out", "o.csv"], "the file has no column 'job', which the model takes. Did you mean"),
    (["people", "empty.csv", "--out", "o.csv"], "empty.csv has no header"),
    (["people", "cut.parquet", "--out", "o.csv"], "cut.parquet: "),
    (["people", "text.parquet", "--out", "o.csv"], "text.parquet: the column 'age' is string, and the model takes "
                                                   "numbers."),
    (["people", "cut.ndjson.gz", "--out", "o.csv"], "cut.ndjson.gz: "),
    (["people", "long.ndjson.gz", "--out", "o.csv"], "long.ndjson.gz: "),
    (["people", "head.csv", "--out", "o.csv"], "head.csv: the header cannot be read: field larger than"),
    (["people", "in.csv", "--out", "o.csv", "--rejects", "nothing"], "--rejects is nothing, which is a folder;"),
    (["people", "kept.parquet", "--out", "o.csv", "--keep", "raw"], "--keep names 'raw', which is binary; csv does"),
    (["people", "kept.parquet", "--out", "o.parquet", "--keep", "tags"], "--keep names 'tags', which is list<"),
    (["people", "mixed", "--out", "o.csv"], "mixed holds files of several kinds: .csv, .parquet."),
    (["people", "nothing", "--out", "o.csv"], "nothing holds no file to score."),
    (["affine", "in.csv", "--out", "o.csv"], "model affine takes 4 features, and the file has 3 other columns than "
                                             "those to keep: name them with --features, in order."),
    (["fixed", "in.csv", "--out", "o.csv"], "model fixed takes and gives [2, 3] in 'x': only a model that answers row"),
    (["people", "in.csv"], "missing option '--out'."),
])
def test_a_mistake_is_answered_in_one_or_two_lines(models, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("people", "affine", "fixed"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "in.csv").write_text("age,job,row\n1,clerk,0\n")
    (tmp_path / "in.xls").write_text("x")
    (tmp_path / "twice.csv").write_text("age,age,job\n")
    (tmp_path / "less.csv").write_text("age,Job\n")
    (tmp_path / "empty.csv").write_text("")
    pq.write_table(pa.table({"age": ["1"], "job": ["clerk"]}), tmp_path / "text.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "text.parquet").read_bytes()[:-20])
    (tmp_path / "cut.ndjson.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-2000])
    (tmp_path / "long.ndjson.gz").write_bytes(gzip.compress(os.urandom(1 << 20).hex().encode(), 1)[:-2000])
    (tmp_path / "head.csv").write_text(f"age,job,{'x' * 140_000}\n")
    tags = pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))
    kept = pa.table({"age": [1.0], "job": ["clerk"], "raw": [b"\xff"], "tags": tags})
    pq.write_table(kept, tmp_path / "kept.parquet")
    for name in ("mixed", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "mixed" / "a.csv").write_text("")
    (tmp_path / "mixed" / "b.parquet").write_text("")
    assert main(["score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastinfer: {message}")
    assert len(err.splitlines()) <= 2
    assert not (tmp_path / "o.csv").exists()


def test_without_pyarrow_the_pip_line_is_printed(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["score", str(models / "people"), "in.csv", "--out", "o.csv"]) == 2
    assert capsys.readouterr().err.endswith("\n  pip install 'fastinfer[score]'\n")


# -- what is shown ---------------------------------------------------------------------------------------------------
def test_a_bar_on_a_terminal_and_one_line_elsewhere(models, tmp_path):
    file = write(spoiled(), tmp_path / "in.csv")
    command = [sys.executable, "-P", "-m", "fastinfer", "score", str(models / "people"), str(file), "--out",
               str(tmp_path / "out.csv")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path}/out.csv: 150 rows in, 146 scored, 4 rejected (see {tmp_path}/out.csv.")
    assert done.stdout.count("\n") == 1
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env={**environment(), "TERM": "xterm", "COLUMNS": "100"}, stderr=theirs,
                               stdout=subprocess.PIPE)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"150 rows in" in out
    assert b"rows/s" in shown
