#!/usr/bin/env python3
"""Kills the proxy by SIGKILL at random moments of downloads, starts it anew and looks.

Run by `make soak`; KILLS (50) and SEED change what it does.
"""

import os
import sys

import cached
from parts import Bench, Failed, end_on_signals, proxy_command

KILLS = int(os.environ.get("KILLS") or 50)


def main():
    """Runs the loop; the exit code tells whether everything was right."""
    end_on_signals()
    try:
        print(f"# proxy under test: {proxy_command()[0]}")
        with Bench() as bench:
            cached.kill_loop(bench, cached.Upstream(bench, "files"), KILLS)
    except Failed as error:
        print(f"not ok: {error}")
        return 1
    print(f"ok: {KILLS} kills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
