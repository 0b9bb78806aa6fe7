"""Programs of torch.export at the server's surface: the module's own answers, and nothing else that is run."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastinfer
from fastinfer.engines import TorchConfig
from fastinfer.errors import ConfigurationError, InvalidShapeError, ModelLoadError
from fastinfer.runtimes import torch as runtime
from fastinfer.runtimes import torch_audit
from fastinfer.settings import ModelConfig

SYSTEM = b"cos\nsystem\n(S'true'\ntR."
HINT = "pip install 'fastinfer[torch]'"


# -- without the library -------------------------------------------------------------------------------------------
def test_a_missing_library_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "m.pt2").write_bytes(b"PK")
    with pytest.raises(ConfigurationError, match=r"needs torch, which is not installed: .*fastinfer\[torch\]"):
        fastinfer.load(tmp_path / "m.pt2")


@pytest.mark.parametrize("text", [
    "Symbol('s77', positive=True, integer=True)", "Mul(Integer(4), Symbol('s27', positive=True, integer=True))",
    "L['img'].size()[0] == L['ids'].size()[0]", "2*s0 + 1 <= 7", "Eq(Mod(s0, 8), 0)", "L['x'].size()[1] % 2 == 0",
    "Max(1, s0) < int_oo", "-1 + s1//2", "torch.sym_max(1, L['x'].size()[1] // 4) == 2", "math.floor(s0 / 2) < 7"])
def test_arithmetic_is_harmless(text):
    assert torch_audit.is_harmless(text)


@pytest.mark.parametrize("text", [
    "__import__('os').system('x')", "Max('__import__(1)')", "eval(chr(1))", "open('x')", "Symbol.__class__", "exit()",
    "().__class__", "L['x'].__class__", "lambda: 1", "[x for x in L]", "Symbol('s0', real=__import__('os'))",
    "Symbol('a b')", "'text'", "L['x'].size(exit())", "f'{exit()}'", "Max(*L)", "", "(", 7, None,
    "s0 if s1 else exit()", "Integer('__import__(1)')", "L['x'].numpy()", "s0 := 1", "torch.load('x')",
    "torch.os.sym_max(1)", "math.floor.__class__", "torch", "torch.sym_max('x')", "s0.sym_max(1)"])
def test_anything_else_is_not(text):
    assert not torch_audit.is_harmless(text)


@pytest.mark.parametrize("target", ["torch.os.system", "torch.ops.aten.from_file.default", "math.os", "_operator.call",
                                    "torch.load", "#x", "torch.ops.load_library", "torch.ops.mine.run.default", "",
                                    "torch.ops.aten.add.Tensor.__class__", "_operator.attrgetter"])
@pytest.mark.parametrize("key", ["target", "as_operator"])
def test_a_function_that_is_no_operation_is_found(target, key):
    assert list(torch_audit.faults_of({"nodes": [{"inputs": [{"arg": {key: target}}]}]})) == [
        f"the operation {target!r}"]


# -- with it ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason=HINT)


@pytest.fixture(scope="module")
def modules(torch) -> dict[str, Any]:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x):
            return torch.softmax(self.layer(x), -1)

    class Two(torch.nn.Module):
        def forward(self, a, b=None, *, ids):
            return {"sum": a + b, "most": (a * ids[:, None]).argmax(1)}

    class Types(torch.nn.Module):
        def forward(self, half, flag, wide):
            return half * 2, ~flag, wide

    class Across(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    class Sizes(torch.nn.Module):
        def forward(self, x):
            return x.sum(1)

    class Count(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x):
            self.n.add_(1)
            return x + self.n

    class Train(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x)

        def eval(self):
            return self.train()

    torch.manual_seed(1)
    kinds = {"net": Net, "train": Train, "two": Two, "types": Types, "across": Across, "sizes": Sizes, "count": Count}
    return {name: kind().eval() for name, kind in kinds.items()}


def export(torch: Any, module: Any, path: Path, args: tuple, kwargs: dict | None = None, shapes: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(torch.export.export(module, args, kwargs, dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def files(torch, modules, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("torch")
    rows, auto = torch.export.Dim("rows", min=1, max=40), torch.export.Dim.AUTO
    x = torch.randn(2, 4)
    export(torch, modules["net"], root / "net" / "1" / "model.pt2", (x,), None, {"x": {0: rows}})
    export(torch, modules["two"], root / "two" / "1" / "model.pt2", (x,), {"b": x * 2, "ids": torch.ones(2).long()},
           {"a": {0: auto}, "b": {0: auto}, "ids": {0: auto}})
    export(torch, modules["types"], root / "types" / "1" / "model.pt2",
           (x.bfloat16(), x > 0, x.double()), None, {"half": {0: auto}, "flag": {0: auto}, "wide": {0: auto}})
    export(torch, modules["across"], root / "across" / "1" / "model.pt2", (x,), None, {"x": {0: rows}})
    export(torch, modules["sizes"], root / "sizes" / "1" / "model.pt2", (x,), None,
           {"x": {0: rows, 1: torch.export.Dim("wide", min=2, max=8)}})
    export(torch, modules["net"], root / "fixed" / "1" / "model.pt2", (x,))
    return root


@pytest.fixture(scope="module")
def models(files, tmp_path_factory):
    from conftest import starting

    with starting(tmp_path_factory) as start:
        yield start(files)


def answers(torch: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
    torch.set_num_threads(1)
    with torch.inference_mode():
        return module(*args, **kwargs)


def test_records_and_tensors_are_answered_as_the_module_answers(models, torch, modules):
    x = np.random.default_rng(3).normal(size=(100, 4)).astype(np.float32)
    with models.client() as client:
        metadata = client.get("/v2/models/net").json()
        assert (metadata["platform"], metadata["properties"]["batched"]) == ("pytorch_pt2", "true")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert metadata["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}]
        answer = client.post("/v1/models/net:predict", json={"records": [{"x": row} for row in x[:3].tolist()]})
        expected = answers(torch, modules["net"], torch.from_numpy(x[:3])).numpy()
        assert np.array([each["output"] for each in answer.json()["predictions"]], np.float32).tolist() == (
            expected.tolist())
        head = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [100, 4],
                                       "parameters": {"binary_data_size": x.nbytes}}],
                           "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}).encode()
        answer = client.post("/v2/models/net/infer", content=head + x.tobytes(),
                             headers={"Inference-Header-Content-Length": str(len(head))})
        size = int(answer.headers["Inference-Header-Content-Length"])
    got = np.frombuffer(answer.content[size:], np.float32).reshape(100, 3)
    np.testing.assert_allclose(got, answers(torch, modules["net"], torch.from_numpy(x)).numpy(), rtol=1e-6)


def test_named_inputs_and_a_dict_of_outputs(models, torch, modules):
    record = {"a": [1, 2, 3, 4], "b": [1, 1, 1, 1], "ids": -1}
    with models.client() as client:
        metadata = client.get("/v2/models/two").json()
        assert metadata["properties"]["batched"] == "true"
        answer = client.post("/v1/models/two:predict", json={"records": [record]})  # one, exported for two and more
        assert answer.json()["predictions"] == [{"sum": [2.0, 3.0, 4.0, 5.0], "most": 0}]


def test_every_type_passes(files, torch, modules):
    model = fastinfer.load(files / "types")
    assert [each.datatype for each in model.signature.inputs] == ["BF16", "BOOL", "FP64"]
    half = torch.tensor([[1.5, -2, 3, 0.1]], dtype=torch.bfloat16)
    got = model.run({"half": half.view(torch.int16).numpy().view(np.uint16), "flag": np.array([[True, False] * 2]),
                     "wide": np.ones((1, 4))})
    assert got["output_0"].tolist() == (half * 2).view(torch.int16).numpy().view(np.uint16).tolist()
    assert got["output_1"].tolist() == [[False, True] * 2]
    assert got["output_2"].tolist() == [[1.0] * 4]


def test_rows_that_touch_each_other_run_alone_and_fixed_ones_as_they_are(files):
    assert "depends on the rows beside it" in str(fastinfer.load(files / "across").unbatched)
    assert fastinfer.load(files / "fixed").unbatched == "the first dimension of 'x' is fixed"


def test_a_dimension_that_was_not_exported_is_the_requests_error(files):
    model = fastinfer.load(files / "sizes")
    assert model.predict(np.ones((3, 5), np.float32))["output"].tolist() == [5.0] * 3
    with pytest.raises(InvalidShapeError, match="refuses the inputs' shapes"):
        model.run({"x": np.ones((3, 9), np.float32)})


def test_arguments_that_are_no_tensors_are_those_of_the_export(torch, tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x, k, mask, *, scale="one"):
            return OrderedDict(z=x * k if scale == "one" else x, nothing=None, a=x if mask is None else mask)

    path = export(torch, Odd(), tmp_path / "m.pt2", (torch.randn(3, 4), 3, None), {"scale": "one"},
                  {"x": {0: torch.export.Dim.AUTO}, "k": None, "mask": None, "scale": None})
    model = fastinfer.load(path)
    assert [each.name for each in model.signature.inputs] == ["x"]
    assert [each.name for each in model.signature.outputs] == ["z", "a"]
    assert model.unbatched is None
    got = model.predict(np.full((1, 4), 2, np.float32))
    assert (got["z"].tolist(), got["a"].tolist()) == ([[6.0] * 4], [[2.0] * 4])


def test_a_dimension_that_is_a_multiple_of_another_is_served(torch, tmp_path):
    class Fours(torch.nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], -1, 4).sum(1)

    fours = 4 * torch.export.Dim("fours", min=2, max=10)
    path = export(torch, Fours(), tmp_path / "m.pt2", (torch.randn(3, 8),), None,
                  {"x": {0: torch.export.Dim.AUTO, 1: fours}})
    model = fastinfer.load(path)
    assert model.unbatched is None
    assert model.predict(np.ones((2, 12), np.float32))["output"].tolist() == [[3.0] * 4] * 2
    with pytest.raises(InvalidShapeError, match="refuses the inputs' shapes"):
        model.run({"x": np.ones((2, 11), np.float32)})


def test_a_map_over_rows_that_fails_harms_no_later_run_on_its_thread(torch, tmp_path):
    class Mapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 3)

        def forward(self, x):
            return torch.vmap(lambda row: self.table(row).sum(0))(x)

    module = Mapped().eval()
    try:
        path = export(torch, module, tmp_path / "m.pt2", (torch.tensor([[1, 2], [3, 4], [0, 1]]),), None,
                      {"x": {0: torch.export.Dim.AUTO}})
    except AssertionError:
        pytest.skip("this torch does not export it")
    model = fastinfer.load(path)
    x = np.array([[4, 4], [0, 2]])
    expected = answers(torch, module, torch.from_numpy(x)).numpy()
    with pytest.raises(Exception, match="index out of range"):
        model.run({"x": np.array([[99, 1], [1, 1]])})
    assert model.run({"x": x})["output"].tolist() == expected.tolist()


def test_a_program_goes_to_its_device(files, torch):
    program = torch.export.load(files / "net" / "1" / "model.pt2")
    assert runtime.moved(torch, program, "cpu") is program
    there = runtime.moved(torch, program, "meta")  # a device that needs no GPU
    assert {value.device.type for value in there.state_dict.values()} == {"meta"}
    assert {node.meta["val"].device.type for node in there.graph.nodes if node.op == "placeholder"} == {"meta"}


def test_a_program_of_a_gpu_says_so_where_there_is_none(files, torch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    path = rewritten(files / "net" / "1" / "model.pt2", tmp_path / "m.pt2", lambda name, data: (
        data.replace(b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0')))
    with pytest.raises(ModelLoadError, match=r"exported on cuda.*move_to_device_pass\(program, \"cpu\"\)"):
        fastinfer.load(path)


def test_a_number_of_a_gpu_that_is_not_there_is_named(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = ModelConfig(torch=TorchConfig(device="cuda", device_id=2))
    with pytest.raises(ModelLoadError, match=r"device_id = 2, and torch sees 2 GPU\(s\), numbered from 0"):
        runtime.place(torch, tmp_path / "m.pt2", config)
    assert runtime.place(torch, tmp_path, ModelConfig(torch=TorchConfig(device="cuda", device_id=1))) == "cuda:1"


@pytest.mark.parametrize(("name", "state"), [("count", "n"), ("train", "norm.running_mean")])
def test_a_program_with_state_is_refused(torch, modules, tmp_path, name, state):
    path = export(torch, modules[name], tmp_path / "m.pt2", (torch.randn(2, 4),))
    with pytest.raises(ModelLoadError, match=f"changes '{state}' when it runs"):
        fastinfer.load(path)


@pytest.mark.parametrize("cut", ["empty", "half", "flipped", "garbage", "other"])
def test_a_damaged_file_is_refused(files, tmp_path, cut):
    data = (files / "net" / "1" / "model.pt2").read_bytes()
    place = data.index(b"graph_module") + 20
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    path = tmp_path / "m.pt2"
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "flipped": flipped, "garbage": b"\xff" * 500,
                      "other": b"PK\5\6" + bytes(18)}[cut])
    with pytest.raises(ModelLoadError, match=r"m\.pt2"):
        fastinfer.load(path)


def rewritten(source: Path, target: Path, change: Any) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.mark.parametrize(("part", "old", "new", "message"), [
    ("model.json", b"torch.ops.aten.softmax.int", b"torch.os.system", "the operation 'torch.os.system'"),
    ("model.json", b"Symbol('s", b"exit() or Symbol('s", "the expression"),
    ("model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true', "pickled weights"),
    ("sample_inputs/model.pt", None, SYSTEM, "pickled sample inputs"),
])
def test_a_file_that_might_run_code_is_loaded_only_when_trusted(files, tmp_path, part, old, new, message):
    with zipfile.ZipFile(files / "net" / "1" / "model.pt2") as archive:
        if not any(name.endswith(part) for name in archive.namelist()):
            pytest.skip("torch 2.8 writes no such part")
    path = rewritten(files / "net" / "1" / "model.pt2", tmp_path / "m.pt2", lambda name, data: (
        data if not name.endswith(part) else new if old is None else data.replace(old, new)))
    with pytest.raises(ModelLoadError, match=f"m.pt2 holds {message}.*if you trust it, add --trust-pickle"):
        fastinfer.load(path)


@pytest.mark.parametrize("what", ["weights", "constants"])
def test_pickles_of_older_releases_are_looked_into_as_well(files, tmp_path, what):
    """Newer ones read them in place of what they write themselves."""
    path = rewritten(files / "net" / "1" / "model.pt2", tmp_path / "m.pt2", lambda name, data: data)
    with zipfile.ZipFile(path, "a") as archive:
        name = f"{archive.namelist()[0].partition('/')[0]}/data/{what}/model.pt"
        if name in archive.namelist():
            pytest.skip("this torch is one of them")
        archive.writestr(name, SYSTEM)
    with pytest.raises(ModelLoadError, match=f"holds pickled {what}, which may run code"):
        fastinfer.load(path)


def test_a_gpu_that_is_not_there_is_named(files, torch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.pt2").write_bytes((files / "net" / "1" / "model.pt2").read_bytes())
    (tmp_path / "m" / "model.toml").write_text('[torch]\ndevice = "cuda"\n')
    with pytest.raises(ModelLoadError, match=r"device = 'cuda', and torch .* sees no GPU"):
        fastinfer.load(tmp_path / "m")
