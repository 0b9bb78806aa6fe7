"""The command line: the first ten minutes of somebody new, exit codes, one or two lines instead of a traceback."""

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import onnx_models
import pytest

import fastinfer
from fastinfer.cli import main, models

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
    (["serve", "pipeline.joblib"], "pipeline.joblib is a pickle: loading it runs the code in it. If you trust it, "
                                   "serve it with --trust-pickle, or import it once, which is faster and safer to "
                                   "serve:\n  fastinfer import pipeline.joblib --out models/pipeline/1 "
                                   "--trust-pickle\n"),
    (["serve", "model.py"], "model.py is Python code, which runs with the server's own rights; if you trust it, add "
                            "--allow-python-models.\n"),
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
    for name in ("there.onnx", "pipeline.joblib", "model.py", "a b.onnx"):
        (folder / name).write_text("x")
    assert refused(arguments, capsys).startswith(message)


def test_the_extras_that_are_named_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    source = "".join(path.read_text() for path in (ROOT / "fastinfer" / "runtimes").rglob("*.py"))
    named = set(re.findall(r'needed\("[\w.]+", path, "(\w+)"\)', source) + re.findall(r"fastinfer\[(\w+)\]", source))
    assert {"catboost", "sklearn", "torch", "triton"} <= named <= extras.keys()


@pytest.mark.parametrize("arguments", [
    ["--version"], ["--help"], ["serve", "--help"], ["check", "-h"], ["import", "--help"]])
