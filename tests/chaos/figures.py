"""What the trials counted, one line each in the last lines of a test run."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print whatever the trials of this folder recorded with `record_property`."""
    lines = [
        f"{report.nodeid.removeprefix('tests/chaos/')}: " + ", ".join(f"{value} {name}" for name, value in said)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call" and report.nodeid.startswith("tests/chaos/") and (said := report.user_properties)
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)
