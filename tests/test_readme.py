"""The front door: what the README tells a newcomer to type works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.server_process import PROJECT, free_port

BLOCK = re.compile(r"<!-- minutes: (\w+) -->\n```bash\n(.*?)```", re.DOTALL)
FIVE_MINUTES = ("start", "client", "security", "auditor")


def blocks() -> dict[str, str]:
    return dict(BLOCK.findall((PROJECT / "README.md").read_text("utf-8")))


def test_first_five_minutes(tmp_path: Path) -> None:
    """The blocks of the three users run one after the other in one shell, and show what the README says they show."""
    port = free_port()
    script = "set -euo pipefail\ntrap 'kill %1 2>/dev/null; wait' EXIT\n"
    script += "\n".join(blocks()[name] for name in FIVE_MINUTES)
    command = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOKEN_LEDGER_")}
    environment |= {"PATH": f"{command}{os.pathsep}{environment['PATH']}", "TOKEN_LEDGER_PORT": str(port)}
    done = subprocess.run(
        ["bash", "-c", script.replace("8443", str(port))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr + done.stdout
    assert '"scope":"read profile"' in done.stdout
    assert '"reason":"reuse_detected"' in done.stdout
    assert "fork" in done.stdout
    assert "because a retired token came back" in done.stdout
    assert "every projection and snapshot equals a replay of all events" in done.stdout
