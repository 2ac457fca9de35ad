"""Imports go one way, and the house rules that a machine can hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "paged").rglob("*.py"))
SOURCES = [ROOT / "run.py", *FILES, *sorted((ROOT / "tests").rglob("*.py"))]
PLUGIN_FOLDERS = (
    "kv", "eviction", "schedulers", "samplers", "proposers", "attention", "workloads", "loggers",
)  # fmt: skip
MAY_IMPORT_HYDRA = ("paged.build", "paged.cli")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, `from a import b` as a.b; inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offenders(paths, allowed) -> list[str]:
    return [f"{module_name(path)} imports {name}"
            for path in paths for name in imports(path)
            if not allowed(module_name(path), name)]  # fmt: skip


def inside(*packages: str) -> list[Path]:
    return [path for path in FILES if within(module_name(path), *packages)]


def test_kernels_import_nothing_of_ours_but_kernels():
    def allowed(module, name):
        return within(name, "paged.kernels") or not within(name, "paged")

    assert offenders(inside("paged.kernels"), allowed) == []


def test_state_and_interfaces_import_nothing_above_them():
    def allowed(module, name):
        return within(name, "paged.kernels", "paged.state") or not within(name, "paged")

    assert offenders(inside("paged.state", "paged.interfaces"), allowed) == []


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugin_folders_never_import_each_other(folder):
    others = [f"paged.{other}" for other in PLUGIN_FOLDERS if other != folder]
    above = ["paged.engine", "paged.llm", "paged.build", "paged.cli", "paged.tasks"]

    def allowed(module, name):
        return not within(name, *others, *above)

    assert offenders(inside(f"paged.{folder}"), allowed) == []


def test_the_engine_knows_interfaces_and_no_implementation():
    plugins = [f"paged.{folder}" for folder in PLUGIN_FOLDERS]

    def allowed(module, name):
        return not within(name, *plugins, "paged.llm", "paged.build", "paged.models")

    assert offenders(inside("paged.engine"), allowed) == []


def test_only_the_wiring_imports_hydra():
    def allowed(module, name):
        return module in MAY_IMPORT_HYDRA or not within(name, "hydra", "omegaconf")

    assert offenders(FILES, allowed) == []


def test_nothing_imports_tests_or_experiments():
    def allowed(module, name):
        return not within(name, "tests", "experiments")

    assert offenders(FILES, allowed) == []


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_there_are_no_drawers():
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [str(path) for path in SOURCES if path.name in drawers] == []


def test_source_is_ascii():
    texts = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    assert [name for name, text in texts.items() if not text.isascii()] == []


def test_nothing_is_left_open():
    marks = ("TO" + "DO", "FIX" + "ME")
    texts = {path.name: path.read_text(encoding="utf-8") for path in SOURCES}
    assert [name for name, text in texts.items() if any(mark in text for mark in marks)] == []
