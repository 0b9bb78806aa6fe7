"""Python classes behind the server's surface: what they answer, what they get wrong, and what it does to others."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import os
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastinfer
from fastinfer._core import Tensor
from fastinfer.errors import InvalidValueError, ModelLoadError, NotReadyError, RuntimeFailedError
from fastinfer.runtimes import python_process, python_wire

ALLOW = "--allow-python-models"
SCALE = """
    import numpy as np
    from pathlib import Path
    from helper import factor

    class Model:
        inputs = {"x": ("FP32", (-1, 2)), "word": ("BYTES", (-1, 1))}
        outputs = {"y": ("FP32", (-1, 2)), "said": ("BYTES", (-1, 1))}

        def __init__(self, folder: Path) -> None:
            self.offset = np.float32((folder / "offset.txt").read_text())

        def predict(self, inputs):
            assert all(array.flags.writeable for array in inputs.values())
            return {"said": inputs["word"] + "!", "y": (inputs["x"] * factor + self.offset)[:, ::1]}
"""
MOODS = """
    import os, sys, threading, time
    import numpy as np
    from fastinfer.errors import InvalidValueError

    class Model:
        inputs = {"x": ("INT64", (-1,))}
        outputs = {"y": ("INT64", (-1,))}

        def __init__(self, folder):
            self.kept = np.empty(64, np.int64)

        def predict(self, inputs):
            x = inputs["x"]
            if 1001 in x:
                raise KeyError("secret: hunter2")
            if 1002 in x:
                raise InvalidValueError("1002 is no number that anybody needs")
            if 1003 in x:
                sys.exit(3)
            if 1004 in x:
                return {"y": x.astype(float)}
            if 1005 in x:
                return {"y": x[:, None]}
            if 1006 in x:
                return {"z": x}
            if 1007 in x:
                return None
            if 1008 in x:
                return {"y": x.tolist()}
            if 1009 in x:
                return {"y": np.append(x, 1)}
            if 1010 in x:
                raise KeyboardInterrupt
            if 1011 in x:
                return {"y": np.ma.masked_greater(x, 1000)}
            self.kept[:len(x)] = x
            x[:] = -1
            print("predicted", flush=True)
            return {"y": self.kept[:len(x)]}
"""


def write(folder: Path, source: str, config: str = "") -> Path:
    """models/<folder's name>/1/model.py"""
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(textwrap.dedent(source))
    (version / "offset.txt").write_text("0.5")
    (version / "helper.py").write_text("factor = 3\n")
    (folder / "model.toml").write_text(config)
    return folder


PROCESS = "[python]\nprocess = true\n"


@pytest.fixture(scope="module", params=["", PROCESS], ids=["thread", "process"])
def models(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("python")
    write(root / "scale", SCALE, request.param)
    write(root / "moods", MOODS, request.param)
    from conftest import starting

    with starting(tmp_path_factory) as start:
        yield start(root, ALLOW)


def infer(client: Any, model: str, **inputs: tuple[str, list[int], list[Any]]) -> Any:
    body = {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}
                       for name, (datatype, shape, data) in inputs.items()]}
    return client.post(f"/v2/models/{model}/infer", json=body)


def mood(client: Any, *values: int) -> Any:
    return infer(client, "moods", x=("INT64", [len(values)], list(values)))


