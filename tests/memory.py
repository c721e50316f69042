"""Where files lie that need not outlive anything: in memory, where nobody waits for a disk.

What a killed process has written is there as it is on a disk; what would be lost with the machine's power is not tried
there, and neither is what depends on how long a sync takes.
"""

import os
import shutil
from pathlib import Path
from typing import Final

IN_MEMORY: Final = Path("/dev/shm")
BYTES_MIN: Final = 2 << 30


def in_memory() -> Path | None:
    """A folder in memory, where this machine has one with room for all that tests write."""
    room = os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free >= BYTES_MIN
    return IN_MEMORY if room else None
