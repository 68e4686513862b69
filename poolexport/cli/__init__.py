"""The command line: one verb a file, and every error one sentence.

A module ``x.py`` in this folder holds a click command ``x``; names that begin with an underscore are helpers. A verb
imports torch when it runs and not before, so that help is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import click

from poolexport import __version__
from poolexport.cli import _show
from poolexport.errors import PoolExportError

INTERRUPTED = 130
BROKEN_PIPE = 141
#: What an error that nobody foresaw exits with.
FAULT = 3
#: What verbs import when they run; a broken installation is no fault of ours.
NEEDED = ("torch", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors")


class Verbs(click.Group):
    """The verbs in this folder, and the one place where errors become sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verbs = self.list_commands(ctx)
        if not args[0].startswith("-") and args[0] not in verbs:
            ctx.fail(f"there is no verb {args[0]!r}{_show.near(args[0], verbs)}")
        return super().resolve_command(ctx, args)

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Run a verb; always ends the process, with one of the documented exit codes."""
        words = list(sys.argv[1:] if args is None else args)
        # a verb may tell how it was called
        options |= {"standalone_mode": False, "prog_name": "poolexport", "obj": words}
        try:
            code = super().main([word for word in words if word != "--debug"], **options)
        except (Exception, KeyboardInterrupt) as error:
            code = fail(error, words)
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, *words: Any, **options: Any) -> click.Context:
        with _a_broken_pipe_has_its_own_code():
            return super().make_context(*words, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _a_broken_pipe_has_its_own_code():
            return super().invoke(ctx)


@contextlib.contextmanager
def _a_broken_pipe_has_its_own_code() -> Iterator[None]:
    """Because click itself ends the process with the exit code that means "the numbers differ"."""
    try:
        yield
    except BrokenPipeError:
        _show.discard()
        raise click.exceptions.Exit(BROKEN_PIPE) from None


def fail(error: BaseException, words: Sequence[str]) -> int:
    """Tell the user about an error, in the form that the words on the command line ask for."""
    if "--debug" in words:
        traceback.print_exception(error)
    sentence, code = explain(error)
    if isinstance(error, OSError):
        _show.discard()
    _show.error(sentence)
    if "--json" in words:
        try:
            _show.document(_show.failure(error, sentence, code))
        except BrokenPipeError:
            _show.discard()
            return BROKEN_PIPE
        except OSError as unwritten:
            return fail(unwritten, [])
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """What to tell the user about an error, and the exit code."""
    if isinstance(error, click.Abort) or interrupted(error):
        return "interrupted", INTERRUPTED
    if isinstance(error, PoolExportError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        verb = error.ctx.command_path if error.ctx else "poolexport"
        return f"{error.format_message().rstrip('.')}; see {verb} --help", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, ModuleNotFoundError) and error.name in NEEDED:
        return f"this verb needs {error.name}, which is not installed; run: pip install {error.name}", 2
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}", 2
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"a fault of poolexport itself, run again with --debug to see where: {reason}", FAULT


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is what somebody else made of a Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@click.group(
    "poolexport",
    cls=Verbs,
    invoke_without_command=True,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExit codes:\n"
    "  0  fine\n"
    "  1  the numbers differ, or a server cannot start\n"
    "  2  bad input, or something cannot be read or written\n"
    "  3  a fault of poolexport itself\n"
    "130  interrupted\n"
    "141  nobody reads the output any more",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error; anywhere in the line.")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Export CNNs with any pooling layer to ONNX, and prove that the numbers are the same."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)
