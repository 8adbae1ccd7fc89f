"""The ``instructpt`` command: verbs, exit codes, and how errors are said.

Exit codes: 0 fine, 1 the run failed, 2 usage or invalid spec, 3 environment not ready, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from instructpt.cli import authoring, lifecycle, results
from instructpt.cli.console import talk
from instructpt.errors import ConfigError, EnvironmentNotReadyError, InstructPTError, PlanError
from instructpt.telemetry.logs import configure_logging

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_READY = 3
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="instructpt",
    help="Instruction Pre-Training: raw text -> instruction-augmented corpus -> pre-trained model -> did it help?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    authoring.init,
    authoring.check,
    authoring.plan,
    lifecycle.run,
    lifecycle.status,
    lifecycle.logs,
    lifecycle.stop,
    lifecycle.delete,
    results.show,
    results.report,
    authoring.validate,
    authoring.explain,
    results.lineage,
    lifecycle.requeue,
    lifecycle.dashboard,
    authoring.version,
):
    app.command()(verb)
app.add_typer(authoring.recipes, name="recipes")


@app.command(hidden=True)
def worker(
    verb: Annotated[str, typer.Argument(help="inspect, synthesize, prepare, train, evaluate or finalize.")],
    run_spec: Annotated[Path, typer.Option("--run-spec", help="RunSpec file.")],
    hash_: Annotated[str, typer.Option("--hash", help="Hash the RunSpec must have.")],
) -> None:
    """Do one task; started by an executor, not by people."""
    from instructpt.cli.worker import run_worker

    raise typer.Exit(run_worker(verb, run_spec, hash_))


def exit_code(error: InstructPTError) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, ConfigError | PlanError):
        return EXIT_USAGE
    return EXIT_NOT_READY if isinstance(error, EnvironmentNotReadyError) else EXIT_FAILED


def main() -> None:
    """Run the command line and leave with its exit code."""
    if "worker" not in sys.argv[1:2]:
        configure_logging(os.environ.get("INSTRUCTPT_LOG_LEVEL", "WARNING"))
    try:
        app()
    except InstructPTError as error:
        talk.print("[bold red]Error[/]: ", end="")
        talk.print(str(error), markup=False)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        fix = "give this user access or free space there, or name another place (--runs FOLDER)"
        talk.print("[bold red]Error[/]: ", end="")
        talk.print(f"{where}{error.strerror or error}; {fix}", markup=False)
        sys.exit(EXIT_NOT_READY)
