"""`python -m paged <task> ...`: the `paged` command where it is not installed."""

from paged.cli import main

if __name__ == "__main__":
    main()
