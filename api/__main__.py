"""The command `token-ledger`."""

import os
import resource
import sys

from api.cli import run

_STANDARD = ("stdin", "stdout", "stderr")


def main() -> None:
    """Run the command that the arguments name and end the process with its exit code."""
    fill_standard_streams()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the keys: commands read them, too
    sys.exit(run(sys.argv[1:]))


def fill_standard_streams() -> None:
    """Let standard streams that the process was started without be empty ones. Else the next file or socket would be
    given their numbers, and what is printed would go into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < len(_STANDARD):
        os.set_inheritable(descriptor, True)
        setattr(sys, _STANDARD[descriptor], os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8"))
    os.close(descriptor)


if __name__ == "__main__":
    main()
