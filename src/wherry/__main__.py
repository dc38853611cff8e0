"""`python -m wherry` and the `wherry` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line."""
    from wherry.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
