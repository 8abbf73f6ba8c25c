"""``firkin``: the table of commands and what becomes of an error.

A command's module is imported when the command is used, so that ``--help`` and
shell completion stay fast. Exit codes: 0 success, 1 failure, 2 the request was
wrong, 128+n ended by signal n; ``run`` and ``sandbox exec`` pass on the code of
the command inside, or end with 126 or 127 when it cannot be started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

from firkin import __version__
from firkin.cli.failures import exit_code_of, keep_traceback, one_sentence, unwritable
from firkin.law.errors import FirkinError

_COMMANDS = {
    "serve": ("firkin.cli.serve:serve", "Serve sandboxes to E2B's SDKs."),
    "env": ("firkin.cli.env:env", "Print the variables that point an SDK at the server."),
    "run": ("firkin.cli.run:run", "Run one command in a fresh sandbox, without a server."),
    "sandbox": ("firkin.cli.sandbox:sandbox", "Work with the sandboxes of a running server."),
    "snapshot": ("firkin.cli.snapshot:snapshot", "List, export, import and delete snapshots."),
    "volume": ("firkin.cli.volume:volume", "Keep disks that outlive sandboxes, and copy folders in and out."),
    "secret": ("firkin.cli.secret:secret", "Keep secrets that go out in headers and are never seen inside."),
    "webhook": ("firkin.cli.webhook:webhook", "Post every change of a sandbox's state to addresses of yours."),
    "template": ("firkin.cli.template:template", "Prepare, list and delete templates."),
    "pool": ("firkin.cli.pool:pool", "Keep sandboxes of a template ready before they are asked for."),
    "tls": ("firkin.cli.tls:tls", "Make certificates, so that sandboxes are reached by https."),
    "node": ("firkin.cli.node:node", "Show how the machine of a server is, and set limits."),
    "doctor": ("firkin.cli.doctor:doctor", "Say what works on this machine, what does not, and how to mend it."),
    "bench": ("firkin.cli.bench.command:bench", "Measure, through the official SDK, with evidence."),
}


class _LazyGroup(click.Group):
    """Knows its commands' names and one-line helps; loads a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command is called {args[0]!r}; there are {', '.join(_COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="firkin %(version)s")
def app() -> None:
    """Sandboxes for AI agents on this machine."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. No traceback reaches the user."""
    _occupy_standard_descriptors()
    sys.exit(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        result = app.main(args=argv, prog_name="firkin", standalone_mode=False)
    except click.ClickException as error:
        where = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        _say(error.format_message().rstrip(".") + where)
        return 2 if isinstance(error, click.UsageError) else error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except FirkinError as error:
        _say(one_sentence(error))
        return exit_code_of(error)
    except Exception as error:  # noqa: BLE001 — the root of the program
        return _end_unexpectedly(error, argv)
    return result if isinstance(result, int) else 0


def _end_unexpectedly(error: Exception, argv: Sequence[str]) -> int:
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return 141
    if isinstance(error, OSError) and _printing(error):
        _drop_output()
        _say(str(unwritable(error)))
        return 1
    _say(keep_traceback(error, argv))
    return 1


def _printing(error: OSError) -> bool:
    """Whether it was raised inside `click.echo`, so by the write of a result."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__")).startswith("click.")


def _drop_output() -> None:
    """What is still buffered can go nowhere: the interpreter must not fail over it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _occupy_standard_descriptors() -> None:
    """A closed descriptor 0, 1 or 2 must not become that of a file or socket which then gets our output.

    What takes the place of standard output cannot be written, so that results are not lost in silence.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            nothing = os.open(os.devnull, flags)
            if nothing != descriptor:
                os.dup2(nothing, descriptor)
                os.close(nothing)
            if descriptor == 1:
                sys.stdout = os.fdopen(1, "w", closefd=False)


def _say(sentence: str) -> None:
    with suppress(OSError):  # nobody can be told
        click.echo(f"firkin: {' '.join(sentence.split())}", err=True)


if __name__ == "__main__":
    main()
