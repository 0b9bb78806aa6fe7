"""Finding models on disk: the four forms of a path, what is at fault named, the rest still found."""

import os
from pathlib import Path

import pytest

from fastinfer.errors import ConfigurationError
from fastinfer.options import MODEL_NAME
from fastinfer.repository import check_name, find, suggested
from fastinfer.settings import ModelConfig


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """Writes files by path; a path that ends in a slash is a folder."""
    monkeypatch.chdir(tmp_path)

    def lay(*paths: str) -> None:
        for path in paths:
            name, _, text = path.partition(":")
            target = tmp_path / name
            if name.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text or "x")

    return lay


def listing(path: str, name: str | None = None):
    return [(each.name, each.version, str(each.file)) for each in find(Path(path), name).found]


def errors(path: str, name: str | None = None) -> dict[str, str]:
    return {each.name: str(each.error) for each in find(Path(path), name).found if each.error is not None}


def test_a_file_is_named_by_its_stem_and_has_version_1(lay):
    lay("credit.v2.onnx")
    (found,) = find(Path("credit.v2.onnx")).found
    assert (found.name, found.version, found.kind, found.program) == ("credit.v2", "1", "onnx", None)
    assert found.config == ModelConfig()
    assert found.error is None
    assert listing("credit.v2.onnx", "other") == [("other", "1", "credit.v2.onnx")]


def test_a_repository_lists_versions_highest_first(lay):
    lay("models/a/1/model.onnx", "models/a/10/model.onnx", "models/a/9/model.onnx", "models/b/1/net.onnx",
        "models/b/1/weights.bin", "models/a/model.toml:max_batch_size = 7", "models/b/1/features.json")
    assert listing("models") == [
        ("a", "10", "models/a/10/model.onnx"), ("a", "9", "models/a/9/model.onnx"), ("a", "1", "models/a/1/model.onnx"),
        ("b", "1", "models/b/1/net.onnx")]
    a, _, _, b = find(Path("models")).found
    assert (a.config.max_batch_size, b.config.max_batch_size) == (7, 64)
    assert (a.program, b.program) == (None, Path("models/b/1/features.json"))
    assert find(Path("models")).stray == []


@pytest.mark.parametrize(("path", "expected"), [
    ("models/a", [("a", "2", "models/a/2/model.onnx"), ("a", "1", "models/a/1/model.onnx")]),
    ("models/a/1", [("a", "1", "models/a/1/model.onnx")]),
    ("flat", [("flat", "1", "flat/model.onnx")]),
])
def test_one_model_is_found_by_its_folder_or_a_versions(lay, path, expected):
    lay("models/a/1/model.onnx", "models/a/2/model.onnx", "flat/model.onnx", "models/a/model.toml:instances = 3",
        "flat/model.toml:instances = 3")
    assert listing(path) == expected
    assert {each.config.instances for each in find(Path(path)).found} == {3}
    assert {each[0] for each in listing(path, "other")} == {"other"}


def test_the_folder_one_stands_in_has_a_name_too(lay, monkeypatch):
    lay("models/a/3/model.onnx")
    monkeypatch.chdir("models/a/3")
    assert listing(".") == [("a", "3", "model.onnx")]
    monkeypatch.chdir("..")
    assert listing(".") == [("a", "3", "3/model.onnx")]
    assert listing("..") == [("a", "3", "../a/3/model.onnx")]


def test_a_model_may_be_called_by_a_number(lay):
    lay("models/2024/1/model.onnx")
    assert listing("models") == [("2024", "1", "models/2024/1/model.onnx")]


def test_the_file_called_model_is_chosen_and_onnx_before_what_it_was_made_from(lay):
    lay("m/1/model.onnx", "m/1/other.onnx", "m/2/net.onnx", "m/2/pipeline.joblib", "m/2/notes.txt", "m/2/data.json")
    assert listing("m") == [("m", "2", "m/2/net.onnx"), ("m", "1", "m/1/model.onnx")]
    assert errors("m") == {}


def test_model_onnx_brings_the_program_beside_it(lay):
    lay("out/model.onnx", "out/features.json", "out/other.onnx")
    assert find(Path("out/model.onnx")).found[0].program == Path("out/features.json")
    assert find(Path("out/other.onnx")).found[0].program is None


def test_one_bad_model_leaves_the_others(lay):
    lay("models/good/1/model.onnx", "models/toml/1/model.onnx", "models/toml/model.toml:max_batch = 1",
        "models/empty/1/", "models/two/1/a.onnx", "models/two/1/b.onnx", "models/unversioned/model.onnx",
        "models/waiting/model.toml:max_delay_us = 0", "models/inner/1/model.onnx", "models/inner/1/model.toml:",
        "models/a b/1/model.onnx", "models/stats/1/model.onnx")
    assert errors("models") == {
        "toml": "models/toml/model.toml:1: max_batch is not a known key. Did you mean 'max_batch_size'?",
        "empty": "models/empty/1 has no model.onnx.",
        "two": "models/two/1 has several models, a.onnx, b.onnx; keep one, or call one of them model.onnx.",
        "unversioned": "models/unversioned has no version folder; move model.onnx to models/unversioned/1/model.onnx.",
        "waiting": "models/waiting has no version folder; its files go to models/waiting/1.",
        "inner": "models/inner/1/model.toml belongs to the model, not to a version: move it to "
                 "models/inner/model.toml.",
        "a b": "models/a b cannot name a model, which takes letters, digits, '.', '_' and '-', a letter or digit "
               "first, at most 128, and not 'stats'; rename it, or, where it is served alone, use --name, as in --name "
               "a-b.",
        "stats": "models/stats names the model 'stats', which is reserved; rename it, or, where it is served alone, "
                 "use --name.",
    }
    assert ("good", "1", "models/good/1/model.onnx") in listing("models")


