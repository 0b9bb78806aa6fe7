"""The protocol's protobuf messages. Those of inference are for clients: the core reads and writes them itself.

A line is a message: its name, then its fields as type, name and number, `*` for a repeated one and `map:` for a map
from strings; of those with `?` a message has one. `ModelConfig` and what it holds have the fields that this server
fills. The messages live in a pool of their own: another client in the same process may bring the same names.

Sources: kserve/open-inference-protocol `specification/protocol/open_inference_grpc.proto`; triton-inference-server/
common `protobuf/{grpc_service,health,model_config}.proto`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from google.protobuf.message import Message

PACKAGE = "inference"
TABLE = """
ServerLiveRequest:
ServerLiveResponse: bool live 1
ServerReadyRequest:
ServerReadyResponse: bool ready 1
ModelReadyRequest: string name 1, string version 2
ModelReadyResponse: bool ready 1
ServerMetadataRequest:
ServerMetadataResponse: string name 1, string version 2, *string extensions 3
ModelMetadataRequest: string name 1, string version 2
ModelMetadataResponse: string name 1, *string versions 2, string platform 3, *TensorMetadata inputs 4,
    *TensorMetadata outputs 5, map:string properties 6
TensorMetadata: string name 1, string datatype 2, *int64 shape 3
InferParameter: ?bool bool_param 1, ?int64 int64_param 2, ?string string_param 3, ?double double_param 4,
    ?uint64 uint64_param 5
InferTensorContents: *bool bool_contents 1, *int32 int_contents 2, *int64 int64_contents 3, *uint32 uint_contents 4,
    *uint64 uint64_contents 5, *float fp32_contents 6, *double fp64_contents 7, *bytes bytes_contents 8
InferTensor: string name 1, string datatype 2, *int64 shape 3, map:InferParameter parameters 4,
    InferTensorContents contents 5
InferRequestedOutput: string name 1, map:InferParameter parameters 2
ModelInferRequest: string model_name 1, string model_version 2, string id 3, map:InferParameter parameters 4,
    *InferTensor inputs 5, *InferRequestedOutput outputs 6, *bytes raw_input_contents 7
ModelInferResponse: string model_name 1, string model_version 2, string id 3, map:InferParameter parameters 4,
    *InferTensor outputs 5, *bytes raw_output_contents 6
ModelStreamInferResponse: string error_message 1, ModelInferResponse infer_response 2
ModelConfigRequest: string name 1, string version 2
ModelConfigResponse: ModelConfig config 1
ModelStatisticsRequest: string name 1, string version 2
ModelStatisticsResponse: *ModelStatistics model_stats 1
ModelStatistics: string name 1, string version 2, uint64 last_inference 3, uint64 inference_count 4,
    uint64 execution_count 5, InferStatistics inference_stats 6, *InferBatchStatistics batch_stats 7,
    *MemoryUsage memory_usage 8, map:InferResponseStatistics response_stats 9
StatisticDuration: uint64 count 1, uint64 ns 2
InferStatistics: StatisticDuration success 1, StatisticDuration fail 2, StatisticDuration queue 3,
    StatisticDuration compute_input 4, StatisticDuration compute_infer 5, StatisticDuration compute_output 6,
    StatisticDuration cache_hit 7, StatisticDuration cache_miss 8
InferResponseStatistics: StatisticDuration compute_infer 1, StatisticDuration compute_output 2,
    StatisticDuration success 3, StatisticDuration fail 4, StatisticDuration empty_response 5,
    StatisticDuration cancel 6
InferBatchStatistics: uint64 batch_size 1, StatisticDuration compute_input 2, StatisticDuration compute_infer 3,
    StatisticDuration compute_output 4
