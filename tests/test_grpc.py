"""The gRPC service, asked by Triton's own clients with their default settings, and by gRPC itself."""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from conftest import ServerProcess, starting
from onnx_models import BIAS, WEIGHTS

grpc = pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")
triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
import tritonclient.grpc.aio as triton_aio  # noqa: E402
from tritonclient.grpc import service_pb2 as pb  # noqa: E402
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # noqa: E402

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
EXPECTED = ROWS @ WEIGHTS + BIAS
INFER = "/inference.GRPCInferenceService/ModelInfer"
HEALTH = "/grpc.health.v1.Health/"
WAIT = 30.0


def infer_input(array: np.ndarray[Any, Any], name: str = "x", module: Any = triton) -> Any:
    tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def request(array: np.ndarray[Any, Any], model: str = "affine", **members: Any) -> Any:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **members)
    message.inputs.add(name="x", datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
    return message


@pytest.fixture(scope="module")
def client(grpc_server: ServerProcess) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_server.grpc_port}") as client:
        yield client


@pytest.fixture(scope="module")
def channel(grpc_server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{grpc_server.grpc_port}") as channel:
        yield channel


def call(channel: Any, method: str, message: Any, answer: Any, **options: Any) -> Any:
    """One unary call; a method without a service is the protocol's."""
    path = method if method.startswith("/") else f"/inference.GRPCInferenceService/{method}"
    serialize = getattr(type(message), "SerializeToString", None)
    return channel.unary_unary(path, request_serializer=serialize, response_deserializer=answer)(
        message, timeout=WAIT, **options
    )


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "1")
    assert not client.is_model_ready("nobody")
    metadata = client.get_server_metadata()
    assert metadata.name == "fastinfer"
    assert "statistics" in metadata.extensions
    model = client.get_model_metadata("affine")
    assert list(model.versions) == ["2", "1"]
    assert (list(model.inputs[0].shape), model.inputs[0].datatype) == ([-1, 4], "FP32")
    config = client.get_model_config("affine").config
    assert (config.max_batch_size, config.version_policy.WhichOneof("policy_choice")) == (64, "all")
    assert [tensor.data_type for tensor in config.input] == [11]
    entries = [(each.name, each.version, each.state) for each in client.get_model_repository_index().models]
    assert ("affine", "1", "READY") in entries
    assert client.get_inference_statistics("affine", "2").model_stats[0].version == "2"
    assert len(client.get_inference_statistics().model_stats) > 2


def test_infer(client: Any) -> None:
    outputs = [triton.InferRequestedOutput("y")]
    result = client.infer("affine", [infer_input(ROWS)], outputs=outputs, request_id="9", model_version="1")
    np.testing.assert_allclose(result.as_numpy("y"), EXPECTED, rtol=1e-6)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("9", "affine", "1")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                                   "float16", "float32", "float64"])  # fmt: skip
def test_every_datatype(client: Any, dtype: str) -> None:
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    model = f"identity_{np_to_triton_dtype(array.dtype).lower()}"
    result = client.infer(model, [infer_input(array)]).as_numpy("y")
    np.testing.assert_array_equal(result, array, strict=True)


def test_strings(client: Any) -> None:
    array = np.array([["a", "é😀"], ["", "longer text"]], dtype=object)
    result = client.infer("identity_bytes", [infer_input(array)]).as_numpy("y")
    assert [[value.decode() for value in row] for row in result] == array.tolist()