def test_help_and_version_exit_with_0(arguments, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out


def test_no_command_prints_what_there_is_and_exits_with_2(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in ("serve", "check", "import"))


# -- what only the server, or the import, finds out ----------------------------------------------------------------
@pytest.fixture
def taken():
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def lines_of(arguments: list[str]) -> list[str]:
    """What the process says when it refuses: exit code 2, nothing on stdout, one or two lines on stderr."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2, done.stderr
    assert "Traceback" not in done.stderr
    return lines


def test_a_port_in_use_is_named(folder, taken):
    onnx_models.affine(folder / "model.onnx")
    (line,) = lines_of(["serve", "model.onnx", "--port", taken])
    assert line == f"fastinfer: port {taken} on 127.0.0.1 is in use. Choose another with --port, or 0 for a free one."


@pytest.mark.parametrize("content", [b"not a model", None])
def test_a_broken_onnx_file_is_named(folder, content):
    whole = onnx_models.affine(folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert lines_of(["serve", "model.onnx", "--port", "0"])[-1].startswith("fastinfer: model.onnx: ")


def saved(path: Path, version: str | None = None) -> Path:
    """A small fitted pipeline in a joblib file, as another release of scikit-learn would have saved it."""
    import joblib
    import sklearn.base
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    with pytest.MonkeyPatch.context() as patch:
        if version is not None:
            patch.setattr(sklearn.base, "__version__", version)
        joblib.dump(pipeline, path)
    return path


def test_a_pickle_of_another_scikit_learn_names_both_versions(folder, capsys):
    import sklearn

    saved(folder / "old.joblib", version="1.3.0")
    message = refused(["import", "old.joblib", "--out", "models/old/1", "--trust-pickle"], capsys)
    assert message.startswith("old.joblib: saved by scikit-learn 1.3.0")
    assert sklearn.__version__ in message
    assert not (folder / "models").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["p.joblib", "--out", "out"], "p.joblib: loading a pickle runs the code in it"),
    (["nope.joblib", "--out", "out", "--trust-pickle"], "nope.joblib: no such file"),
    (["text.joblib", "--out", "out", "--trust-pickle"], "text.joblib: cannot be loaded as a pickle"),
    (["p.joblib", "--out", "full", "--trust-pickle"], "full"),
    (["p.joblib", "--out", "out", "--trust-pickle", "--sample", "nope.csv"], "nope.csv: no such file"),
    (["p.joblib", "--out", "out", "--trust-pickle", "--sample", "text.joblib"], "text.joblib: a sample is"),
    (["p.joblib", "--out", ""], "--out is ''; it takes a path."),
])
def test_an_import_that_cannot_be_is_answered_in_one_or_two_lines(folder, capsys, arguments, message):
    saved(folder / "p.joblib")
    (folder / "text.joblib").write_text("not a pickle")
    (folder / "full").mkdir()
    (folder / "full" / "model.onnx").write_text("x")
    assert refused(["import", *arguments], capsys).startswith(message)
    assert not (folder / "out").exists()


def test_the_command_that_serve_prints_for_a_pickle_makes_what_serve_takes(folder, capsys):
    saved(folder / "my pipeline.joblib")
    command = shlex.split(refused(["serve", "my pipeline.joblib", "--name", "my-pipeline"], capsys).splitlines()[1])
    assert command[:2] == ["fastinfer", "import"]
    assert main(command[1:]) == 0
    assert "models/my-pipeline/1" in capsys.readouterr().out
    assert main(["check", "models"]) == 0
    assert "classifier of 1 input, batches of 64, " in capsys.readouterr().out


# -- check -------------------------------------------------------------------------------------------------------
def checked(path: str, capsys) -> tuple[int, list[str]]:
    code = main(["check", path])
    return code, capsys.readouterr().out.splitlines()


def test_check_says_of_each_model_whether_it_answers(folder, capsys):
    onnx_models.affine(folder / "models/affine/1/model.onnx")
    onnx_models.classifier(folder / "models/sorts/2/model.onnx")
    onnx_models.fixed_batch(folder / "models/sorts/1/model.onnx")
    onnx_models.identity(folder / "models/words/1/model.onnx", "BYTES", ["n"])
    code, lines = checked("models", capsys)
    assert code == 0
    assert [line.split()[:3] for line in lines[:5]] == [
        ["MODEL", "VERSION", "RESULT"], ["affine", "1", "ok:"], ["sorts", "1", "ok:"], ["sorts", "2", "ok:"],
        ["words", "1", "ok:"]]
    assert "model of 1 input, batches of 64, a record in " in lines[1]
    assert "model of 1 input, requests run alone, " in lines[2]
    assert "classifier of 1 input, batches of 64" in lines[3]
    assert "model of 1 input, batches of 64" in lines[4]
    assert lines[5] == "4 checked, nothing wrong."


def test_check_names_file_and_line_of_what_is_wrong_and_exits_with_1(folder, capsys):
    whole = onnx_models.affine(folder / "models/good/1/model.onnx").read_bytes()
    for name, content in [("cut", whole[:100]), ("toml", whole), ("pickled", None)]:
        (folder / "models" / name / "1").mkdir(parents=True)
        if content is not None:
            (folder / "models" / name / "1" / "model.onnx").write_bytes(content)
    (folder / "models/toml/model.toml").write_text("\n\nmax_bach_size = 1\n")
    (folder / "models/pickled/1/p.joblib").write_text("x")
    (folder / "models/notes.md").write_text("x")
    code, lines = checked("models", capsys)
    assert code == 1
    assert lines[1].startswith("cut      1        FAILED: models/cut/1/model.onnx: ")
    assert lines[2].startswith("good     1        ok: ")
    assert lines[3].startswith("pickled  1        FAILED: models/pickled/1/p.joblib is a pickle")
    assert lines[4].strip() == "fastinfer import models/pickled/1/p.joblib --out models/pickled/1 --trust-pickle"
    assert lines[5] == ("toml     1        FAILED: models/toml/model.toml:3: max_bach_size is not a known key. "
                        "Did you mean 'max_batch_size'?")
    assert lines[6:] == ["3 of 4 failed.", "note: models/notes.md is not part of a model."]


def test_check_runs_a_model_that_takes_only_some_values(folder, capsys, monkeypatch):
    onnx_models.picky(folder / "picky.onnx")
    monkeypatch.setattr("fastinfer.model.Model.example", lambda self: {"i": 99})
    code, lines = checked("picky.onnx", capsys)
    assert (code, lines[-1]) == (0, "1 checked, nothing wrong.")


def test_check_fails_a_model_that_loads_and_never_runs(folder, capsys, monkeypatch):
    onnx_models.picky(folder / "picky.onnx")
    monkeypatch.setattr("fastinfer.model.Model.example", lambda self: {"i": 99})
    monkeypatch.setattr("fastinfer.probe.warm_up", lambda *arguments, **more: [])
    code, lines = checked("picky.onnx", capsys)
    assert code == 1
    assert lines[1].startswith("picky  1        FAILED: ")
    assert lines[1].endswith(" (answering its example record)")


def test_an_interrupt_while_a_command_is_imported_is_no_traceback(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastinfer.cli._run", interrupted)
    assert main(["check"]) == 130


# ---- fastinfer models URL, where there is no such server ----------------------------------------------------------
@contextmanager
def peer(answer: bytes, pause: float = 0.0) -> Iterator[str]:
    """The address of somebody who answers everything with the same bytes, one by one where there is a pause."""
    def serve() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                with closing(connection):
                    connection.recv(1 << 16)
                    for byte in [answer[i:i + 1] for i in range(len(answer))] if pause else [answer]:
                        connection.sendall(byte)
                        time.sleep(pause)
        except OSError:  # the test is over
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(("answer", "code", "message"), [
    (b"", 2, "Remote end closed connection without response"),
    (b"\x1b[31mgarbage\r\nmore\r\n\r\n", 2, "?[31mgarbage"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", 2, "the answer is cut off, or larger than 64 MiB"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, 2, "more than 65536 bytes"),
    (whole(b"<html>"), 2, "what is answered is no index of models."),
    (whole(b"[" * 100_000), 2, "what is answered is no index of models."),
    (whole(b"[1]"), 2, "what is answered is no index of models."),
    (whole(b"\xff"), 2, "what is answered is no index of models."),
    (whole(b"", "302 Found"), 1, "answered 302, and not as a server of models does."),
    (whole(b'{"error": "no\\u001b[31m\\nway"}', "503 X"), 1, "no?[31m way"),
])
def test_an_answer_that_is_none_is_one_line(capsys, answer, code, message):
    with peer(answer) as address:
        assert main(["models", address]) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    assert err.rstrip("\n").isprintable()


def test_an_answer_that_trickles_is_given_up(capsys, monkeypatch):
    monkeypatch.setattr(models, "ASK", 0.5)
    with peer(whole(b"[" + b" " * 10_000 + b"]"), pause=0.05) as address:
        assert "no answer within 0.5 s." in refused(["models", address], capsys)


def test_names_of_others_do_nothing_to_the_terminal(capsys):
    with peer(whole(b'[{"name": "a\\u001b[2J", "version": "1\\n2", "state": "\\u0007"}, {}]')) as address:
        assert main(["models", address]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[1:]] == [["a?[2J", "1", "2", "?"], ["-", "-", "-"]]


@pytest.mark.parametrize("url", ["http://" + "a" * 300, "http://a..b", "http://exa mple", "http://."])
def test_a_host_that_cannot_be_is_one_line(capsys, url):
    refused(["models", url], capsys)


def test_a_name_of_any_bytes_is_sent_as_it_is(capsys):
    with peer(whole(b"", "404 X")) as address:
        assert main(["models", address, "load", "\udcff"]) == 1


def test_a_name_that_the_terminal_has_no_letters_for_is_printed_all_the_same(folder):
    Path("models").mkdir()
    os.makedirs(b"models/b\xff\xc3\xa9/1")
    onnx_models.constant(Path("models", "good", "1", "model.onnx"), 1)
    done = run("check", "models", PYTHONIOENCODING="ascii:strict")
    assert (done.returncode, done.stderr) == (1, "")
    assert "b\\udcff\\xe9" in done.stdout
