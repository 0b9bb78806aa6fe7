"""What Triton says of a model, and whether it can be served from here."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastinfer._core import DATATYPES, Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.settings import ModelConfig

logger = logging.getLogger("fastinfer.triton")

MOST_INSTANCES = 16


@dataclass(frozen=True, slots=True)
class Contract:
    """One version of a model as Triton has it.

    Attributes:
        inputs, outputs: with the rows as first dimension where the model is batched.
        max_batch_size: 0 where it is not.
        mixes: whether Triton itself puts the requests of several clients together.
        instances: batches that it runs at the same time.
        delay_us: its batcher's longest wait.
    """

    model: str
    version: str
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int
    mixes: bool
    instances: int
    delay_us: int

    @classmethod
    def read(cls, metadata: Mapping[str, Any], configuration: Mapping[str, Any], place: str) -> "Contract":
        """The contract of a model's metadata and configuration, JSON of the protocol; 64-bit numbers may be texts.

        Args:
            place: the model.toml, for messages.

        Raises:
            ModelLoadError: it is of a kind that is not served from here, or Triton's answer makes no sense.
        """
        try:
            name = str(metadata["name"])
            refuse(name, configuration, place)
            max_batch_size = int(configuration.get("max_batch_size", 0))
            contract = cls(
                model=name,
                version=max(map(str, metadata["versions"]), key=int),
                platform=str(metadata.get("platform") or configuration.get("backend") or "triton"),
                inputs=tuple(tensor(each, place) for each in metadata["inputs"]),
                outputs=tuple(tensor(each, place) for each in metadata["outputs"]),
                max_batch_size=max_batch_size,
                mixes=max_batch_size > 1 and "dynamic_batching" in configuration,
                instances=instances(configuration),
                delay_us=int((configuration.get("dynamic_batching") or {}).get("max_queue_delay_microseconds", 0)),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelLoadError(f"{place}: what Triton says of its model makes no sense: "
                                 f"{type(error).__name__}: {error}") from None
        for each in (*contract.inputs, *contract.outputs):
            if max_batch_size and each.shape[:1] != (-1,):
                raise ModelLoadError(f"{place}: Triton batches model {name!r}, and its {each.name!r} has the shape "
                                     f"{list(each.shape)}, without rows")
        if not contract.inputs or not contract.outputs:
            lacks = "outputs" if contract.inputs else "inputs"
            raise ModelLoadError(f"{place}: model {name!r} has no {lacks} in Triton")
        return contract

    def advise(self, config: ModelConfig, place: str) -> None:
        """Tell the log where it and the model.toml do not go well together."""
        if self.delay_us and config.max_delay_us:
            logger.warning("%s: both sides wait for company, %d µs here (max_delay_us) and %d µs in Triton "
                           "(max_queue_delay_microseconds); one of them should be 0", place, config.max_delay_us,
                           self.delay_us)
        if self.max_batch_size and config.max_batch_size > self.max_batch_size:
            logger.info("%s: max_batch_size is %d, and Triton takes %d: that many", place, config.max_batch_size,
                        self.max_batch_size)


def instances(configuration: Mapping[str, Any]) -> int:
    """Of a model's instance groups, each as many as it says on each of its GPUs."""
    groups = configuration.get("instance_group") or []
    count = sum(int(group.get("count", 1)) * max(1, len(group.get("gpus") or [])) for group in groups)
    return min(max(1, count), MOST_INSTANCES)


def refuse(name: str, configuration: Mapping[str, Any], place: str) -> None:
    """Raises ModelLoadError for a model whose requests are no single questions with single answers."""
    if configuration.get("sequence_batching"):
        raise ModelLoadError(f"{place}: model {name!r} is a sequence model in Triton (sequence_batching), whose "
                             "requests belong together; such models are not served from here")
    if (configuration.get("model_transaction_policy") or {}).get("decoupled"):
        raise ModelLoadError(f"{place}: model {name!r} is decoupled in Triton (model_transaction_policy), which gives "
                             "any number of answers to a request; such models are not served from here")


def tensor(described: Mapping[str, Any], place: str) -> Tensor:
    """An input or output of the metadata."""
    name, datatype = str(described["name"]), str(described["datatype"])
    if datatype not in DATATYPES:
        raise ModelLoadError(f"{place}: {name!r} is {datatype} in Triton, which cannot be served")
    shape = tuple(int(dim) for dim in described["shape"])
    if any(dim < -1 for dim in shape):
        raise ValueError(f"shape {list(shape)}")
    return Tensor(name, datatype, shape)
