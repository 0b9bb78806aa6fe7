"""Settings and model.toml: precedence, forms of a value, errors that name the option, the value and what it takes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfer.errors import ConfigurationError
from fastinfer.options import SIZE_UNITS, options, read_size
from fastinfer.settings import ModelConfig, OnnxConfig, Settings, flag, resolve, variable


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return Path(name)

    return write


def test_precedence_is_flag_then_variable_then_file_then_default(write):
    write("fastinfer.toml", "port = 1\nqueue_rows = 2\nlog_level = 'error'")
    environ = {"FASTINFER_PORT": "3", "FASTINFER_QUEUE_ROWS": "4", "HOME": "/"}
    settings = resolve({"port": "5", "host": None}, environ)
    assert (settings.port, settings.queue_rows, settings.log_level, settings.host) == (5, 4, "error", "127.0.0.1")


def test_the_settings_file_can_be_named_and_its_paths_are_meant_from_its_folder(write, tmp_path):
    (tmp_path / "etc").mkdir()
    file = write("etc/a.toml", "path = 'models'\nuds = '/run/x.sock'")
    for settings in (resolve({}, {}, file), resolve({}, {"FASTINFER_CONFIG": str(file)})):
        assert (settings.path, settings.uds) == (Path("etc/models"), Path("/run/x.sock"))
    assert resolve({}, {"FASTINFER_PATH": "other"}, file).path == Path("other")


def test_every_option_is_reachable_by_flag_variable_and_file(write):
    for declared in options(Settings):
        text = declared.choices[0] if declared.choices else {
            "text": "x", "path": "x", "name": "x", "boolean": "true", "size": "3KiB", "duration": "2s",
            "integer": "1", "names": "x", "addresses": "::1"}[declared.kind.label]
        toml = text if declared.kind.label in ("boolean", "integer") else repr(text)
        toml = f"[{toml}]" if declared.kind.label == "names" else toml
        expected = getattr(resolve({declared.name: text}, {}), declared.name)
        assert getattr(resolve({}, {variable(declared): text}), declared.name) == expected
        assert getattr(resolve({}, {}, write("a.toml", f"{declared.name} = {toml}")), declared.name) == expected


@pytest.mark.parametrize(("text", "size"), [
    ("0", 0), ("64MiB", 64 << 20), ("64 mib", 64 << 20), ("1.5GiB", 3 << 29), ("2kB", 2000), ("7b", 7)])
def test_sizes_read_as_people_write_them(text, size):
    assert read_size(text) == size


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{0,5} ?[kKmMgGiIbB]{0,4}", fullmatch=True))
def test_text_is_a_size_or_an_error(text):
    try:
        size = read_size(text)
    except ValueError:
        return
    assert size >= 0
    assert text.strip().lower().endswith(tuple(SIZE_UNITS))


@pytest.mark.parametrize("text", ["", "-1", "64M", "1e3", "0.5B", "1_000", "٣", "MiB", "9 9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        read_size(text)


@pytest.mark.parametrize(("text", "seconds"), [
    ("30", 30.0), ("2.5s", 2.5), ("500ms", 0.5), ("2 min", 120.0), ("1h", 3600.0)])
def test_durations_read_as_seconds_or_with_a_unit(text, seconds):
    assert resolve({"shutdown_timeout": text}, {}).shutdown_timeout == seconds


def test_python_takes_what_toml_takes():
    settings = Settings(path="models", max_body_bytes="1MiB", idle_timeout=60)
    assert (settings.path, settings.max_body_bytes, settings.idle_timeout) == (Path("models"), 1 << 20, 60.0)


@pytest.mark.parametrize(("values", "message"), [
    ({"port": 65536}, "port is 65536; it takes a whole number from 0 to 65535."),
    ({"port": True}, "port is true; it takes a whole number from 0 to 65535."),
    ({"port": "8000"}, "port is '8000'; it takes a whole number from 0 to 65535."),
    ({"workers": 257}, "workers is 257; it takes a whole number from 1 to 256."),
    ({"host": ""}, "host is ''; it takes text that is not empty."),
    ({"access_log": 1}, "access_log is 1; it takes true or false."),
    ({"idle_timeout": float("nan")}, "idle_timeout is nan; it takes a number of seconds, such as 30, 2.5 or 500ms, "
                                     "from 0.1 to 86400."),
    ({"max_body_bytes": 0}, "max_body_bytes is 0; it takes a number of bytes, such as 1048576 or 64MiB, from 1 to "
                            "1TiB."),
    ({"log_level": "warn"}, "log_level is 'warn'; it takes critical, error, warning, info or debug. "
                            "Did you mean 'warning'?"),
    ({"name": "../x"}, "name is '../x'; it takes letters, digits, '.', '_' and '-', a letter or digit first, "
                       "at most 128, and not 'stats'."),
    ({"name": "stats"}, "name is 'stats'; it takes"),
    ({"port": None}, "port is None; it takes a whole number"),
])
def test_a_bad_value_is_named_with_what_is_accepted(values, message):
    with pytest.raises(ConfigurationError) as caught:
        Settings(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("flags", "environ", "message"), [
    ({"port": "http"}, {}, "--port is 'http'; it takes a whole number from 0 to 65535."),
    ({"max_body_bytes": "64M"}, {}, "--max-body-bytes is '64M'; it takes a number of bytes"),
    ({}, {"FASTINFER_PORT": "1_0"}, "FASTINFER_PORT is '1_0'; it takes a whole number"),
    ({}, {"FASTINFER_ACCESS_LOG": "maybe"}, "FASTINFER_ACCESS_LOG is 'maybe'; it takes true or false."),
    ({}, {"FASTINFER_PROT": "1"}, "FASTINFER_PROT is not a known variable. Did you mean 'FASTINFER_PORT'?"),
    ({}, {"FASTINFER_CONFIG": "none.toml"}, "none.toml: No such file or directory"),
])
def test_a_flag_or_variable_at_fault_is_named(write, flags, environ, message):
    with pytest.raises(ConfigurationError) as caught:
        resolve(flags, environ)
    assert str(caught.value).startswith(message)


def test_variables_that_kubernetes_makes_for_a_service_of_this_name_are_ignored(write):
    environ = {"FASTINFER_SERVICE_HOST": "10.0.0.1", "FASTINFER_SERVICE_PORT": "80",
               "FASTINFER_SERVICE_PORT_HTTP": "80",
               "FASTINFER_PORT": "tcp://10.0.0.1:80", "FASTINFER_PORT_80_TCP": "tcp://10.0.0.1:80",
               "FASTINFER_PORT_80_TCP_ADDR": "10.0.0.1", "FASTINFER_CREDIT_SERVICE_HOST": "10.0.0.2",
               "FASTINFER_CREDIT_PORT": "tcp://10.0.0.2:80"}
    assert resolve({}, environ) == Settings()


@pytest.mark.parametrize(("text", "message"), [
    ("port = 1\nprot = 2", "2: prot is not a known key. Did you mean 'port'?"),
    ("port = 1\n\nlog-level = 'info'", "3: log-level is not a known key. Did you mean 'log_level'?"),
    ("# port\nport = '1'", "2: port is '1'; it takes a whole number from 0 to 65535."),
    ("port = = 1", "1:8: Invalid value"),
    ("port =\n", "1:7: Invalid value"),
    ("port = ", "1: Invalid value"),
    (f"port = {'1' * 5000}", "1: "),
    ("a = [1,\n2", "2: Unclosed array"),
])
def test_a_settings_file_at_fault_is_named_with_its_line(write, text, message):
    with pytest.raises(ConfigurationError) as caught:
        resolve({}, {}, write("fastinfer.toml", text))
    assert str(caught.value).startswith(f"fastinfer.toml:{message}")


def test_a_settings_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigurationError, match="not UTF-8 at byte 8"):
        resolve({}, {}, tmp_path / "a.toml")


def test_model_toml_reads_its_keys_and_tables(write):
    config = ModelConfig.read(write("model.toml", """
        runtime = "onnx"
        max_batch_size = 0
        queue_bytes = "8MiB"
        [onnx]
        intra_op_threads = 2
        execution_providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        [onnx.provider_options.CUDAExecutionProvider]
        device_id = 1
        do_copy_in_default_stream = true
    """))
    assert (config.runtime, config.max_batch_size, config.queue_bytes, config.queue_rows) == ("onnx", 0, 8 << 20, None)
    assert config.onnx.execution_providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert config.onnx.provider_options == {
        "CUDAExecutionProvider": {"device_id": "1", "do_copy_in_default_stream": "1"}}
    assert (config.onnx.intra_op_threads, config.onnx.graph_optimization) == (2, "all")
    assert ModelConfig.read(write("model.toml", "")) == ModelConfig()


@pytest.mark.parametrize(("text", "message"), [
    ("\nmax_batch_sise = 3", "2: max_batch_sise is not a known key. Did you mean 'max_batch_size'?"),
    ("[onnx]\n\nintra_op_thread = 1", "3: onnx.intra_op_thread is not a known key. Did you mean 'intra_op_threads'?"),
    ("[onxx]\na = 1", "1: onxx is not a known key. Did you mean 'onnx'?"),
    ("zzz = 1", "1: zzz is not a known key. Known are runtime, max_batch_size,"),
    ("onnx = 3", "1: onnx is 3; it takes a table."),
    ("onnx.intra_op_threads = 0", "1: onnx.intra_op_threads is 0; it takes a whole number from 1 to 1024."),
    ("onnx = { graph_optimization = 'most' }", "1: onnx.graph_optimization is 'most'; it takes all, extended, basic or "
                                              "disabled."),
    ("max_batch_size = 2.0", "1: max_batch_size is 2.0; it takes a whole number from 0 to 65536."),
    ("runtime = 'onx'", "1: runtime is 'onx'; it takes "),
    ("[onnx]\nexecution_providers = ['A', 'A']", "2: onnx.execution_providers is ['A', 'A']; it takes a list of names "
                                                 "without repetition."),
    ("[onnx]\nprovider_options = 1", "2: onnx.provider_options is 1; it takes a table."),
    ("[onnx.provider_options.CUDA]\na = 1", "1: onnx.provider_options.CUDA is for a provider that execution_providers "
                                            "does not name."),
    ("[onnx.provider_options]\nCPUExecutionProvider = 1",
     "2: onnx.provider_options.CPUExecutionProvider is 1; it takes a table."),
    ("[onnx.provider_options.CPUExecutionProvider]\na = []",
     "2: onnx.provider_options.CPUExecutionProvider.a is []; it takes text, a number, true or false."),
])
def test_a_model_toml_at_fault_is_named_with_its_line(write, text, message):
    with pytest.raises(ConfigurationError) as caught:
        ModelConfig.read(write("model.toml", text))
    assert str(caught.value).startswith(f"model.toml:{message}")


def test_flags_and_variables_are_named_by_one_rule():
    declared = next(each for each in options(Settings) if each.name == "max_body_bytes")
    assert (flag(declared), variable(declared)) == ("--max-body-bytes", "FASTINFER_MAX_BODY_BYTES")


def test_settings_import_neither_the_command_line_nor_the_server():
    code = "import sys, fastinfer.settings; print(*({'click', 'numpy', 'uvicorn', 'difflib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)
EVERY_OPTION = st.sampled_from([*options(Settings), *options(ModelConfig), *options(OnnxConfig)])


def attempt(call, *arguments):
    """What a call returns, or the error of ours that it raises."""
    try:
        return call(*arguments)
    except ConfigurationError as error:
        return error


@given(EVERY_OPTION, ANYTHING)
def test_any_value_is_taken_as_it_is_declared_or_is_an_error_that_names_the_option(declared, value):
    taken = attempt(declared.take, value, declared.name)
    if isinstance(taken, ConfigurationError):
        assert str(taken).startswith(f"{declared.name} is ")
        assert "\n" not in str(taken)
    else:
        assert declared.take(taken, declared.name) == taken
        assert declared.written(taken)


@given(EVERY_OPTION, st.text() | st.integers().map(str) | st.floats().map(str))
def test_any_text_is_read_as_it_is_declared_or_is_an_error_that_names_the_option(declared, text):
    read = attempt(declared.read, text, declared.name)
    if isinstance(read, ConfigurationError):
        assert str(read).startswith(f"{declared.name} is ")
    else:
        assert declared.take(read, declared.name) == read


@given(st.recursive(st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(st.characters(codec="ascii")),
                    lambda inner: st.lists(inner, max_size=2), max_leaves=3),
       st.sampled_from(["", "[onnx]", "[onnx.provider_options.CPUExecutionProvider]", "[onnx.provider_options]"]),
       st.sampled_from([declared.name for declared in [*options(ModelConfig), *options(OnnxConfig)]]))
def test_any_model_toml_is_a_configuration_or_an_error_with_its_line(value, table, key):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.toml"
        path.write_text(f"# first\n{table}\n{key} = {json.dumps(value)}\n")
        config = attempt(ModelConfig.read, path)
    assert isinstance(config, ModelConfig) or str(config).startswith(f"{path}:3:")
