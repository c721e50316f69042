"""What trials of the full tier need of a machine; what is missing is the reason of a skip."""

import shutil
import subprocess

import pytest


@pytest.fixture
def needs_strace(full: bool) -> None:
    """Skip where the kernel's tracing cannot be used."""
    if not full:
        pytest.skip("what strace puts into system calls belongs to --full")
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()}")