def test_several_inputs_and_outputs(client: Any) -> None:
    a, b = np.float32([[1, 2]]), np.float32([[10, 20]])
    result = client.infer("two", [infer_input(b, "b"), infer_input(a, "a")])
    np.testing.assert_array_equal(result.as_numpy("total"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


def test_what_the_answer_is_does_not_depend_on_the_protocol(grpc_server: ServerProcess, client: Any) -> None:
    records = {"records": [{"age": 39.0, "job": "clerk"}, {"age": 25.5, "job": "clerk"}]}
    with grpc_server.client() as http:
        by_http = http.post("/v1/models/people:predict", json=records).json()["predictions"]
    age, job = np.array([[39.0], [25.5]]), np.array([["clerk"], ["clerk"]], dtype=object)
    result = client.infer("people", [infer_input(age, "age"), infer_input(job, "job")])
    name = result.get_response().outputs[0].name
    expected = np.float32([next(iter(each.values())) for each in by_http])
    np.testing.assert_array_equal(result.as_numpy(name).ravel(), expected)


def test_a_large_request_and_answer(client: Any) -> None:
    array = np.random.default_rng(1).random((64, 4000)).astype(np.float32)
    result = client.infer("wide", [infer_input(array)]).as_numpy("y")
    np.testing.assert_array_equal(result, array)


def test_many_at_once(grpc_server: ServerProcess) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{grpc_server.grpc_port}") as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(client.infer("affine", [infer_input(ROWS + i, module=triton_aio)]) for i in range(50))
            )
            for i, result in enumerate(results):
                np.testing.assert_allclose(result.as_numpy("y"), (ROWS + i) @ WEIGHTS + BIAS, rtol=1e-6)
            compressed = await client.infer(
                "affine", [infer_input(ROWS, module=triton_aio)], compression_algorithm="gzip"
            )
            np.testing.assert_allclose(compressed.as_numpy("y"), EXPECTED, rtol=1e-6)

            async def requests() -> Any:
                for i in range(5):
                    yield {"model_name": "affine", "inputs": [infer_input(ROWS + i, module=triton_aio)]}

            seen = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None
                np.testing.assert_allclose(result.as_numpy("y"), (ROWS + seen) @ WEIGHTS + BIAS, rtol=1e-6)
                seen += 1
            assert seen == 5

    asyncio.run(ask())


def test_a_stream_goes_on_behind_an_error(client: Any) -> None:
    seen: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: seen.put((result, error)))
    for i in range(100):
        rows = ROWS[:, :3] if i == 50 else ROWS + i
        client.async_stream_infer("affine", [infer_input(np.ascontiguousarray(rows))], request_id=str(i))
    answers = [seen.get(timeout=WAIT) for _ in range(100)]
    client.stop_stream()
    for i, (result, error) in enumerate(answers):
        if i == 50:
            assert "takes shape [-1, 4]" in str(error)
            assert result is None or result.get_response().id == "50"
        else:
            assert result.get_response().id == str(i)
            assert result.get_response().parameters["triton_final_response"].bool_param
            np.testing.assert_allclose(result.as_numpy("y"), (ROWS + i) @ WEIGHTS + BIAS, rtol=1e-5)


@pytest.mark.parametrize(
    ("message", "status", "code", "at"),
    [
        (request(ROWS, "nobody"), "NOT_FOUND", "unknown_model", None),
        (request(ROWS, model_version="9"), "NOT_FOUND", "unknown_version", None),
        (request(ROWS[:, :3]), "INVALID_ARGUMENT", "invalid_shape", "$.inputs[0].shape"),
        (request(ROWS.astype(np.float64)), "INVALID_ARGUMENT", "invalid_input", "$.inputs[0]"),
        (b"\xff", "INVALID_ARGUMENT", "invalid_message", None),
        (request(np.int64([9]), "picky"), "INVALID_ARGUMENT", "invalid_input", "$.inputs[0]"),
    ],
)
def test_errors(channel: Any, message: Any, status: str, code: str, at: str | None) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", message, pb.ModelInferResponse.FromString)
    assert caught.value.code().name == status
    trailing = dict(caught.value.trailing_metadata())
    assert (trailing.get("fastinfer-code"), trailing.get("fastinfer-at")) == (code, at)


def test_metadata_counts_as_header_fields_do_over_http(channel: Any) -> None:
    def ask(*metadata: tuple[str, str], rows: Any = ROWS) -> dict[str, str]:
        infer = channel.unary_unary(INFER, request_serializer=pb.ModelInferRequest.SerializeToString)
        try:
            _, done = infer.with_call(request(rows), timeout=WAIT, metadata=metadata)
        except grpc.RpcError as error:
            done = error
        return dict(done.trailing_metadata())

    assert ask() == {}
    assert ask(("x-request-id", "order-7"), ("somebody", "else")) == {"x-request-id": "order-7"}
    assert ask(("x-request-id", "order-7"), rows=ROWS[:, :3])["x-request-id"] == "order-7"
    made = ask(("x-request-id", "not one{"))["x-request-id"]
    assert made != "not one{"
    assert len(made) > 8
    assert "run;dur=" in ask(("prefer", "server-timing"))["server-timing"]
    assert ask(("endpoint-load-metrics-format", "json"))["endpoint-load-metrics"].startswith("JSON {")
    assert ask(("x-request-timeout", "soon"))["fastinfer-code"] == "invalid_parameter"
    assert ask(("x-request-timeout", "30")) == {}
    assert ask(("x-request-timeout", "0.000000001"))["fastinfer-code"] == "deadline_unreachable"


