"""What commands print."""

import json

import pytest

from api.cli import output


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        ("", "(none)"),
        ([], "(none)"),
        (["read", "write"], "read write"),
        (True, "yes"),
        (0, "0"),
        ("a\nb\x1b[31m\u2028\u202e", "a\\nb\\u001b[31m\\u2028\\u202e"),
    ],
)
def test_a_value_is_shown_on_one_line(value: output.Json, expected: str) -> None:
    """What others sent cannot end a line, forge one or command the terminal."""
    assert expected == output.shown(value)


def test_json_is_ascii_on_one_line_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get the same bytes in every locale, and no terminal obeys them."""
    value = {"subject": "Jürgen \x7f\x9b\u2028 \U0001f600 \x1b[2J"}
    output.say_json(value)
    line = capsys.readouterr().out
    assert value == json.loads(line)
    assert line.isascii()
    assert line.removesuffix("\n").isprintable()


def test_members_are_aligned_and_objects_spread(capsys: pytest.CaptureFixture[str]) -> None:
    """One member a line, its name first."""
    output.say_members({"status": "active", "end": {"at": "now"}, "generation": 3})
    assert "status      active\nend.at      now\ngeneration  3\n" == capsys.readouterr().out


def test_a_table_has_titles_and_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows are printed as they come; a line feed inside one does not make two."""
    output.say_table(("id", "state", "what"), [("1", "active", "a"), ("20", "x", "b\nc")], (3, 8))
    assert "id   state     what\n1    active    a\n20   x         b\\nc\n" == capsys.readouterr().out


def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR and dumb terminals are heard (no-color.org)."""
    assert "text" == output.styled("text", "red")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[1;31mtext\x1b[0m" == output.styled("text", "bold", "red")
    assert "" == output.styled("", "red")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "text" == output.styled("text", "red")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "text" == output.styled("text", "red")
