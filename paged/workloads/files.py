"""Reading tables line by line, and saying which line is wrong."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) of each line. Raises ValueError unless the file has all `columns`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"workload.path: {path} has no column {', '.join(missing)}, "
                f"its columns are {', '.join(reader.fieldnames or ())}"
            )
        for row in reader:
            yield f"{path}, line {reader.line_num}", row


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line that is not blank."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"workload.path: {where} is not JSON ({error})") from error
            if not isinstance(entry, dict):
                raise ValueError(f"workload.path: {where} must be an object, got {entry!r}")
            yield where, entry


def count(where: str, row: dict[str, Any], column: str, least: int = 0) -> int:
    """A number of tokens, from `least` up."""
    try:
        value = int(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"workload.path: {where}: {column} must be a number of tokens, got {row.get(column)!r}"
        ) from error
    if value < least:
        raise ValueError(f"workload.path: {where}: {column} must be at least {least}, got {value}")
    return value


def seconds(where: str, row: dict[str, Any], column: str) -> float:
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"workload.path: {where}: {column} must be a time, got {row.get(column)!r}"
        ) from error