def test_a_message_over_the_bound(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", bytes(5 << 20), pb.ModelInferResponse.FromString)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_that_clients_make_before_and_after(client: Any) -> None:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    assert not client.get_system_shared_memory_status().regions
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    trace = client.update_trace_settings(settings={"trace_level": "OFF", "trace_rate": None}).settings
    assert list(trace["trace_rate"].value) == ["1000"]
    assert client.update_log_settings({"log_error": True}).settings["log_error"].bool_param is True
    for change in (lambda: client.update_trace_settings(settings={"trace_level": "TENSORS"}),
                   lambda: client.update_log_settings({"log_error": False})):
        with pytest.raises(InferenceServerException, match=r"not supported|cannot be changed"):
            change()
    log = client.get_log_settings().settings
    assert log["log_error"].bool_param is True
    assert log["log_verbose_level"].WhichOneof("parameter_choice") == "uint32_param"
    with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
        client.load_model("affine")
    with pytest.raises(InferenceServerException, match="not supported"):
        client.register_system_shared_memory("region", "/key", 64)


def test_models_are_loaded_and_unloaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("controlled")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    with starting(tmp_path_factory) as start:
        server = start(root, "--grpc-port", "0", "--model-control", "explicit", "--load-model", "affine")
        with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            client.unload_model("affine")
            assert not client.is_model_ready("affine")
            onnx_models.affine(root / "affine" / "2" / "model.onnx")
            client.load_model("affine")
            result = client.infer("affine", [infer_input(ROWS)])
            assert result.get_response().model_version == "2"
            with pytest.raises(InferenceServerException, match="'config' is not taken"):
                client.load_model("affine", config="{}")
            with pytest.raises(InferenceServerException):
                client.load_model("nobody")


def test_methods_that_do_not_exist(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "Nothing", b"", None)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ---- what no client of a library sends ------------------------------------------------------------------------------
def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: bytes, *more: tuple[bytes, bytes], end: bool = False) -> bytes:
    """A HEADERS frame of a call, of literal fields without a table (RFC 7541, 6.2.2)."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"test"),
              (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]  # fmt: skip
    block = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
    return frame(1, 5 if end else 4, 1, block)


def exchange(port: int, *frames: bytes) -> bytes:
    """What a connection answers to frames, up to the end of its first stream, or of itself."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as wire, wire.makefile("rb") as answers:
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + b"".join(frames))
        seen = b""
        while head := answers.read(9):
            payload = answers.read(int.from_bytes(head[:3], "big"))
            seen += payload
            if (head[3] == 1 and head[4] & 1) or head[3] in (3, 7):  # trailers, a reset, the connection's end
                break
        return seen


WHOLE = request(ROWS).SerializeToString()
MESSAGE = b"\0" + len(WHOLE).to_bytes(4, "big") + WHOLE


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([headers(INFER.encode()), frame(0, 1, 1, MESSAGE)], b"grpc-status\x010"),
        ([headers(b"/\xff\xfe"), frame(0, 1, 1, MESSAGE)], b"Method not found!"),
        ([headers(b"/inference.GRPCInferenceService/\xc3("), frame(0, 1, 1)], b"Method not found!"),
        ([headers(INFER.encode(), end=True)], b"the call has no whole message"),
        ([headers(INFER.encode()), frame(0, 1, 1, MESSAGE[:40])], b"the call has no whole message"),
        ([headers(HEALTH.encode() + b"Watch", end=True)], b"the call has no whole message"),
        ([headers(INFER.encode()), frame(0, 1, 1, b"\0\xff\xff\xff\xff" + WHOLE)], b"grpc-status\x018"),
        ([headers(INFER.encode()), frame(0, 1, 1, b"\1" + MESSAGE[1:])], b"grpc-status\x0213"),
        ([headers(INFER.encode(), (b"grpc-encoding", b"gzip")), frame(0, 1, 1, b"\1" + MESSAGE[1:])], b"\x0213"),
        ([headers(INFER.encode(), (b"traceparent", b"\xff")), frame(0, 1, 1, MESSAGE)], b"grpc-status\x010"),
        ([headers(INFER.encode(), (b"grpc-timeout", b"soon")), frame(0, 1, 1, MESSAGE)], b"grpc-status\x0213"),
        ([headers(INFER.encode())] + 200 * [frame(6, 0, 0, bytes(8))], b"too_many_pings"),
    ],
)
def test_calls_that_are_none_harm_nobody(grpc_server: ServerProcess, client: Any, frames: list[bytes],
                                         says: bytes) -> None:
    assert says in exchange(grpc_server.grpc_port, *frames)
    np.testing.assert_allclose(client.infer("affine", [infer_input(ROWS)]).as_numpy("y"), EXPECTED, rtol=1e-6)


