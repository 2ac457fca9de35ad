"""The main job: python run.py scheduler=fcfs kv=paged (--help lists the choices, -m sweeps)."""

import sys

from paged.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
