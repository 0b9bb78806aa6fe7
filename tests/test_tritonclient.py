"""Triton's own Python client, sync and aio, with its default settings: binary tensors."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from conftest import ServerProcess
from onnx_models import BIAS, WEIGHTS
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
EXPECTED = ROWS @ WEIGHTS + BIAS


def infer_input(array: np.ndarray[Any, Any], name: str = "x", module: Any = triton, **options: Any) -> Any:
    tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, **options)
    return tensor


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Any:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "fastinfer"
    assert client.get_model_metadata("affine")["inputs"][0]["shape"] == [-1, 4]
    assert client.get_model_config("affine")["max_batch_size"] == 64
    assert {"name": "affine", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()
    assert client.get_inference_statistics("affine", "2")["model_stats"][0]["version"] == "2"
    assert client.get_inference_statistics()["model_stats"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(client: Any, binary_in: bool, binary_out: bool) -> None:
    inputs = [infer_input(ROWS, binary_data=binary_in)]
    outputs = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer("affine", inputs, outputs=outputs, request_id="9")
    np.testing.assert_allclose(result.as_numpy("y"), EXPECTED, rtol=1e-6)
    assert result.get_response()["id"] == "9"


def test_infer_with_nothing_but_inputs(client: Any) -> None:
    np.testing.assert_allclose(client.infer("affine", [infer_input(ROWS)]).as_numpy("y"), EXPECTED, rtol=1e-6)


@pytest.mark.parametrize("request_algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_algorithm", [None, "gzip", "deflate"])
def test_compression(client: Any, request_algorithm: str | None, response_algorithm: str | None) -> None:
    result = client.infer(
        "affine",
        [infer_input(ROWS)],
        request_compression_algorithm=request_algorithm,
        response_compression_algorithm=response_algorithm,
    )
    np.testing.assert_allclose(result.as_numpy("y"), EXPECTED, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"],
)
def test_every_datatype(client: Any, dtype: str) -> None:
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    model = f"identity_{np_to_triton_dtype(array.dtype).lower()}"
    result = client.infer(model, [infer_input(array)]).as_numpy("y")
    np.testing.assert_array_equal(result, array)
    assert result.dtype == array.dtype


@pytest.mark.parametrize("binary", [True, False])
def test_strings(client: Any, binary: bool) -> None:
    array = np.array([["a", "é😀"], ["", "longer text"]], dtype=object)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    result = client.infer("identity_bytes", [infer_input(array, binary_data=binary)], outputs=outputs).as_numpy("y")
    decoded = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in result]
    assert decoded == array.tolist()


def test_several_inputs_and_outputs(client: Any) -> None:
    a, b = np.float32([[1, 2]]), np.float32([[10, 20]])
    result = client.infer("two", [infer_input(b, "b"), infer_input(a, "a")])
    np.testing.assert_array_equal(result.as_numpy("total"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


def test_async_infer(client: Any) -> None:
    pending = [client.async_infer("affine", [infer_input(ROWS + i)]) for i in range(4)]
    for i, request in enumerate(pending):
        np.testing.assert_allclose(request.get_result().as_numpy("y"), (ROWS + i) @ WEIGHTS + BIAS, rtol=1e-6)


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        client.infer("nobody", [infer_input(ROWS)])
    with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
        client.load_model("affine")
    with pytest.raises(InferenceServerException):
        client.infer("affine", [infer_input(ROWS[:, :3])])


def test_calls_that_clients_make_before_and_after(client: Any) -> None:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    assert client.get_system_shared_memory_status() == []
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_log_settings()["log_error"] is True


def test_aio(server: ServerProcess) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("affine")
            assert (await client.get_model_metadata("affine"))["name"] == "affine"
            results = await asyncio.gather(
                *(client.infer("affine", [infer_input(ROWS + i, module=triton_aio)]) for i in range(20))
            )
            for i, result in enumerate(results):
                np.testing.assert_allclose(result.as_numpy("y"), (ROWS + i) @ WEIGHTS + BIAS, rtol=1e-6)
            compressed = await client.infer(
                "affine", [infer_input(ROWS, module=triton_aio)],
                request_compression_algorithm="gzip", response_compression_algorithm="gzip",
            )  # fmt: skip
            np.testing.assert_allclose(compressed.as_numpy("y"), EXPECTED, rtol=1e-6)

    asyncio.run(ask())
