"""The program `ssl`, whose commands import what they need when they run."""

from __future__ import annotations

import atexit
import functools
import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sslcli.contracts.errors import SslError
from sslcli.foreign import keep_stdout, only_results, warnings_in_one_line
from sslcli.orphans import end_with_launcher, failed, launched
from sslcli.std_streams import be_lenient, open_closed
from sslcli.version import __version__

from . import bench, evaluate, export, init, listing, preview, runs, train, watch
from .arguments import KEEP_UNKNOWN
from .console import report

VERBOSITY = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Show more detail.")],
}

#: What to try where no command knows better.
ADVICE = "end other programs, or choose fewer images (data.limit) or a smaller network"

app = typer.Typer(
    name="ssl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """Adds `--quiet` and `--verbose` to a command, and shows its messages.

    Errors that a user can cause become one line on stderr and an exit code; a bug keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: Any, quiet: bool = False, verbose: bool = False, **kwargs: Any) -> None:
        from sslcli.logs import on_console
        from sslcli.memory import out_of_memory
        from sslcli.plugin_exits import named_exits

        try:
            level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
            with (
                only_results(), on_console(level), warnings_in_one_line(), out_of_memory("", ADVICE), named_exits(),
            ):  # fmt: skip
                code = command(*args, **kwargs)
        except SslError as error:
            # One process of a machine shows what all have, and what is wrong with their common command line.
            if os.environ.get("LOCAL_RANK", "0") == "0" or error.alone:
                report(error)
            code = failed(error.exit_code) if error.passing else error.exit_code
        except KeyboardInterrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print("ssl: interrupted", file=sys.stderr)
            code = 130
        except BrokenPipeError:
            raise  # `ssl list | head`: handled by the framework
        except OSError as error:
            report(error)
            code = 1
        except RecursionError as error:
            from .blame import failure

            known = failure(error)
            if known is None:
                raise
            print(f"ssl: {known}", file=sys.stderr)
            code = 1
        except Exception:  # a crash: nobody knows whether it comes again
            if not launched():
                raise
            traceback.print_exc()
            code = failed(1)
        raise typer.Exit(code)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in VERBOSITY.items()
    ]
    # What typer reads options from.
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **VERBOSITY}
    return run


def _version(value: bool) -> None:
    if value:
        print(f"ssl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Pre-train image encoders by self-supervision.

    Results go to stdout, progress and messages to stderr.

    Exit codes: 0 success, 1 failure, 2 usage or config error, 129, 130 or 143 interrupted after saving a checkpoint.
    """


app.command("train", context_settings=KEEP_UNKNOWN)(guarded(train.train))
app.command("init", context_settings=KEEP_UNKNOWN)(guarded(init.init))
app.command("eval")(guarded(evaluate.evaluate))
app.command("export")(guarded(export.export))
app.command("preview", context_settings=KEEP_UNKNOWN)(guarded(preview.preview))
app.command("bench", context_settings=KEEP_UNKNOWN)(guarded(bench.bench))
app.command("runs")(guarded(runs.list_runs))
app.command("watch")(guarded(watch.watch))
app.command("list")(guarded(listing.list_plugins))


def main() -> None:
    """Runs the program (the console script `ssl`, and `python -m sslcli`)."""
    # Huge pages for large tensors on a CPU; torch reads this at its first allocation. The system's allocator
    # gives freed memory back at once, and the page faults of the next allocation cost a tenth of a training step.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # For training.deterministic on CUDA: torch before 2.10 refuses products without it, and reads it once.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The walls of text that libraries write to stderr themselves; read when torch is imported.
    if not {"--verbose", "-v"} & {*sys.argv}:
        os.environ.setdefault("TORCH_LOGS", "-dynamo,-aot,-inductor")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Child processes (ranks, workers, torch's compiler) do not have the working directory on their path either.
    os.environ["PYTHONSAFEPATH"] = "1"
    open_closed()
    keep_stdout()
    # Messages, and all that training says, are worth less than the work. What other commands print is their result.
    trains = sys.argv[1:2] == ["train"] and "--dry-run" not in sys.argv
    be_lenient("stderr", *["stdout"] * trains)
    end_with_launcher()
    try:
        app(prog_name="ssl")
    except OSError as error:  # of what is printed outside of commands, such as `--help`
        print(f"ssl: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    finally:
        # The last that is registered is called first; from then on Ctrl-C only makes others print tracebacks.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
