"""Secrets and tokens are read from standard input or a hidden prompt, never from an argument."""

import re
import subprocess

from tests.places import Place
from tests.server_process import program
from tests.terminals import on_a_terminal


def test_on_a_terminal_a_secret_is_asked_for_and_not_shown(made: Place) -> None:
    """What was typed is in no line of the terminal; the hash is the one that a pipe gives."""
    exit_code, printed = on_a_terminal(
        [*program(), "hash"], made.folder, made.environment(), typed=("secret (not shown): ", "N3w-s3cret")
    )
    assert 0 == exit_code
    assert "N3w-s3cret" not in printed
    hashed = re.search(r"h1\$[0-9a-f]{64}", printed)
    assert hashed is not None
    assert hashed[0] == made.run("hash", stdin="N3w-s3cret\n").stdout.strip()


def test_on_a_terminal_a_token_is_asked_for_and_not_shown(made: Place) -> None:
    """As for a secret; exit code 1 for a token that is none."""
    exit_code, printed = on_a_terminal(
        [*program(), "explain"], made.folder, made.environment(), typed=("token (not shown): ", "rt1_abcdefgh")
    )
    assert 1 == exit_code
    assert "rt1_abcdefgh" not in printed
    assert re.search(r"^verdict +unknown$", printed, re.MULTILINE)


def test_what_is_no_text_or_has_no_end_is_refused(made: Place) -> None:
    """One line each, without what was read."""
    for given, expected in ((b"\xff\xfe\n", "it is not UTF-8 text"), (b"a" * 70_000, "too long"), (b"\n", "holds no")):
        done = subprocess.run(
            [*program(), "explain"], cwd=made.folder, env=made.environment(), input=given, capture_output=True
        )
        assert 2 == done.returncode
        assert expected in done.stderr.decode()
        assert 1 == done.stderr.count(b"\n")


def test_the_rebuild_shows_its_progress_on_a_terminal(made: Place) -> None:
    """Long work shows a bar there, and nothing but the result in a pipe."""
    exit_code, printed = on_a_terminal([*program(), "rebuild"], made.folder, made.environment())
    assert 0 == exit_code
    assert re.search(r"replaying +\[#+", printed)
    assert printed.endswith("every projection and snapshot equals a replay of all events\n")
    piped = made.run("rebuild")
    assert (0, "") == (piped.returncode, piped.stderr)
    assert "every projection and snapshot equals a replay of all events\n" == piped.stdout
