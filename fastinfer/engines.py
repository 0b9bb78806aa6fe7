"""The engines' own tables of model.toml."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastinfer.errors import ConfigurationError
from fastinfer.options import (
    BOOLEAN,
    INTEGER,
    NAMES,
    PATH,
    SIZE,
    TEXT,
    TEXTS,
    Option,
    TomlFile,
    check_fields,
    nearest,
    option,
    options,
    shown,
    take_table,
)

DAY = 86_400


# onnxruntime's execution providers for each device; what the first does not take, the next one runs.
DEVICES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxConfig:
    """The table [onnx] of model.toml."""

    intra_op_threads: int | None = option(
        None, INTEGER, "Threads within one operator.", low=1, high=1024,
        unset="1 for small models, else the CPUs allowed to the server, shared among its workers")
    inter_op_threads: int | None = option(
        None, INTEGER, "Threads over independent operators.", low=1, high=1024, unset="1: operators run in order")
    graph_optimization: str = option(
        "all", TEXT, "How far onnxruntime rewrites the graph at load.",
        choices=("all", "extended", "basic", "disabled"))
    device: str | None = option(
        None, TEXT, "Where the model runs; cuda and tensorrt need an onnxruntime that has them.",
        choices=tuple(DEVICES), unset="cpu, or what execution_providers says")
    device_id: int = option(
        0, INTEGER, "Number of the GPU.", low=0, high=255)
    gpu_mem_limit: int | None = option(
        None, SIZE, "Most memory of the GPU for the model's tensors; a batch that does not fit is run by halves from "
        "then on.", low=1 << 20, high=1 << 44, unset="what the GPU has")
    cuda_graphs: bool = option(
        False, BOOLEAN, "Capture a CUDA graph for each batch size, 1, 2, 4, … max_batch_size, and replay it; smaller "
        "batches are filled up. Takes fixed dimensions but for the rows.")
    engine_cache: Path | None = option(
        None, PATH, "Folder in which TensorRT keeps the engines that it has built, for the next start; relative to "
        "model.toml.", unset="none: engines are built at every load")
    execution_providers: tuple[str, ...] = option(
        DEVICES["cpu"], NAMES, "onnxruntime's execution providers, preferred first, in place of device; one that is "
        "not active after load is an error.")
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for key, fault in self.faults():
            raise EngineError(("onnx", key), fault)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers, preferred first."""
        return self.execution_providers if self.device is None else DEVICES[self.device]

    def faults(self) -> Iterator[tuple[str, str]]:
        """Keys that do not fit together, and why."""
        if self.device is not None and self.execution_providers != DEVICES["cpu"]:
            yield "device", "and execution_providers both say where the model runs: keep one of them"
        gpu = any(name in self.providers for name in DEVICES["tensorrt"][:2])
        for key in ("device_id", "gpu_mem_limit", "cuda_graphs"):
            if getattr(self, key) and not gpu:
                yield key, "is for a GPU, and the model runs on the CPU: device = \"cuda\" or \"tensorrt\""
        if self.engine_cache is not None and "TensorrtExecutionProvider" not in self.providers:
            yield "engine_cache", "is TensorRT's: device = \"tensorrt\""

    def options_of(self, provider: str) -> dict[str, str]:
        """A provider's options, as onnxruntime takes them: of these keys, then of [onnx.provider_options]."""
        result: dict[str, str] = {}
        if provider in DEVICES["tensorrt"][:2]:
            result["device_id"] = str(self.device_id)
        if provider == "CUDAExecutionProvider":
            if self.gpu_mem_limit is not None:
                result["gpu_mem_limit"] = str(self.gpu_mem_limit)
            if self.cuda_graphs and "TensorrtExecutionProvider" not in self.providers:  # each would capture the run
                result["enable_cuda_graph"] = "1"
        if provider == "TensorrtExecutionProvider":
            if self.gpu_mem_limit is not None:
                result["trt_max_workspace_size"] = str(self.gpu_mem_limit)
            if self.cuda_graphs:
                result["trt_cuda_graph_enable"] = "1"
            if self.engine_cache is not None:
                folder = str(self.engine_cache)
                result |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder,
                           "trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
        return result | dict(self.provider_options.get(provider, {}))

    @classmethod
    def read(cls, file: TomlFile) -> "OnnxConfig":
        """The table of a file; raises ConfigurationError as `ModelConfig.read`, as those below do."""
        values = take_table(options(cls), file, "onnx", tables=["provider_options"])
        if "engine_cache" in values:
            values["engine_cache"] = (file.path.parent / values["engine_cache"]).absolute()
        try:
            plain = cls(**values)
        except EngineError as error:
            raise ConfigurationError(f"{file.place(*error.keys)}: {error}") from None
        return replace(plain, provider_options=provider_options(file, plain.providers))


