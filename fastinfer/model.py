"""One loaded model version: its signature, feature program, runtime and batcher."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastinfer import policy, probe, runtimes
from fastinfer._core import Batcher, CompiledProgram, Endpoint, Policy, Signature, Task, Tensor
from fastinfer.errors import InvalidInputError, ModelLoadError
from fastinfer.settings import DecisionError, ModelConfig, Settings
from fastinfer.tensors import tensors_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastinfer.preprocessing.program import Program

MAX_WIDTH = 16_384  # features that are served
NEVER_INLINE = -1  # microseconds: whatever a run is predicted to take is longer
logger = logging.getLogger("fastinfer.model")

LABELS = ("label", "output_label")
PROBABILITIES = ("probabilities", "output_probability")


class Model:
    """A model version that can be served, or called in process.

    Attributes:
        name, version: as clients address it.
        signature: inputs and outputs as clients see them; with a feature program its raw columns.
        endpoint: the compiled spine, for servers.
        program: the feature program, or None.
        policy: what is decided of the runtime's outputs, or None.
        task: what its outputs mean, or None.
        unbatched: why requests run alone, or None where they are batched.
        filename: of the file that was loaded; empty where it is a folder, or not here.
    """

    def __init__(
        self,
        name: str,
        version: str,
        runtime: runtimes.Runtime,
        program: "Program | None",
        config: ModelConfig,
        settings: Settings,
        filename: str = "",
    ) -> None:
        self.name = name
        self.version = version
        self.filename = filename
        if isinstance(runtime, runtimes.RemoteRuntime):
            self.version = runtime.version
            most = min(config.max_batch_size, runtime.max_batch_size)
            config = replace(config, max_batch_size=most)
        self.runtime = runtime
        self.program = program
        self.config = config
        self.unbatched = self._why_unbatched()
        runtimes.tell_batched(runtime, self.unbatched is None)
        self.inner = Signature(runtime.inputs, runtime.outputs, batched=self.unbatched is None)
        compiled = self._fit_program()
        self.task = self._task()
        self.policy = self._policy()
        if self.policy is not None and config.decision is not None and config.decision.only:
            self.task = None  # its outputs are not answered
        self.signature = Signature(
            self.inner.inputs if compiled is None else compiled.columns.inputs,
            self.inner.outputs if self.policy is None else self.policy.signature.outputs,
            batched=self.inner.batched,
            ignored=() if program is None else program.ignored,
            lenient=config.extra_fields == "ignore",
        )
        self.run = (
            probe.in_batches_of(self.config.max_batch_size, runtime.run)
            if config.batch_invariant and self.unbatched is None
            else runtime.run
        )
        self.batcher = self._batcher(settings)
        self.endpoint = Endpoint(name, self.version, self.signature, self.batcher, compiled, self.task)
        self._warm_up()
        self.batch_invariant = self._proves_invariance()

    @classmethod
    def load(
        cls,
        name: str,
        version: str,
        file: Path,
        *,
        kind: str,
        features: Path | None = None,
        config: ModelConfig | None = None,
        settings: Settings | None = None,
    ) -> "Model":
        """Load a model file, with the feature program in ``features`` where there is one.

        Raises:
            ModelLoadError: a file does not load, or the two do not fit together; the message names the file.
            ConfigurationError: the engine is unknown or not installed.
        """
        config = config or ModelConfig()
        settings = settings or Settings()
        runtime = runtimes.load(config.runtime or kind, file, config, settings)
        program = None if features is None else load_program(features)
        try:
            return cls(name, version, runtime, program, config, settings, "" if file.is_dir() else file.name)
        except ModelLoadError as error:
            raise ModelLoadError(str(error) if str(file.parent) in str(error) else f"{file}: {error}") from None

    @property
    def platform(self) -> str:
        return self.runtime.platform

    @property
    def max_batch_size(self) -> int:
        """Rows; 0 where requests run alone."""
        return 0 if self.unbatched is not None else self.config.max_batch_size

    @property
    def beside(self) -> tuple[str, ...]:
        """Outputs that a prediction has beside the task's: the policy's."""
        return () if self.policy is None else self.policy.added

    @property
    def properties(self) -> dict[str, str]:
        """What the metadata says beyond the tensors."""
        properties = {
            "batched": "false" if self.unbatched else "true",
            "batch_invariant": "true" if self.batch_invariant else "false",
        }
        if self.unbatched:
            properties["unbatched_reason"] = self.unbatched
        if self.signature.features:
            properties["features"] = json.dumps(self.signature.features, ensure_ascii=False)
        if self.config.aliases:
            properties["aliases"] = ",".join(f"{alias}={version}" for alias, version in self.config.aliases.items())
        dates = [] if self.program is None else [each.name for each in self.program.columns if each.kind == "time"]
        if dates:
            properties["dates"] = ",".join(dates)
        if self.task is not None:
            properties["task"] = self.task.kind
            if self.task.classes:
                properties["classes"] = ",".join(self.task.classes)
        if self.policy is not None and self.config.decision is not None:
            properties["decision_outputs"] = ",".join(self.beside)
            properties["decision_sha256"] = policy.fingerprint(self.config.decision)
            if self.config.decision.version is not None:
                properties["decision_version"] = self.config.decision.version
        return properties

    @property
    def closes(self) -> "Callable[[], None] | None":
        """Lets go of what the runtime holds outside this process; None where it holds nothing."""
        return self.runtime.close if isinstance(self.runtime, runtimes.RemoteRuntime) else None

    @property
    def ready(self) -> bool:
        """Whether batches are run: the last run came back, and another server that runs them takes some."""
        return not self.batcher.stuck and (
            not isinstance(self.runtime, runtimes.RemoteRuntime) or self.runtime.ready)

    @property
    def stale(self) -> bool:
        """Whether another server, which runs the model, has another one now: it is to be loaded again."""
        return isinstance(self.runtime, runtimes.RemoteRuntime) and self.runtime.stale

    def close(self) -> None:
        """Let go of what the runtime holds outside this process."""
        if self.closes is not None:
            self.closes()

    async def part(self) -> None:
        """As `close`, but for the running loop alone, and waited for."""
        if isinstance(self.runtime, runtimes.RemoteRuntime):
            await self.runtime.part()

    def predict(self, rows: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Answer rows in process, past the batcher.

        Args:
            rows: with a feature program what ``Program.transform`` takes (a frame, records, a dict of columns, an
                array); else what ``fastinfer.tensors.tensors_from`` takes: the same, with a column an input, or, where
                the model has one wide input, a column a feature.

        Returns:
            dict of output name to array, rows first.

        Raises:
            InvalidRequestError: rows that the model does not take; the subclasses say in which way.
        """
        return self.answer(self.inputs(rows))

    def answer(self, inputs: runtimes.Arrays) -> runtimes.Arrays:
        """What the estimator's inputs, C-contiguous arrays by name, are answered with: all but decode and encode."""
        outputs = self.run(inputs)
        return outputs if self.policy is None else self.policy.apply(outputs)

    def transform(self, rows: Any) -> np.ndarray[Any, Any]:
        """The estimator's input for these rows, [rows, features].

        Raises:
            InvalidInputError: the model has no feature program.
        """
        if self.program is None:
            raise InvalidInputError(f"model {self.name!r} has no feature program")
        return self.program.transform_dense(rows)

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The protocol's model metadata."""
        return {
            "name": self.name,
            "versions": versions,
            "platform": self.platform,
            "inputs": [described(tensor) for tensor in self.signature.inputs],
            "outputs": [described(tensor) for tensor in self.signature.outputs],
            "properties": self.properties,
        }

    def configuration(self) -> dict[str, Any]:
        """The model as Triton's ModelConfig, in JSON."""
        batched = self.max_batch_size > 0
        configuration: dict[str, Any] = {
            "name": self.name,
            "platform": self.platform,
            "backend": "triton" if isinstance(self.runtime, runtimes.RemoteRuntime)
            else self.platform.partition("_")[0],
            "version_policy": self.config.version_policy.triton(),
            "max_batch_size": self.max_batch_size,
            "input": [configured(tensor, batched) for tensor in self.signature.inputs],
            "output": [configured(tensor, batched) for tensor in self.signature.outputs],
            "instance_group": [{"name": self.name, "kind": "KIND_CPU", "count": self.config.instances}],
            "default_model_filename": self.filename,
            "parameters": {},
        }
        if batched:
            configuration["dynamic_batching"] = {
                "preferred_batch_size": [self.max_batch_size],
                "max_queue_delay_microseconds": self.config.max_delay_us,
            }
        return configuration

    def statistics(self) -> dict[str, Any]:
        """One element of the statistics extension's ``model_stats``."""
        return self.endpoint.statistics()

    def record(self) -> dict[str, Any]:
        """A record that this model answers, for pages and a first curl."""
        return dict.fromkeys(self.signature.features, 0.5) or self.example()

    def example(self) -> dict[str, Any]:
        """A value of each input, as a record has it."""
        if self.program is not None:
            return {column.name: column.example for column in self.program.columns}
        examples = runtimes.examples_of(self.runtime)
        if examples is not None and self.signature.batched:
            row = {name: array[0] for name, array in examples(1).items()}
            return {name: value.item() if value.size == 1 else value.tolist() for name, value in row.items()}
        return {tensor.name: placeholder(tensor, self.signature.batched) for tensor in self.signature.inputs}

    # -- load --------------------------------------------------------------------------------------------------
    def _why_unbatched(self) -> str | None:
        if self.config.max_batch_size == 0:
            return "max_batch_size is 0"
        for tensor in (*self.runtime.inputs, *self.runtime.outputs):
            if not tensor.shape or tensor.shape[0] != -1:
                return f"the first dimension of {tensor.name!r} is fixed"
        return probe.proves_batching(self.runtime.run, Signature(self.runtime.inputs, self.runtime.outputs),
                                     runtimes.examples_of(self.runtime))

    def _fit_program(self) -> CompiledProgram | None:
        """Check that what the program makes is what the estimator takes."""
        if self.program is None:
            return None
        compiled = self.program.compiled
        if compiled.width > MAX_WIDTH:
            raise ModelLoadError(f"features.json makes {compiled.width:,} features; at most {MAX_WIDTH:,} are served, "
                                 "and more only where a linear estimator is the program's last operation")
        datatype = {"float32": "FP32", "float64": "FP64"}[compiled.dtype]
        takes = [(tensor.datatype, tensor.shape) for tensor in self.runtime.inputs]
        fits = (
            len(takes) == 1
            and takes[0][0] == datatype
            and len(takes[0][1]) == 2
            and takes[0][1][0] == -1
            and takes[0][1][1] in (-1, compiled.width)
        )
        if not fits:
            raise ModelLoadError(
                f"features.json makes one {datatype} tensor of shape [-1, {compiled.width}]; the model takes "
                + ", ".join(f"{datatype} {list(shape)}" for datatype, shape in takes)
            )
        return compiled

    def _task(self) -> Task | None:
        """What the outputs mean: features.json says it, else their names do."""
        outputs = [tensor.name for tensor in self.runtime.outputs]
        if self.program is not None and self.program.task is not None:
            task = self.program.task
            for name in (task.label, task.probabilities, task.value):
                if name is not None and name not in outputs:
                    raise ModelLoadError(f"features.json names the output {name!r}; the model has {', '.join(outputs)}")
            return task
        label = next((name for name in LABELS if name in outputs), None)
        probabilities = next((name for name in PROBABILITIES if name in outputs), None)
        if label is None or probabilities is None:
            return None
        classes = self.runtime.classes.get(probabilities, ())
        return Task("classifier", label, probabilities, classes or self._numbered_classes(probabilities), None)

    def _policy(self) -> Policy | None:
        """The model's [decision], fitted to its outputs."""
        decision = self.config.decision
        if decision is None:
            return None
        try:
            return policy.bound(decision, self.inner, self.task)
        except DecisionError as fault:
            raise ModelLoadError(f"{decision.source.removesuffix('decision')}{fault}") from None

    def _numbered_classes(self, probabilities: str) -> tuple[str, ...]:
        shape = next(tensor.shape for tensor in self.runtime.outputs if tensor.name == probabilities)
        return tuple(str(i) for i in range(shape[1])) if len(shape) == 2 and shape[1] > 0 else ()

    def _batcher(self, settings: Settings) -> Batcher:
        def chosen(key: str) -> int:
            own = getattr(self.config, key)
            return int(getattr(settings, key) if own is None else own)

        remote = self.runtime if isinstance(self.runtime, runtimes.RemoteRuntime) else None
        batcher = Batcher(
            self.inner,
            self.runtime.run,
            max_batch_size=max(self.config.max_batch_size, 1),
            max_delay_us=self.config.max_delay_us,
            instances=self.config.instances if remote is None else remote.in_flight,
            queue_rows=chosen("queue_rows"),
            queue_bytes=chosen("queue_bytes"),
            inline_budget_us=chosen("inline_budget_us") if self.runtime.inline else NEVER_INLINE,
            run_timeout_ms=chosen("run_timeout_ms"),
            slo_ms=self.config.slo_ms or 0,
            fixed_size=self.config.batch_invariant,
            engine=self.runtime.native,
            policy=self.policy,
            run_async=None if remote is None else remote.run_async,
            pace=None if remote is None else remote.pace,
            stop=getattr(self.runtime, "stop", None),
        )
        batcher.forwards = None if remote is None else remote.forwards
        return batcher

    def _warm_up(self) -> None:
        """Run what a server will run, so that the first request is not the slow one, and learn what it costs."""
        sizes = [1] if self.unbatched else sorted({1, self.config.warmup_rows, self.config.max_batch_size})
        times = probe.warm_up(self.run, self.inner, sizes, examples=runtimes.examples_of(self.runtime))
        if not times:
            logger.info("model %s takes none of the generated warm-up rows; its first request warms it", self.name)
        for rows, nanoseconds in times:
            self.batcher.seed(rows, nanoseconds)

    def _proves_invariance(self) -> bool:
        """Whether a row's answer is the same, bit by bit, in whatever batch it runs.

        Raises:
            ModelLoadError: it is not, though every run has the same size, and `batch_invariant` promises it.
        """
        if self.unbatched is not None:
            return True  # nothing ever runs beside it
        culprit = probe.depends_on_batch(self.run, self.inner, self.config.max_batch_size,
                                         runtimes.examples_of(self.runtime))
        if culprit is not None and self.config.batch_invariant:
            raise ModelLoadError(f"batch_invariant is true, and output {culprit!r} of a row depends on its place among "
                                 "the rows of a batch, even in batches of one size")
        return culprit is None

    def inputs(self, rows: Any) -> runtimes.Arrays:
        """The estimator's inputs for these rows, C-contiguous; raises as `predict` does."""
        if self.program is not None:
            return {self.runtime.inputs[0].name: self.program.transform_dense(rows)}
        return tensors_from(rows, self.inner.inputs, self.inner.batched)


def load_program(features: Path) -> "Program":
    from fastinfer.preprocessing.program import Program  # only for a model that has one

    return Program.load(features)


def described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def configured(tensor: Tensor, batched: bool) -> dict[str, Any]:
    """A tensor in Triton's ModelConfig, where the batch dimension is not written."""
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = tensor.shape[1:] if batched else tensor.shape
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(dims)}


def placeholder(tensor: Tensor, batched: bool) -> Any:
    """A value of the tensor's type, nested as a record has it: one row, or the whole tensor."""
    value: Any = {"BYTES": "text", "BOOL": True}.get(tensor.datatype, 0 if "INT" in tensor.datatype else 0.5)
    row = tensor.shape[1:] if batched else tensor.shape
    for dim in reversed(() if row in ((), (1,)) else row):
        value = [value] * (dim if dim > 0 else 1)
    return value
