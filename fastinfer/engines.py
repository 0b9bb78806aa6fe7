"""The engines' own tables of model.toml."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastinfer.options import BOOLEAN, INTEGER, TEXT, TEXTS, Option, TomlFile, check_fields, option, options, take_table

DAY = 86_400


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
        """The table of a file; raises ConfigurationError as `ModelConfig.read`, as those below do."""
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
