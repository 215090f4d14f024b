"""The command line: parses, calls, prints; no logic of its own. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit code 2 for the person's mistake, 1 for ours."""
    from vl2v.cli.app import app
    from vl2v.errors import VL2VError

    try:
        app()
    except VL2VError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        sys.exit(130)


__all__ = ["main"]
