"""`restore acknowledge`: serving goes on after an older backup was put back knowingly."""

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import say, say_json, say_members
from api.settings import Settings


@click.group("restore")
def restore() -> None:
    """Say on record that an older backup was put back."""


@restore.command("acknowledge", short_help="Record the restore, so that serving resumes.")
@json_option
@settings_option
def acknowledge(as_json: bool, settings: Settings) -> None:
    """Record the restore and activate a new key, so that serving resumes and no lost successor is made again.

    Exit code 1 where the log has not lost anything that it had acknowledged.
    """
    with reached(settings) as local:
        report = ask(local, "POST", "/local/restore/acknowledge", {})
    if as_json:
        say_json(report)
        return
    say_members(report)
    say("every revocation, suspension, disabling, erasure and distrust of that span is lost and must be repeated")
    if settings.sqlite_path is None:
        say(f"key {report['key_id']} signs now: copy {settings.keys_file} to every node, which is unready without it")
