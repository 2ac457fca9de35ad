"""`python -m paged.server model=... port=8000` is `run.py task=serve model=... task.port=8000`."""

import sys

from paged.cli import run, task_arguments

if __name__ == "__main__":
    sys.exit(run(task_arguments("serve", sys.argv[1:])))
