"""The command `token-ledger`."""

import sys

from api.cli import run


def main() -> None:
    """Run the command that the arguments name and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
