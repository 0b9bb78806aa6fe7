"""onnxruntime on a GPU, without one: its buffers and its graphs' batch sizes on the CPU, shortage feigned."""

from __future__ import annotations

import threading

import numpy as np
import onnx_models
import onnxruntime as ort
import pytest

import fastinfer
from fastinfer.engines import DEVICES, OnnxConfig
from fastinfer.errors import ConfigurationError, ModelLoadError
from fastinfer.model import Model
from fastinfer.runtimes.onnx_device import Device, DeviceRuntime, is_shortage, sizes_up_to
from fastinfer.settings import ModelConfig, Settings


def on_cpu(path, config: ModelConfig) -> DeviceRuntime:
    """The runtime of a GPU with the CPU in its place."""
    runtime = DeviceRuntime(ort.InferenceSession(path, providers=["CPUExecutionProvider"]), path, config, "cpu")
    runtime.tell_batched(True)
    return runtime


GRAPHS = ModelConfig(max_batch_size=12, onnx=OnnxConfig(device="cuda", cuda_graphs=True))


@pytest.mark.parametrize("config", [ModelConfig(onnx=OnnxConfig(device="cuda")), GRAPHS], ids=["buffers", "graphs"])
def test_batches_of_all_sizes_are_answered_as_by_the_cpu(tmp_path, config):
    path = onnx_models.affine(tmp_path / "m.onnx")
    runtime, plain = on_cpu(path, config), fastinfer.load(path)
    random = np.random.default_rng(1)
    kept = []
    for rows in (1, 3, 12, 8, 2, 12, 5, 20, 1):
        x = random.normal(size=(rows, 4)).astype(np.float32)
        kept.append((runtime.run({"x": x})["y"], plain.predict(x)["y"]))
    for got, expected in kept:  # all of them at the end: no answer looks into memory that is used again
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert sorted(runtime.graphs) == ([1, 2, 4, 8, 12] if config is GRAPHS else [])


def test_every_batch_size_has_the_next_graph():
    assert list(sizes_up_to(12)) == [1, 2, 4, 8, 12]
    assert list(sizes_up_to(1)) == [1]
    assert list(sizes_up_to(0)) == []


def test_graphs_are_captured_at_load_and_run_on_one_thread(tmp_path, monkeypatch):
    """onnxruntime has them by thread; the batcher's stop knows a run by the thread that asked for it."""
    seen = []
    bound = DeviceRuntime.run_bound

    def run_bound(self, binding, graph, caller):
        bound(self, binding, graph, caller)
        seen.append((threading.current_thread().name.rpartition("_")[0], graph, caller))

    monkeypatch.setattr(DeviceRuntime, "run_bound", run_bound)
    runtime = on_cpu(onnx_models.affine(tmp_path / "m.onnx"), GRAPHS)
    assert sorted(runtime.graphs) == [1, 2, 4, 8, 12]
    seen.clear()
    threads = [threading.Thread(target=runtime.run, args=({"x": np.ones((3, 4), np.float32)},)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(name, graph) for name, graph, _ in seen] == [("cuda-graphs", 4)] * 3
    assert {caller for _, _, caller in seen} == {thread.ident for thread in threads}


def test_nothing_runs_beside_a_capture():
    device, order = Device(), []
    entered = threading.Event()

    def capture():
        with device.capturing():
            order.append("capture")

    def run():
        with device.running():
            order.append("run")

    with device.running(), device.running():
        thread = threading.Thread(target=capture)
        thread.start()
        while not device.captures:
            entered.wait(0.001)
        later = threading.Thread(target=run)
        later.start()
        order.append("ran")
    thread.join()
    later.join()
    assert order == ["ran", "capture", "run"]


@pytest.mark.parametrize("text", [
    "Failed to allocate memory for requested buffer of size 4294967296",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; file=cuda_allocator.cc",
    "Available memory of 1024 is smaller than requested bytes of 4096",
])
def test_a_shortage_of_memory_halves_the_batch_and_is_remembered(tmp_path, caplog, text):
    runtime = on_cpu(onnx_models.affine(tmp_path / "m.onnx"), ModelConfig(onnx=OnnxConfig(device="cuda")))
    whole, sizes = runtime.run_whole, []

    def run_whole(inputs, rows):
        sizes.append(rows)
        if rows > 5:
            raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}")
        return whole(inputs, rows)

    runtime.run_whole = run_whole
    x = np.arange(64, dtype=np.float32).reshape(16, 4)
    expected = fastinfer.load(tmp_path / "m.onnx").predict(x)["y"]
    np.testing.assert_allclose(runtime.run({"x": x})["y"], expected, rtol=1e-6)
    assert sizes == [16, 8, 4, 4, 4, 4]
    assert runtime.most == 4
    sizes.clear()
    np.testing.assert_allclose(runtime.run({"x": x[:9]})["y"], expected[:9], rtol=1e-6)
    assert sizes == [4, 4, 1]
    assert "the device has no memory for 8 rows; at most 4 are run at a time" in caplog.text


