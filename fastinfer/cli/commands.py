"""What can be typed: the commands and their options. What a command does is a file of its own, imported when run."""

from pathlib import Path
from typing import Any

import click

from fastinfer.options import BOOLEAN, NAMES, PATH, Option, nearest, options
from fastinfer.settings import PREFIX, SETTINGS_FILE, Settings, flag

PRECEDENCE = (f"Every option can also be given as a variable ({PREFIX}LOG_LEVEL=debug) and in {SETTINGS_FILE} "
              "(log_level = \"debug\"); a flag comes before a variable, a variable before the file.")


class Commands(click.Group):
    """A group whose errors name the nearest command, or the command that was left out."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            hint = nearest(name, self.commands)
            if not hint and Path(name).exists():
                hint = f" Did you mean 'fastinfer serve {name}'?"
            raise click.UsageError(f"{name!r} is not a command.{hint}", ctx)
        return super().resolve_command(ctx, args)


def usage(error: click.UsageError) -> str:
    """What was wrong with the command line, with the nearest option for a misspelt one."""
    where = error.ctx.command_path if error.ctx is not None else "fastinfer"
    if isinstance(error, click.NoSuchOption):
        known = [name for param in (error.ctx.command.params if error.ctx else []) if isinstance(param, click.Option)
                 for name in (*param.opts, *param.secondary_opts)]
        hint = nearest(error.option_name, known)
        return f"{error.option_name} is not an option of {where}.{hint}\nTry '{where} --help'."
    message = error.format_message()
    return f"{message[:1].lower()}{message[1:]}\nTry '{where} --help'."


def setting(declared: Option) -> click.Option:
    """The flag of a declared option; its text is read and checked by the settings, not by click."""
    name = flag(declared)
    if declared.kind is BOOLEAN:
        names, metavar = f"{name}/--no-{name.removeprefix('--')}", None
    else:
        names, metavar = name, "|".join(declared.choices) or declared.kind.label.upper()
    several = declared.kind is NAMES  # given one by one
    return click.Option([names], default=None, metavar="NAME" if several else metavar, multiple=several,
                        help=f"{declared.text}  [default: {declared.written(declared.default)}]")


CHECKED = ("name", "allow_python_models", "trust_pickle")  # settings of a server that matter to a check


def config() -> click.Option:
    return click.Option(["--config"], metavar="PATH", default=None,
                        help=f"Settings file.  [default: {SETTINGS_FILE}, where there is one]")


def model_path() -> click.Argument:
    return click.Argument(["path"], required=False, metavar="PATH")


def serve(path: str | None, config: str | None, **flags: Any) -> int:
    from fastinfer.cli.serve import run_serve

    return run_serve({"path": path, **flags}, path_option(config, "--config"))


def check(path: str | None, config: str | None, **flags: Any) -> int:
    from fastinfer.cli.check import run_check

    return run_check({"path": path, **flags}, path_option(config, "--config"))


def import_(pipeline: str, out: str, sample: str | None, trust_pickle: bool) -> int:
    from fastinfer.cli.import_ import run_import

    return run_import(PATH_OPTION.read(pipeline, "PIPELINE"), PATH_OPTION.read(out, "--out"),
                      sample=path_option(sample, "--sample"), trust_pickle=trust_pickle)


def score(model: str, source: str, out: str, rejects: str | None, keep: str | None, features: str | None,
          restart: bool, allow_python_models: bool, trust_pickle: bool) -> int:
    from fastinfer.cli.score import run_score

    return run_score(PATH_OPTION.read(model, "MODEL"), PATH_OPTION.read(source, "IN"), PATH_OPTION.read(out, "--out"),
                     rejects=path_option(rejects, "--rejects"), restart=restart,
                     allow_python_models=allow_python_models, trust_pickle=trust_pickle,
                     keep=() if keep is None else NAMES_OPTION.read(keep, "--keep"),
                     features=None if features is None else NAMES_OPTION.read(features, "--features"))


def conformance(url: str, grpc: str | None, model: str | None, as_json: bool, differences: bool) -> int:
    from fastinfer.cli.conformance import run_conformance

    return run_conformance(url, grpc=grpc, model=model, as_json=as_json, differences=differences)


def models(url: str, action: str | None, name: str | None, as_json: bool) -> int:
    from fastinfer.cli.models import run_models

    return run_models(url, action, name, as_json=as_json)


PATH_OPTION = Option(kind=PATH, text="")
NAMES_OPTION = Option(kind=NAMES, text="")


def path_option(text: str | None, place: str) -> Path | None:
    return None if text is None else PATH_OPTION.read(text, place)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, help="Print the version.")
@click.pass_context
def fastinfer(context: click.Context, version: bool) -> int:
    """Serve trained models over HTTP."""
    if version:
        from fastinfer import __version__

        click.echo(f"fastinfer {__version__}")
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(2)
    return 0


fastinfer.add_command(click.Command(
    "serve", callback=serve,
    params=[model_path(), config(), *(setting(each) for each in options(Settings) if each.flag)],
    short_help="Serve a model or a repository of models.", epilog=PRECEDENCE,
    help="Serve PATH: a model file, a model's folder, or a repository of models (<name>/<version>/model.onnx)."))
fastinfer.add_command(click.Command(
    "check", callback=check,
    params=[model_path(), config(), *(setting(each) for each in options(Settings) if each.name in CHECKED)],
    short_help="Load every model, run it once, and say what is wrong.", epilog="Exits with 1 if anything is wrong.",
    help="Load every model under PATH as the server would, run it once, and say what is wrong, by file and line."))
fastinfer.add_command(click.Command(
    "import", callback=import_, short_help="Make a served model of a fitted scikit-learn pipeline.",
    help="Make a served model of PIPELINE, a fitted scikit-learn pipeline saved by joblib or pickle: its preprocessing "
         "becomes features.json, its estimator model.npz if it is trees, else model.onnx. The result is proven to "
         "answer as the pipeline does, or refused.",
    params=[
        click.Argument(["pipeline"], metavar="PIPELINE"),
        click.Option(["--out"], metavar="FOLDER", required=True,
                     help="Folder of the new version, such as models/credit/1."),
        click.Option(["--sample"], metavar="FILE", help="Rows (.parquet or .csv) to compare on, as the pipeline was "
                     "fitted on; without it rows are made from what the fitted steps know."),
        click.Option(["--trust-pickle"], is_flag=True, help="Load the file, which runs whatever code is in it."),
    ]))
fastinfer.add_command(click.Command(
    "score", callback=score, short_help="Score the rows of a file.",
    epilog="Exits with 0 if every row was scored, 1 if some were rejected, 130 if it was interrupted.",
    help="Score the rows of IN, a Parquet, CSV or NDJSON file or a folder of such, with MODEL: a model file, a "
         "version's folder, or a model's folder. The same command goes on where an interrupted one was.",
    params=[
        click.Argument(["model"], metavar="MODEL"),
        click.Argument(["source"], metavar="IN"),
        click.Option(["--out"], metavar="OUT", required=True,
                     help="File to write: .parquet, .csv, .tsv, .ndjson or .jsonl, the text ones also with .gz."),
        click.Option(["--rejects"], metavar="FILE", help="Where the rows go that cannot be scored, with the reason.  "
                     "[default: OUT.rejects.ndjson]"),
        click.Option(["--keep"], metavar="NAMES", help="Columns of IN that go along, as in id,country."),
        click.Option(["--features"], metavar="NAMES", help="Columns that make up the one wide tensor of a model "
                     "without a feature program, in order.  [default: all that are not kept]"),
        click.Option(["--restart"], is_flag=True, help="Begin anew, whatever an interrupted run has done."),
        click.Option(["--allow-python-models"], is_flag=True, help="Run MODEL where it is a Python file."),
        click.Option(["--trust-pickle"], is_flag=True, help="Load MODEL where it is a pickle, which runs code in it."),
    ]))
fastinfer.add_command(click.Command(
    "conformance", callback=conformance, short_help="Check a server against the Open Inference Protocol.",
    epilog="Exits with 0 if nothing failed, 1 if a check did.",
    help="Check the server at URL, whichever it is, against the Open Inference Protocol and the extensions that "
         "Triton's clients call, check by check. It needs no model of its own: it asks the server for its models and "
         "makes requests up.",
    params=[
        click.Argument(["url"], metavar="URL"),
        click.Option(["--grpc"], metavar="HOST:PORT", help="Check the same server over gRPC too."),
        click.Option(["--model"], metavar="NAME", help="The model to send requests to.  [default: whichever of the "
                     "server's serves a check]"),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the report as JSON."),
        click.Option(["--differences"], is_flag=True, help="List where fastinfer answers otherwise than Triton, on "
                     "purpose."),
    ]))
fastinfer.add_command(click.Command(
    "models", callback=models, short_help="List what a running server serves, load or unload a model.",
    epilog="Exits with 0 if it was done, 1 if the server refused or failed, 2 if it could not be asked.",
    help="List the models of the server at URL, such as http://127.0.0.1:8000. With ACTION, which is load or unload, "
         "have it load or unload the model NAME first: that takes a server with --model-control explicit.",
    params=[
        click.Argument(["url"], metavar="URL"),
        click.Argument(["action"], metavar="[ACTION]", required=False),
        click.Argument(["name"], metavar="[NAME]", required=False),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the entries of the repository index as JSON."),
    ]))