def test_what_is_not_a_model_is_reported_and_what_is_hidden_is_not(lay):
    lay("models/a/1/model.onnx", "models/a/v2/model.onnx", "models/a/02/model.onnx", "models/loose.onnx",
        "models/README.md", "models/lost+found/", "models/.git/config", "models/..data/x", "models/a/.cache",
        "models/notes/todo.md")
    assert find(Path("models")).stray == [
        "models/README.md is not part of a model.",
        "models/a/02 is not a version folder, whose name is a number: 1, 2, …",
        "models/a/v2 is not a version folder, whose name is a number: 1, 2, …",
        "models/loose.onnx is in no version folder; it would be served as models/loose/1/model.onnx.",
        "models/lost+found holds no version folder.",
        "models/notes holds no version folder.",
    ]
    assert listing("models") == [("a", "1", "models/a/1/model.onnx")]


@pytest.mark.parametrize(("path", "name", "message"), [
    ("model/", None, "model: no such file or folder. Did you mean 'models'?"),
    ("zzzzz", None, "zzzzz: no such file or folder."),
    ("empty", None, "empty holds no model. A repository is <name>/<version>/model.onnx, as in "
                    "models/credit/1/model.onnx."),
    ("notes", None, "notes holds no model. notes/a.md is not part of a model. A repository is"),
    ("models", "x", "--name x is for one model, and models is a repository of models."),
    ("pipe", None, "pipe is neither a file nor a folder."),
    ("n" * 300, None, f"{'n' * 300}: File name too long"),
])
def test_a_path_without_a_model_is_named(lay, path, name, message):
    lay("models/a/1/model.onnx", "empty/", "notes/a.md")
    os.mkfifo("pipe")
    with pytest.raises(ConfigurationError) as caught:
        find(Path(path), name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("file", "text", "message"), [
    ("m.txt", "a street", "m.txt is not a LightGBM model, which is the only .txt file that is a model."),
    ("m.json", "{}", "m.json is not an XGBoost model, which is the only .json file that is a model."),
    ("m.pth", "PK", "m.pth is a PyTorch file of weights or TorchScript, which is not served as it is: export the model "
                    "and save it with torch.export.save, as a .pt2 file."),
    ("m.csv", "a,b", "m.csv is not a model file; fastinfer serves .onnx files and the models of a folder."),
    ("features.json", "{}", "features.json is a feature program; serve the folder in which it lies, ."),
    ("m.onnx", "version https://git-lfs.github.com/spec/v1\n", "m.onnx is a Git LFS pointer, not the model itself"),
    ("a b.onnx", "x", "a b.onnx cannot name a model, which takes letters, digits, '.', '_' and '-', a letter or digit "
                      "first, at most 128, and not 'stats'; rename it, or, where it is served alone, use --name, as in "
                      "--name a-b."),
    ("stats.onnx", "x", "stats.onnx names the model 'stats', which is reserved; rename it, or, where it is served "
                        "alone, use --name."),
])
def test_a_file_that_is_not_served_says_what_to_do(lay, file, text, message):
    lay(f"{file}:{text}")
    (found,) = find(Path(file)).found
    assert str(found.error).startswith(message)
    assert len(str(found.error).splitlines()) <= 2


@pytest.mark.parametrize("file", ["model.toml", "1/features.json", "1/decision.toml"])
def test_a_model_is_not_served_without_a_file_that_seems_to_be_there(lay, file):
    lay("models/m/1/model.onnx")
    path = Path("models/m", file)
    path.symlink_to("nothing")
    assert errors("models") == {"m": f"{path} is a link that leads nowhere."}
    path.unlink()
    os.mkfifo(path)  # nobody writes to it: to open it would never end
    assert errors("models") == {"m": f"{path} is not a file."}
    path.unlink()
    path.mkdir()
    assert errors("models") == {"m": f"{path} is not a file."}
    path.rmdir()
    assert errors("models") == {}


def test_an_empty_file_is_named(lay):
    Path("m.onnx").touch()
    assert errors("m.onnx") == {"m": "m.onnx is empty."}


@pytest.mark.parametrize("name", ["a b", "stats", "", "-", "..", "é", "x" * 300, "a/b", "ok"])
def test_a_suggested_name_is_allowed(name):
    check_name(suggested(name), Path("it"))
    assert MODEL_NAME.fullmatch(suggested(name))
