"""What the source promises about itself: layers, sizes, import weight, types of the core, licences."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastinfer"

# A module imports only from its left (a folder stands for its modules).
LAYERS = [
    "errors", "options", "engines", "settings", "_core", "preprocessing", "runtimes", "probe", "tensors", "policy",
    "model", "importing", "formats", "repository", "versions", "precedence", "lifecycle", "scoring", "metrics",
    "service", "polling", "protocols", "conformance", "pages", "openapi", "app", "logs", "sockets", "changes", "server",
    "workers", "cli", "__main__",
]  # fmt: skip


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").removesuffix(".pyi")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def compiled() -> list[Path]:
    return [path for suffix in ("pyx", "pxd", "pxi") for path in sorted(PACKAGE.rglob(f"*.{suffix}"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    allowed = LAYERS[: LAYERS.index(layer(path)) + 1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastinfer":
            rest = node.module.split(".")[1:]
            names = [rest[0]] if rest else [alias.name for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fastinfer.")]
        for name in names:
            assert name in allowed, f"{path.name} imports fastinfer.{name}, which stands to its right"


def test_every_layer_is_a_module() -> None:
    assert [name for name in LAYERS if name != "_core" and not any(layer(path) == name for path in modules())] == []


def test_the_core_imports_only_errors() -> None:
    for path in compiled():
        imported = re.findall(r"^\s*(?:from|import)\s+fastinfer\.?(\w*)", path.read_text(), re.MULTILINE)
        assert set(imported) <= {"errors", "_core"}, path


@pytest.mark.parametrize("path", [*modules(), *compiled()], ids=lambda path: path.name)
def test_no_module_is_longer_than_700_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 700


def imported_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import fastinfer", {"numpy", "onnxruntime", "starlette", "asyncio", "sklearn", "click"}),
        ("import fastinfer._core", {"asyncio", "starlette", "onnxruntime", "sklearn"}),
        ("import fastinfer.settings", {"click", "numpy", "asyncio"}),
        (
            "import fastinfer.lifecycle, fastinfer.app, fastinfer.server",
            {"sklearn", "onnx", "pandas", "pyarrow", "prometheus_client", "click"},
        ),
        ("import fastinfer; fastinfer.load", {"starlette", "uvicorn", "asyncio", "sklearn", "pandas", "pyarrow"}),
        ("import fastinfer.scoring", {"starlette", "uvicorn", "asyncio", "onnxruntime", "pyarrow", "rich", "click"}),
    ],
)
def test_imports_stay_light(statement: str, forbidden: set[str]) -> None:
    assert imported_by(statement) & forbidden == set()


def test_the_stub_agrees_with_the_core() -> None:
    """What the stub says is so. What it leaves out is not for Python to use."""
    allowed = ROOT / "tests" / "stubtest_allowlist.txt"
    options = ["--ignore-missing-stub", "--allowlist", str(allowed), "--ignore-disjoint-bases"]
    result = subprocess.run(
        [sys.executable, "-P", "-m", "mypy.stubtest", "fastinfer._core", *options],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests",
    )
    assert result.returncode == 0, result.stdout + result.stderr


PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|Unlicense|HPND|CNRI-Python|CC0|0BSD)\b|3-Clause"
)
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|GNU|MPL|Mozilla|EUPL|CDDL|EPL|SSPL)\b")


def closure(requirement: str, extras: frozenset[str], seen: dict[str, set[str]]) -> None:
    """Every distribution that ``requirement`` with ``extras`` brings, by name."""
    from packaging.requirements import Requirement

    have = seen.setdefault(requirement, set())
    if have and extras <= have:
        return
    have.update(extras | {""})
    for line in importlib.metadata.requires(requirement) or []:
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            closure(re.sub(r"[-_.]+", "-", need.name).lower(), frozenset(need.extras), seen)


def licence(name: str) -> str:
    metadata = importlib.metadata.metadata(name)
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    return " ".join(filter(None, [metadata["License-Expression"], *classifiers, (metadata["License"] or "")[:200]]))


def test_what_a_server_installs_is_permissively_licensed() -> None:
    seen: dict[str, set[str]] = {}
    closure("fastinfer", frozenset({"sklearn"}), seen)
    assert {"numpy", "onnxruntime", "starlette", "scikit-learn", "skl2onnx"} <= set(seen)
    licences = {name: licence(name) for name in seen}
    assert {n: t for n, t in licences.items() if COPYLEFT.search(t) or not PERMISSIVE.search(t)} == {}
