"""The command line: the first ten minutes of somebody new, exit codes, one or two lines instead of a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastinfer
from fastinfer.cli import main

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fastinfer.__file__).parent.parent  # a checkout, or where it is installed


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder, and none of the caller's own settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FASTINFER_")]:
        monkeypatch.delenv(name)
    return tmp_path


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it."""
    paths = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, "-m", "fastinfer", *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": paths, **environ})


def refused(arguments: list[str], capsys) -> str:
    """What main says when it refuses: exit code 2, nothing on stdout, at most two lines on stderr."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastinfer: ")
    assert len(err.splitlines()) <= 2, err
    assert "Traceback" not in err
    return err.removeprefix("fastinfer: ")


@pytest.mark.parametrize(("arguments", "message"), [
    (["srve", "model.onnx"], "'srve' is not a command. Did you mean 'serve'?"),
    (["chekc"], "'chekc' is not a command. Did you mean 'check'?"),
    (["there.onnx"], "'there.onnx' is not a command. Did you mean 'fastinfer serve there.onnx'?"),
    (["serve", "--prot", "1", "model.onnx"], "--prot is not an option of fastinfer serve. Did you mean '--port'?"),
    (["serve", "--no-acces-log", "x"], "--no-acces-log is not an option of fastinfer serve. Did you mean "
                                       "'--no-access-log'?"),
    (["check", "--nmae=x", "y"], "--nmae is not an option of fastinfer check. Did you mean '--name'?"),
    (["--verison"], "--verison is not an option of fastinfer. Did you mean '--version'?"),
    (["serve"], "serve needs a PATH: a model file, a model's folder, or a repository of models."),
    (["check"], "check needs a PATH: a model file, a model's folder, or a repository of models."),
    (["serve", "a", "b"], "got unexpected extra argument (b)"),
    (["serve", "a", "--port"], "option '--port' requires an argument."),
    (["serve", "a", "--port", "http"], "--port is 'http'; it takes a whole number from 0 to 65535."),
    (["serve", "there.onnx", "--config", "x.toml"], "x.toml: No such file or directory"),
    (["serve", "there.onnx", "--config", ""], "--config is ''; it takes a path."),
    (["serve", ""], "PATH is ''; it takes a path."),
    (["import"], "missing argument 'PIPELINE'."),
    (["import", "x.joblib"], "missing option '--out'."),
    (["serve", "there.onx"], "there.onx: no such file or folder. Did you mean 'there.onnx'?"),
    (["serve", "empty"], "empty holds no model. A repository is <name>/<version>/model.onnx"),
    (["check", "empty"], "empty holds no model. A repository is <name>/<version>/model.onnx"),
    (["serve", "pipeline.joblib"], "pipeline.joblib is a pickle: it is imported once, then served. Loading it runs the "
                                   "code in it; if you trust it:\n  fastinfer import pipeline.joblib --out "
                                   "models/pipeline/1 --trust-pickle\n"),
    (["serve", "a b.onnx"], "a b.onnx cannot name a model"),
    (["serve", "there.onnx", "--name", "a/b"], "--name is 'a/b'; it takes letters"),
    (["serve", "bad"], "bad/model.toml:2: max_batch is not a known key. Did you mean 'max_batch_size'? (1 more: see "
                       "fastinfer check)"),
    (["serve", "git.onnx"], "git.onnx is a Git LFS pointer, not the model itself; run: git lfs pull"),
])
def test_a_mistake_is_answered_in_one_or_two_lines(folder, capsys, arguments, message):
    (folder / "empty").mkdir()
    for version in "12":
        (folder / "bad" / version).mkdir(parents=True)
        (folder / "bad" / version / "model.onnx").write_text("x")
    (folder / "bad" / "model.toml").write_text("\nmax_batch = 1")
    (folder / "git.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name in ("there.onnx", "pipeline.joblib", "a b.onnx"):
        (folder / name).write_text("x")
    assert refused(arguments, capsys).startswith(message)


@pytest.mark.parametrize(("file", "content", "extra"), [
    ("model.txt", "tree\nversion=v4\n", "lightgbm"),
    ("model.json", '{"learner":{}}', "xgboost"),
    ("model.ubj", "{L", "xgboost"),
    ("model.cbm", "CBM1", "catboost"),
    ("model.pt2", "PK", "torch"),
    ("model.pt", "PK", "torch"),
    ("model.skops", "PK", "skops"),
])
def test_a_model_without_its_extra_prints_the_pip_line(folder, capsys, monkeypatch, file, content, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (folder / file).write_text(content)
    assert refused(["serve", file], capsys).endswith(f"\n  pip install 'fastinfer[{extra}]'\n")


def test_the_extras_that_are_named_exist():
    import tomllib

    from fastinfer.formats import FORMATS

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {form.kind for form in FORMATS.values() if form.modules} <= extras.keys()


@pytest.mark.parametrize("arguments", [
    ["--help"], ["serve", "--help"], ["check", "-h"], ["import", "--help"]])
def test_help_and_version_exit_with_0(arguments, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out


def test_no_command_prints_what_there_is_and_exits_with_2(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in ("serve", "check", "import"))