MemoryUsage: string type 1, int64 id 2, uint64 byte_size 3
RepositoryIndexRequest: string repository_name 1, bool ready 2
RepositoryIndexResponse: *ModelIndex models 1
ModelIndex: string name 1, string version 2, string state 3, string reason 4
ModelRepositoryParameter: ?bool bool_param 1, ?int64 int64_param 2, ?string string_param 3, ?bytes bytes_param 4
RepositoryModelLoadRequest: string repository_name 1, string model_name 2, map:ModelRepositoryParameter parameters 3
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: string repository_name 1, string model_name 2, map:ModelRepositoryParameter parameters 3
RepositoryModelUnloadResponse:
SystemSharedMemoryStatusRequest: string name 1
SystemSharedMemoryStatusResponse:
SystemSharedMemoryRegisterRequest: string name 1
SystemSharedMemoryRegisterResponse:
SystemSharedMemoryUnregisterRequest: string name 1
SystemSharedMemoryUnregisterResponse:
CudaSharedMemoryStatusRequest: string name 1
CudaSharedMemoryStatusResponse:
CudaSharedMemoryRegisterRequest: string name 1
CudaSharedMemoryRegisterResponse:
CudaSharedMemoryUnregisterRequest: string name 1
CudaSharedMemoryUnregisterResponse:
TraceValue: *string value 1
TraceSettingRequest: map:TraceValue settings 1, string model_name 2
TraceSettingResponse: map:TraceValue settings 1
LogValue: ?bool bool_param 1, ?uint32 uint32_param 2, ?string string_param 3
LogSettingsRequest: map:LogValue settings 1
LogSettingsResponse: map:LogValue settings 1
HealthCheckRequest: string service 1
HealthCheckResponse: int32 status 1
ModelConfig: string name 1, string platform 2, string backend 17, ModelVersionPolicy version_policy 3,
    int32 max_batch_size 4, *ModelInput input 5, *ModelOutput output 6, ModelDynamicBatching dynamic_batching 11,
    *ModelInstanceGroup instance_group 7, string default_model_filename 8, map:ModelParameter parameters 14
ModelVersionPolicy: ?Latest latest 1, ?All all 2, ?Specific specific 3
Latest: uint32 num_versions 1
All:
Specific: *int64 versions 1
ModelInput: string name 1, DataType data_type 2, *int64 dims 4
ModelOutput: string name 1, DataType data_type 2, *int64 dims 3, string label_filename 4
ModelDynamicBatching: *int32 preferred_batch_size 1, uint64 max_queue_delay_microseconds 2
ModelInstanceGroup: string name 1, Kind kind 4, int32 count 2, *int32 gpus 3
ModelParameter: string string_value 1
"""
ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip


@cache
def message(name: str) -> type[Message]:
    """The class of a message of the table."""
    found: type[Message] = message_factory.GetMessageClass(pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
    return found


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """All messages of the table, compiled."""
    file = descriptor_pb2.FileDescriptorProto(name="fastinfer.proto", package=PACKAGE, syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for line in TABLE.replace(",\n", ",").strip().splitlines():
        name, _, fields = line.partition(":")
        described = file.message_type.add(name=name)
        for field in filter(None, (each.strip() for each in fields.split(","))):
            add_field(described, *field.split())
    result = descriptor_pool.DescriptorPool()
    result.AddSerializedFile(file.SerializeToString())
    return result


def add_field(described: Any, kind: str, name: str, number: str) -> None:
    """Add a field of the table to a message's description."""
    field = described.field.add(name=name, number=int(number), label=field_label("*" in kind or "map:" in kind))
    if kind.startswith("?"):
        if not described.oneof_decl:
            described.oneof_decl.add(name="choice")
        field.oneof_index = 0
    kind = kind.lstrip("*?")
    if kind.startswith("map:"):
        entry = described.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        add_field(entry, "string", "key", "1")
        add_field(entry, kind.removeprefix("map:"), "value", "2")
        field.type_name = f".{PACKAGE}.{described.name}.{entry.name}"
        field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    elif kind[0].isupper():
        field.type_name = f".{PACKAGE}.{kind}"
        types = descriptor_pb2.FieldDescriptorProto
        field.type = types.TYPE_ENUM if kind in ENUMS else types.TYPE_MESSAGE
    else:
        field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


def field_label(repeated: bool) -> Any:
    labels = descriptor_pb2.FieldDescriptorProto
    return labels.LABEL_REPEATED if repeated else labels.LABEL_OPTIONAL
