"""The commands of `token-ledger`: one file each, loaded only when it is the one that was asked for.

Exit codes: 0 fine, 1 the thing asked about is not so, 2 wrong use or configuration, or what it needs is not there.
An error is one line on standard error.
"""

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from api.cli.output import Failed, say_error, silence
from api.settings import SettingsError
from ledger.refusals import LedgerError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "See the whole main job in one minute, then keep serving it."),
    "serve": ("serve", "Run the server."),
    "init": ("init", "Create the database and the key ring."),
    "apply": ("apply", "Make clients and operators as a file says."),
    "issue": ("issue", "Issue a grant and print its first tokens."),
    "grants": ("grants", "List grants."),
    "grant": ("grants", "Show one grant or its history, or act on it."),
    "revoke": ("revoke", "End all grants of a subject or a client."),
    "hash": ("hash", "Read a secret, print its hash for a clients file."),
    "explain": ("explain", "Read a token, say what it is and what became of it."),
    "reuse": ("reuse", "List which grants saw a retired token."),
    "rebuild": ("rebuild", "Prove the projections against a replay of all events."),
    "archive": ("archive", "Move what is over out of the database, every answer kept."),
    "keys": ("keys", "List, rotate, activate or distrust keys."),
    "erase": ("erase", "Remove a person's data."),
    "restore": ("restore", "Say on record that an older backup was put back."),
}
"""Every command: the file it stands in, and its line in the list of commands."""

_NO_TEXT = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes in an argument that are no UTF-8."""


class Commands(click.Group):
    """The group of all commands, which knows their names without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"api.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="Read settings from this file.")
@click.version_option(package_name="token-ledger", message="%(prog)s %(version)s")
@click.pass_context
def token_ledger(ctx: click.Context, config: Path | None) -> None:
    """OAuth 2.0 refresh tokens as a history.

    Settings are environment variables TOKEN_LEDGER_*, or names in lower case in the file that --config names. A
    command beside a running server works through it; otherwise it opens the database itself.
    """
    ctx.obj = config


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code. Nothing that goes wrong leaves more than one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character still gets its line
    try:
        result = token_ledger.main(list(arguments), prog_name="token-ledger", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return say_error(_misuse(error) + hint, 2)
    except Failed as error:
        return say_error(str(error), error.exit_code)
    except (click.ClickException, SettingsError, LedgerError) as error:
        return say_error(error.format_message() if isinstance(error, click.ClickException) else str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return say_error("interrupted", 130)
    except (BrokenPipeError, SystemExit) as end:  # click makes the one of the other
        if isinstance(end, SystemExit) and not end.code:  # it has completed a command line for a shell
            return 0
        # Whoever read our output has seen enough.
        silence(sys.stdout)
        return 141
    except OSError as error:  # the system's doing: no room or no place to write, no file to be opened any more
        return say_error(f"{error.strerror or type(error).__name__} (at {_place(error)})", 2)
    except Exception as error:  # a fault of ours: where it happened, never what it held
        if isinstance(error, UnicodeEncodeError) and _NO_TEXT.search("".join(arguments)):
            return say_error("an argument is not UTF-8 text", 2)
        return say_error(f"internal error: {type(error).__name__} at {_place(error)}; please report it", 2)


def _misuse(error: click.UsageError) -> str:
    """What was wrong, without an argument that nobody asked for: it may be the token or secret of standard input."""
    message = error.format_message().rstrip(".")
    return message.partition(" (")[0] if message.startswith("Got unexpected extra argument") else message


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