def test_calls_that_are_reset_at_once_harm_nobody(grpc_server: ServerProcess, client: Any) -> None:
    with socket.create_connection(("127.0.0.1", grpc_server.grpc_port), timeout=WAIT) as wire:
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
        for i in range(2000):
            head = bytearray(headers(INFER.encode()))
            head[5:9] = number = (2 * i + 1).to_bytes(4, "big")
            wire.sendall(bytes(head) + frame(3, 0, int.from_bytes(number, "big"), b"\0\0\0\x08"))
        np.testing.assert_allclose(client.infer("affine", [infer_input(ROWS)]).as_numpy("y"), EXPECTED, rtol=1e-6)


def test_thousands_of_calls_at_once(grpc_server: ServerProcess) -> None:
    """More than gRPC's core lets wait by default; some as streams, half of which are then cancelled."""
    path = INFER.replace("ModelInfer", "ModelStreamInfer")

    async def ask() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_server.grpc_port}") as channel:
            infer = channel.unary_unary(INFER)
            answers = await asyncio.gather(*(infer(WHOLE, timeout=WAIT) for _ in range(2000)))
            assert len(set(answers)) == 1
            streams = [channel.stream_stream(path)(timeout=WAIT) for _ in range(1200)]

            async def first(stream: Any) -> bytes:
                await stream.write(WHOLE)
                return bytes(await stream.read())

            assert len(set(await asyncio.gather(*map(first, streams)))) == 1
            for stream in streams[::2]:
                stream.cancel()
            for stream in streams[1::2]:
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
                assert await stream.code() is grpc.StatusCode.OK

    asyncio.run(ask())


def test_what_an_error_says_fits_into_a_header(channel: Any) -> None:
    for name in ("m" * 100_000, "\u20ac" * 100_000, "a\nb\0c%\u20ac"):
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", request(ROWS, name), pb.ModelInferResponse.FromString)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert dict(caught.value.trailing_metadata())["fastinfer-code"] == "unknown_model"
        assert repr(name)[1:20] in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="\u20ac" * 100_000), None)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_another_grpc_serves_without_our_acceptors(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("customized")
    hide = "import sys; sys.modules['fastinfer.protocols.grpc_acceptors'] = None"
    (folder / "sitecustomize.py").write_text(hide)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    with starting(tmp_path_factory) as start:
        server = start(repository, "--grpc-port", "0")
        with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            np.testing.assert_allclose(client.infer("affine", [infer_input(ROWS)]).as_numpy("y"), EXPECTED, rtol=1e-6)
            assert client.is_server_ready()
            with suppress(OSError):
                exchange(server.grpc_port, headers(b"/\xff\xfe"), frame(0, 1, 1, MESSAGE))  # ends grpc.aio's server

            def answers() -> bool:
                with suppress(InferenceServerException):
                    return bool((client.infer("affine", [infer_input(ROWS)]).as_numpy("y") > -9).all())
                return False

            until(answers)
        assert server.stop() == 0, server.log()
        assert "is not one that fastinfer was made for" in server.log()


def test_health_service(channel: Any) -> None:
    assert call(channel, HEALTH + "Check", b"", None) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, HEALTH + "Check", b"\x0a\x01q", None)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    for method in (channel.unary_unary(HEALTH + "Check"), channel.unary_stream(HEALTH + "Watch")):
        with pytest.raises(grpc.RpcError) as caught:
            list(method(b"\xff", timeout=WAIT))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    watch = channel.unary_stream(HEALTH + "Watch")(b"", timeout=WAIT)
    assert next(watch) == b"\x08\x01"
    watch.cancel()
    watch = channel.unary_stream(HEALTH + "Watch")(b"\x0a\x01q", timeout=WAIT)
    assert next(watch) == b"\x08\x03"
    watch.cancel()