def test_records_tensors_and_binary_are_answered(models):
    with models.client() as client:
        answer = client.post("/v1/models/scale:predict", json={"records": [{"x": [1, 2], "word": "a"},
                                                                             {"x": [3, 4], "word": "ü"}]})
        assert answer.json()["predictions"] == [{"y": [3.5, 6.5], "said": "a!"}, {"y": [9.5, 12.5], "said": "ü!"}]
        answer = infer(client, "scale", x=("FP32", [1, 2], [1, 2]), word=("BYTES", [1, 1], ["b"]))
        assert [each["data"] for each in answer.json()["outputs"]] == [[3.5, 6.5], ["b!"]]
        head = json.dumps({"inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "word", "datatype": "BYTES", "shape": [1, 1], "data": ["c"]}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
        answer = client.post("/v2/models/scale/infer", content=head + np.array([5, 6], np.float32).tobytes(),
                             headers={"Inference-Header-Content-Length": str(len(head))})
        size = int(answer.headers["Inference-Header-Content-Length"])
        assert np.frombuffer(answer.content[size:], np.float32).tolist() == [15.5, 18.5]


def test_metadata_says_what_it_takes_and_that_it_is_batched(models):
    with models.client() as client:
        metadata = client.get("/v2/models/scale").json()
        assert metadata["platform"] == "python"
        assert metadata["properties"]["batched"] == "true"
        assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        assert client.get("/v2/models/scale/config").json()["backend"] == "python"


@pytest.mark.parametrize(("value", "status", "code", "text"), [
    (1001, 500, "runtime_failed", "the model failed on this request: its predict raised KeyError"),
    (1002, 400, "invalid_value", "1002 is no number that anybody needs"),
    (1003, 500, "runtime_failed", "the model failed on this request: its predict raised SystemExit"),
    (1004, 500, "runtime_failed", "the model's output 'y' is float64; INT64 is declared, which is int64"),
    (1005, 500, "runtime_failed", "the model's output 'y' has shape [1, 1]; [-1] is declared"),
    (1006, 500, "runtime_failed", "the model did not answer its output 'y'"),
    (1007, 500, "runtime_failed", "the model answered NoneType, not a dict of arrays by output name"),
    (1008, 500, "runtime_failed", "the model's output 'y' is a list, not a numpy array"),
    (1009, 500, "runtime_failed", "output 'y' has shape [2] for 1 rows"),
    (1010, 500, "runtime_failed", "the model failed on this request: its predict raised KeyboardInterrupt"),
    (1011, 500, "runtime_failed", "the model's output 'y' is a masked array"),
])
def test_what_it_does_wrong_is_its_own_requests_error(models, value, status, code, text):
    with models.client() as client:
        answer = mood(client, value)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["error"].startswith(text)
        assert "Traceback" not in answer.text
        assert "hunter2" not in answer.text
        assert mood(client, 5, 6).json()["outputs"][0]["data"] == [5, 6]
    if value == 1001:
        assert 'KeyError: \\"secret: hunter2\\"' in models.log() or "KeyError: 'secret: hunter2'" in models.log()
        assert "in predict" in models.log()


def test_an_array_that_it_keeps_is_not_an_earlier_clients(models):
    with models.client() as client:
        answers = [mood(client, *range(start, start + 8)).json()["outputs"][0]["data"] for start in range(0, 80, 8)]
    assert answers == [list(range(start, start + 8)) for start in range(0, 80, 8)]


# -- load ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", ["", PROCESS], ids=["thread", "process"])
@pytest.mark.parametrize(("source", "message"), [
    ("class Model(:\n    pass\n", r"model\.py:1: invalid syntax"),
    ("x = 1\0", r"model\.py.*null bytes"),
    ("\n\nimport nowhere_at_all\n", r"model\.py:3: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("raise SystemExit(4)", r"model\.py:1: SystemExit: 4"),
    ("Model = 5", r"model\.py has no class Model\."),
    ("def Model(folder): ...", r"model\.py has no class Model\."),
    ("class Model:\n    def __init__(self): ...\n", r"TypeError: .*takes 1 .*making Model\(folder\)"),
    ("class Model:\n    def __init__(self, folder):\n        self.x = 1 / 0\n", r"model\.py:3: ZeroDivisionError"),
    ("class Model:\n    def __init__(self, folder):\n        import signal; signal.signal(99999, None)\n",
     r"model\.py:3: "),
    ("class Model:\n    def __init__(self, folder): ...\n", r"class Model has no method predict"),
    ("class Model:\n    @property\n    def inputs(self): return 1 / 0\n    def __init__(self, folder): ...\n"
     "    def predict(self, inputs): ...\n", r"model\.py: ZeroDivisionError"),
    ("class Model:\n    def __init__(self, folder): ...\n    def predict(self, inputs): ...\n",
     r"class Model does not say its inputs; inputs and outputs are \{name: \(datatype, shape\)\}"),
    ("class Model:\n    inputs = {'x': ('FLOAT', (-1,))}\n    def __init__(self, folder): ...\n"
     "    def predict(self, inputs): ...\n", r"inputs\['x'\]: 'FLOAT' is not a datatype; they are BOOL"),
    ("class Model:\n    inputs = {'x': ('FP32', (-1, 'n'))}\n    def __init__(self, folder): ...\n"
     "    def predict(self, inputs): ...\n", r"inputs\['x'\]: 'n' is not a dimension; a variable one is -1"),
    ("class Model:\n    inputs = {'x': 'FP32'}\n    def __init__(self, folder): ...\n"
     "    def predict(self, inputs): ...\n", r"inputs\['x'\] is 'FP32'; inputs and outputs are"),
])
def test_a_file_at_fault_is_named(tmp_path, source, message, config):
    write(tmp_path / "m", source, config)
    with pytest.raises(ModelLoadError, match=message):
        fastinfer.load(tmp_path / "m", allow_python_models=True)


@pytest.mark.parametrize("config", ["", "process = true\n"], ids=["thread", "process"])
def test_an_init_that_takes_too_long_is_not_waited_for(tmp_path, config):
    source = "import time\nclass Model:\n    def __init__(self, folder): time.sleep(20)\n"
    write(tmp_path / "m", source, f"[python]\nstart_timeout_ms = 300\n{config}")
    with pytest.raises(ModelLoadError, match=r"took longer than 0\.3 s"):
        fastinfer.load(tmp_path / "m", allow_python_models=True)


def test_it_is_served_only_when_allowed(tmp_path, start_server):
    path = write(tmp_path / "m", MOODS) / "1" / "model.py"
    with pytest.raises(ModelLoadError, match=r"is Python code, which runs with .*--allow-python-models"):
        fastinfer.load(path)
    server = start_server(path, wait=False)
    assert server.wait() == 2
    assert "add --allow-python-models" in server.log()


def test_a_file_alone_is_served_by_its_own_name(tmp_path, start_server):
    path = write(tmp_path / "m", MOODS) / "1" / "model.py"
    model = fastinfer.load(path, allow_python_models=True)
    assert (model.name, model.version, model.max_batch_size) == ("model", "1", 64)
    assert model.predict({"x": np.array([1, 2])})["y"].tolist() == [1, 2]
    with pytest.raises(InvalidValueError):
        model.predict({"x": np.array([1002])})
    with pytest.raises(RuntimeFailedError) as caught:
        model.predict({"x": np.array([1001])})
    assert isinstance(caught.value.__cause__, KeyError)


def test_two_versions_have_each_their_own_helper(tmp_path):
    write(tmp_path / "m", SCALE)
    second = write(tmp_path / "n", SCALE) / "1"
    (second / "helper.py").write_text("factor = 7\n")
    rows = {"x": np.ones((1, 2), np.float32), "word": np.array([["a"]], object)}
    got = [fastinfer.load(tmp_path / name, allow_python_models=True).predict(rows)["y"].tolist() for name in "mn"]
    assert got == [[[3.5, 3.5]], [[7.5, 7.5]]]


def test_a_model_whose_rows_touch_each_other_runs_alone(tmp_path):
    source = SCALE.replace('inputs["x"] * factor', 'inputs["x"] - inputs["x"].mean(axis=0)')
    model = fastinfer.load(write(tmp_path / "m", source), allow_python_models=True)
    assert model.unbatched == "output 'y' of a row depends on the rows beside it"


def test_two_models_in_one_folder_need_a_word(tmp_path):
    folder = write(tmp_path / "m", MOODS)
    (folder / "1" / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"several models, model\.onnx, model\.py; keep one, or say which"):
        fastinfer.load(folder, allow_python_models=True)
    (folder / "model.toml").write_text('runtime = "python"\n')
    assert fastinfer.load(folder, allow_python_models=True).platform == "python"


# -- in a process of its own ---------------------------------------------------------------------------------------
DEADLY = """
    import ctypes, os, signal, sys, threading, time
    import numpy as np

    class Model:
        inputs = {"x": ("INT64", (-1,))}
        outputs = {"y": ("INT64", (-1,)), "process": ("INT64", (-1,))}

        def __init__(self, folder):
            threading.Thread(target=time.sleep, args=(3600,)).start()
            (folder.parent / "starts").open("a").write(f"{os.getpid()}\\n")

        def predict(self, inputs):
            x = inputs["x"]
            if 2001 in x:
                ctypes.string_at(8)
            if 2002 in x:
                os._exit(7)
            if 2003 in x:
                signal.raise_signal(signal.SIGSTOP)
            return {"y": x, "process": np.full(len(x), os.getpid())}
"""


@pytest.fixture
def deadly(tmp_path, start_server):
    write(tmp_path / "moods", DEADLY, PROCESS)
    return start_server(tmp_path, ALLOW)


def test_a_crash_is_its_own_requests_error(deadly):
    with deadly.client() as client:
        (first,) = mood(client, 1).json()["outputs"][1]["data"]
        for value, text in ((2001, "its process was killed by SIGSEGV"), (2002, "its process ended with code 7")):
            answer = mood(client, value)
            assert answer.status_code == 500
            assert text in answer.json()["error"]
            assert mood(client, 2).json()["outputs"][0]["data"] == [2]
        (last,) = mood(client, 3).json()["outputs"][1]["data"]
    assert first != last
    assert "Current thread" in deadly.log()  # where it crashed
    assert not alive(first)
    assert deadly.stop() == 0
    assert not alive(last)


def test_a_thread_that_the_class_has_started_does_not_keep_the_server(tmp_path, start_server):
    write(tmp_path / "moods", DEADLY)
    server = start_server(tmp_path, ALLOW)
    with server.client() as client:
        assert mood(client, 1).status_code == 200
    assert server.stop() == 0


def test_a_hang_is_its_own_requests_error(tmp_path, start_server):
    write(tmp_path / "moods", DEADLY, "run_timeout_ms = 300\n" + PROCESS)
    server = start_server(tmp_path, ALLOW)
    with server.client() as client:
        (first,) = mood(client, 1).json()["outputs"][1]["data"]
        answer = mood(client, 2003)
        assert (answer.status_code, answer.json()["error"]) == (504, "the model did not answer within 0.3 s")
        deadline = time.monotonic() + 30
        while (again := mood(client, 2)).status_code != 200:  # until another process is up
            assert again.status_code in (503, 504)
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert again.json()["outputs"][1]["data"] != [first]
    assert not alive(first)


def test_a_crash_fails_the_culprit_and_not_who_ran_beside_it(deadly):
    values = [*range(10), 2001, 11]
    with deadly.client() as client, concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda value: mood(client, value), values))
    assert [answer.status_code for answer in answers] == [500 if value == 2001 else 200 for value in values]
    assert [answer.json()["outputs"][0]["data"] for answer in answers if answer.status_code == 200] == [
        [value] for value in values if value != 2001]


def test_its_process_ends_with_a_server_that_is_killed(deadly):
    with deadly.client() as client:
        (process,) = mood(client, 1).json()["outputs"][1]["data"]
    assert alive(process)
    deadly.process.kill()
    deadly.wait()
    deadline = time.monotonic() + 30
    while alive(process):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_one_that_dies_again_and_again_is_not_started_each_time(tmp_path):
    folder = write(tmp_path / "m", DEADLY, PROCESS)
    model = fastinfer.load(folder, allow_python_models=True)
    for _ in range(python_process.FREE_DEATHS):
        with pytest.raises(RuntimeFailedError, match="SIGSEGV"):
            model.predict({"x": np.array([2001])})
    starts = len((folder / "starts").read_text().splitlines())
    with pytest.raises(NotReadyError, match="has died 8 times in a row"):
        model.predict({"x": np.array([1])})
    assert len((folder / "starts").read_text().splitlines()) == starts
    process = model.runtime.processes[0]
    process.over.set()  # as if the server ended: the next start waits for nothing
    assert not process.up.wait(0)


def test_a_model_that_is_let_go_takes_its_process_along(tmp_path):
    folder = write(tmp_path / "m", DEADLY, PROCESS + "[onnx]\n")
    (folder / "model.toml").write_text("instances = 2\n" + PROCESS)
    model = fastinfer.load(folder, allow_python_models=True)
    processes = [int(line) for line in (folder / "starts").read_text().splitlines()]
    assert len(processes) == 2
    assert all(map(alive, processes))
    del model
    gc.collect()
    assert not any(map(alive, processes))


@pytest.mark.parametrize("places", [None, [], [[0, 8]], [[0, 8, [2]]], [[0, 1 << 40, [1 << 37]]], [[-8, 8, [1]]],
                                    [[1 << 29, 8, [1]]], [[0, 8, [1] * 9]], [[0, "8", [1]]], ["x"], [[0, 8.0, [1]]]])
def test_what_a_crashing_process_says_is_not_believed(places):
    memory = python_wire.Memory.create("test")
    memory.grow(8)
    with pytest.raises(python_wire.BrokenError):
        python_wire.take(memory, [Tensor("y", "INT64", (-1,))], places)
    with pytest.raises(MemoryError):
        memory.grow(python_wire.MAX_MEMORY + 1)
    with pytest.raises(OSError):
        os.ftruncate(memory.descriptor, 0)
    memory.close()