def test_one_row_that_does_not_fit_and_any_other_failure_are_the_requests(tmp_path):
    runtime = on_cpu(onnx_models.affine(tmp_path / "m.onnx"), ModelConfig(onnx=OnnxConfig(device="cuda")))
    runtime.run_whole = lambda inputs, rows: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.run({"x": np.ones((1, 4), np.float32)})
    runtime.run_whole = lambda inputs, rows: (_ for _ in ()).throw(RuntimeError("Non-zero status code"))
    with pytest.raises(RuntimeError, match="Non-zero"):
        runtime.run({"x": np.ones((8, 4), np.float32)})
    assert not is_shortage(RuntimeError("Non-zero status code"))


def test_rows_that_were_not_proven_are_never_run_in_parts(tmp_path):
    path = onnx_models.affine(tmp_path / "m.onnx")
    config = ModelConfig(max_batch_size=0, onnx=OnnxConfig(device="cuda"))
    runtime = on_cpu(path, config)
    Model("m", "1", runtime, None, config, Settings())
    assert not runtime.batched
    runtime.run_whole = lambda inputs, rows: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.run({"x": np.ones((8, 4), np.float32)})


def test_a_graph_needs_fixed_dimensions(tmp_path):
    path = onnx_models.identity(tmp_path / "m.onnx", "FP32", ["n", "m"])
    with pytest.raises(ModelLoadError, match="cuda_graphs needs numbers of fixed dimensions"):
        on_cpu(path, GRAPHS)


# -- configuration -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_the_wheel_lacks_is_named(tmp_path, device, start_server):
    onnx_models.affine(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "model.toml").write_text(f'[onnx]\ndevice = "{device}"\n')
    provider = DEVICES[device][0]
    message = rf"execution provider {provider} is not in this onnxruntime \(.*\); it needs onnxruntime-gpu"
    if provider in ort.get_available_providers():
        pytest.skip("this onnxruntime has it")
    with pytest.raises(ModelLoadError, match=message):
        fastinfer.load(tmp_path / "m")
    server = start_server(tmp_path / "m", wait=False)
    assert server.wait() == 2
    assert f"execution provider {provider} is not in this onnxruntime" in server.log()


def test_several_workers_do_not_share_a_device(tmp_path, start_server):
    onnx_models.affine(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "model.toml").write_text('[onnx]\ndevice = "cuda"\n')
    server = start_server(tmp_path / "m", "--workers", "2", wait=False)
    assert server.wait() == 2
    assert "CUDAExecutionProvider, and 2 workers would share the device" in server.log()


def test_keys_become_the_providers_options(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text('[onnx]\ndevice = "tensorrt"\ndevice_id = 1\ngpu_mem_limit = "2GiB"\ncuda_graphs = true\n'
                    'engine_cache = "engines"\n[onnx.provider_options.CUDAExecutionProvider]\ngpu_mem_limit = 7\n')
    config = ModelConfig.read(path).onnx
    assert config.providers == DEVICES["tensorrt"]
    engines = str(tmp_path / "engines")
    assert config.options_of("TensorrtExecutionProvider") == {
        "device_id": "1", "trt_max_workspace_size": str(2 << 30), "trt_cuda_graph_enable": "1",
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": engines, "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": engines}
    assert config.options_of("CUDAExecutionProvider") == {
        "device_id": "1", "gpu_mem_limit": "7"}  # one provider alone captures
    assert OnnxConfig(device="cuda", cuda_graphs=True).options_of("CUDAExecutionProvider") == {
        "device_id": "0", "enable_cuda_graph": "1"}
    assert config.options_of("CPUExecutionProvider") == {}


@pytest.mark.parametrize(("text", "message"), [
    ('device = "gpu"', "2: onnx.device is 'gpu'; it takes cpu, cuda or tensorrt."),
    ('device = "cuda"\nexecution_providers = ["CUDAExecutionProvider"]', "2: onnx.device and execution_providers"),
    ("cuda_graphs = true", "2: onnx.cuda_graphs is for a GPU, and the model runs on the CPU: device ="),
    ('gpu_mem_limit = "1GiB"', "2: onnx.gpu_mem_limit is for a GPU"),
    ('device = "cuda"\nengine_cache = "x"', "3: onnx.engine_cache is TensorRT's: device = "),
])
def test_keys_that_do_not_fit_together_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "model.toml").write_text(f"[onnx]\n{text}\n")
    with pytest.raises(ConfigurationError) as caught:
        ModelConfig.read(tmp_path / "model.toml")
    assert str(caught.value).startswith(f"{tmp_path}/model.toml:{message}")