def test_requests_are_counted(grpc_server: ServerProcess, client: Any) -> None:
    def count() -> float:
        with grpc_server.client() as http:
            lines = http.get("/metrics").text.splitlines()
        wanted = 'fastinfer_requests_total{lane="grpc",model="affine",status="200",version="1"}'
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted)), 0.0)

    before = count()
    client.infer("affine", [infer_input(ROWS)], model_version="1")
    assert count() == before + 1


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("slow")
    onnx_models.slow(root / "slow" / "1" / "model.onnx")
    with starting(tmp_path_factory) as start:
        yield start(root, "--grpc-port", "0", "--queue-rows", "2", "--inline-budget-us", "0")


def slow_request(milliseconds: int) -> Any:
    message = pb.ModelInferRequest(model_name="slow", raw_input_contents=[np.int64([milliseconds]).tobytes()])
    message.inputs.add(name="steps", datatype="INT64", shape=[1])
    return message


def counted(server: ServerProcess, name: str) -> float:
    with server.client() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def until(condition: Any) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_client_that_leaves_cancels_its_rows_and_refusals_say_when_to_come_back(slow: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{slow.grpc_port}") as channel:
        ask = channel.unary_unary(
            INFER,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        running = ask.future(slow_request(1000), timeout=WAIT)
        until(lambda: counted(slow, "fastinfer_admitted_total") >= 1)
        waiting = [ask.future(slow_request(1), timeout=WAIT) for _ in range(2)]
        until(lambda: counted(slow, "fastinfer_queue_rows") == 2)
        with pytest.raises(grpc.RpcError) as caught:
            ask(slow_request(1), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["fastinfer-code"] == "queue_full"
        assert int(trailing["grpc-retry-pushback-ms"]) > 0
        waiting[0].cancel()
        until(lambda: counted(slow, "fastinfer_cancelled_total") == 1)
        with pytest.raises(grpc.RpcError) as caught:
            ask(slow_request(1), timeout=0.05)
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        assert running.result(WAIT).raw_output_contents
        assert waiting[1].result(WAIT).raw_output_contents


def test_a_drain_answers_what_was_admitted(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("drain")
    onnx_models.slow(root / "slow" / "1" / "model.onnx")
    with starting(tmp_path_factory) as start:
        server = start(root, "--grpc-port", "0", "--drain-delay", "0.3s", "--inline-budget-us", "0")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            ask = channel.unary_unary(
                INFER,
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            watch = channel.unary_stream(HEALTH + "Watch")(b"", timeout=WAIT)
            assert next(watch) == b"\x08\x01"
            stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            requests: queue.Queue[bytes | None] = queue.Queue()
            answers = stream(iter(requests.get, None), timeout=WAIT)
            requests.put(slow_request(1).SerializeToString())
            assert next(answers)
            running = ask.future(slow_request(800), timeout=WAIT)
            until(lambda: counted(server, "fastinfer_admitted_total") >= 2)
            server.signal(signal.SIGTERM)
            assert next(watch) == b"\x08\x02"
            assert running.result(WAIT).raw_output_contents
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            requests.put(None)
        assert server.wait(WAIT) == 0, server.log()


def test_several_workers(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with starting(tmp_path_factory) as start:
        server = start(repository, "--grpc-port", "0", "--workers", "2")
        for _ in range(8):
            with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
                result = client.infer("affine", [infer_input(ROWS)]).as_numpy("y")
                np.testing.assert_allclose(result, EXPECTED, rtol=1e-6)
        assert server.stop() == 0, server.log()


def test_an_address_that_is_taken(repository: Path, grpc_server: ServerProcess, tmp_path: Path) -> None:
    server = ServerProcess(repository, "--grpc-port", str(grpc_server.grpc_port), folder=tmp_path)
    assert server.wait(WAIT) == 2
    assert f"port {grpc_server.grpc_port} on 127.0.0.1 is in use. Choose another with --grpc-port" in server.log()


def test_without_the_packages(repository: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None; from fastinfer.cli import main; " + (
        f"sys.exit(main(['serve', {str(repository)!r}, '--port', '0', '--grpc-port', '0']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 2
    assert "pip install 'fastinfer[grpc]'" in done.stderr