class EngineError(ConfigurationError):
    """Keys that do not fit together; `keys` is the one to look at."""

    def __init__(self, keys: tuple[str, ...], fault: str) -> None:
        super().__init__(f"{'.'.join(keys)} {fault}.")
        self.keys = keys


def provider_options(file: TomlFile, providers: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """[onnx.provider_options.<Provider>]: each value as the text that onnxruntime takes."""
    result = {}
    for provider, table in file.table["onnx"].get("provider_options", {}).items():
        keys = ("onnx", "provider_options", provider)
        place = f"{file.place(*keys)}: {'.'.join(keys)}"
        if not isinstance(table, dict):
            raise ConfigurationError(f"{place} is {shown(table)}; it takes a table.")
        if provider not in providers:
            raise ConfigurationError(f"{place} is for a provider that execution_providers does not name."
                                     f"{nearest(provider, providers)}")
        for key, value in table.items():
            if not isinstance(value, str | int | float):
                raise ConfigurationError(f"{file.place(*keys, key)}: {'.'.join((*keys, key))} is {shown(value)}; "
                                         "it takes text, a number, true or false.")
        result[provider] = {key: str(int(value) if isinstance(value, bool) else value) for key, value in table.items()}
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonConfig:
    """The table [python] of model.toml."""

    process: bool = option(
        False, BOOLEAN, "Run the model in a process of its own, one an instance, which may crash or hang without the "
        "server.")
    start_timeout_ms: int = option(
        300_000, INTEGER, "Longest time, in milliseconds, that importing the file and making the model may take.",
        low=1, high=DAY * 1000)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, file: TomlFile) -> "PythonConfig":
        return cls(**take_table(options(cls), file, "python"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SklearnConfig:
    """The table [sklearn] of model.toml."""

    trusted: tuple[str, ...] = option(
        (), TEXTS, "Types in a skops file that may be made although skops does not know them, by their full names.")
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, file: TomlFile) -> "SklearnConfig":
        values = take_table(options(cls), file, "sklearn", tables=["columns"])
        columns = {name: COLUMN.take(value, f"{file.place('sklearn', 'columns', name)}: sklearn.columns.{name}")
                   for name, value in file.table["sklearn"].get("columns", {}).items()}
        return cls(**values, columns=columns)


COLUMN = Option(kind=TEXT, text="", choices=("FP64", "INT64", "BOOL", "BYTES"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CatboostConfig:
    """The table [catboost] of model.toml."""

    threads: int = option(
        1, INTEGER, "Threads within one run.", low=1, high=1024)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, file: TomlFile) -> "CatboostConfig":
        return cls(**take_table(options(cls), file, "catboost"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchConfig:
    """The table [torch] of model.toml."""

    device: str = option(
        "cpu", TEXT, "Where the program runs.", choices=("cpu", "cuda"))
    device_id: int = option(
        0, INTEGER, "Number of the GPU.", low=0, high=255)
    threads: int | None = option(
        None, INTEGER, "Threads within one run.", low=1, high=1024,
        unset="1 for small programs, else the CPUs allowed to the server, shared among its workers")

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, file: TomlFile) -> "TorchConfig":
        return cls(**take_table(options(cls), file, "torch"))
