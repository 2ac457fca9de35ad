"""The command line: `python run.py ...`, and `paged <task> ...`, which is run.py task=<task>.

Hydra composes the configuration; every error that the user can mend ends the run as one line on
stderr and exit code 2. HYDRA_FULL_ERROR=1 shows where it came from.
"""

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from paged import build
from paged.arguments import did_you_mean, quoted
from paged.tasks.sweep import sweep_table

USER_ERRORS = (ValueError, HydraException, OmegaConfBaseException)
KEY = "task.api_key"  # a text, or a list of them
TEXTS = ("prompt", "task.over", "task.base", "task.baseline", KEY)  # not to be read by Hydra
USAGE = """paged: an LLM inference engine for researchers

  paged generate                              a dozen prompts through the embedded model
  paged generate prompt='Once upon a time'    your own prompt; workload.path=FILE for many
  paged generate scheduler=sjf kv.page_size=32
  paged generate -m scheduler=fcfs,sjf        a run for each
  paged generate --help                       every group, choice and setting
  paged serve port=8000                       an OpenAI-compatible server (docs/server.md)
  paged bench task.mode=latency               measure it (docs/benchmarks.md)
  paged bench_serve rates=[1,2,4]             load on a server, and what its clients see
  paged eval tasks=[hellaswag]                tasks of lm-eval (docs/evaluation.md)
  paged quality kv/compression=knorm          perplexity, KL, greedy match against fp32
  paged warmup model=smollm2                  compile its kernels for this GPU ahead of time
  paged ablate base='task=simulate workload=azure' over='scheduler=fcfs,sjf'
                                              a paper's table (docs/experiments.md)
  paged report outputs/2026-11-23             tables, plots and a trace of what has run
"""


def main() -> None:
    """The `paged` console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        print(USAGE)
        return
    if re.fullmatch(r"\w+", arguments[0]):
        arguments = task_arguments(arguments[0], arguments[1:])
    sys.exit(run(arguments))


def task_arguments(task: str, arguments: Sequence[str]) -> list[str]:
    """Arguments of `paged <task> ...` as those of run.py.

    A setting of the task needs no prefix (`port=8000` is `task.port=8000`) and may be an option
    (`--port 8000`), `out=` is the run folder, folders given to `report` are its `runs`, and a model
    need not be a choice of the group (`model=facebook/opt-125m` is `model.path=facebook/opt-125m`).
    """
    found = [f"task={task}"]
    if task == "report":
        runs = [one for one in arguments if not one.startswith("-") and _is_folder(one)]
        arguments = [one for one in arguments if one not in runs]
        found += [f"task.runs=[{','.join(map(quoted, runs))}]"] if runs else []
    settings = set(_keys("task", found)) - set(_keys("", found))
    for argument in _plain(arguments, settings | {"model"}):
        key, separator, value = argument.partition("=")
        if separator and key.partition(".")[0] in settings:
            argument = f"task.{argument}"
        elif key == "out" and separator:
            argument = f"hydra.run.dir={quoted(value)}"
        elif key == "model" and separator and _is_path(value):
            argument = f"model.path={value}"
        found.append(argument)
    return found


def _plain(arguments: Sequence[str], settings: Collection[str]) -> Iterator[str]:
    """The arguments, with `--api-key KEY` and `--api-key=KEY` as `api_key=KEY`."""
    rest = iter(arguments)
    for argument in rest:
        option, separator, value = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in settings:
            yield argument
            continue
        yield f"{name}={value if separator else next(rest, '')}"


def _is_folder(argument: str) -> bool:
    """Whether this names a run; overrides are part of the names of folders that `ablate` makes."""
    return "=" not in argument or Path(argument).is_dir()


def _is_path(model: str) -> bool:
    """Whether this names a folder, a file or a hub's model, and no choice of the group."""
    choice = config_dir() / "model" / f"{model}.yaml"
    return not choice.is_file() and ("/" in model or Path(model).exists())


def config_dir() -> Path:
    """The configuration: the checkout's, or the copy inside an installed package."""
    package = Path(__file__).parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def run(arguments: Sequence[str]) -> int:
    """Run the job, or a sweep of jobs, that the arguments describe; returns the exit code."""
    arguments = [quote_text(argument) for argument in arguments]
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    folders: list[Path] = []

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            build.task(cfg)()
            folders.append(folder)
        except USER_ERRORS as error:
            if debug:
                raise
            _report(_first_line(error))
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # the run did not get as far as writing into it
            raise SystemExit(2) from None  # Hydra would print the overrides and a traceback

    try:
        with _hydra_raises(arguments):
            job()
    except USER_ERRORS as error:
        if debug:
            raise
        _report(explain(error, arguments))
        return 2
    except KeyboardInterrupt:
        _report("interrupted")
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    if len(folders) > 1:
        Console(soft_wrap=True).print(sweep_table(folders))
    return 0


@contextmanager
def _hydra_raises(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and raises its errors instead of printing them."""
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before[0]
        del os.environ["HYDRA_FULL_ERROR"]
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]


def quote_text(argument: str) -> str:
    """`prompt=It's late, Tom` as Hydra's grammar takes it; quoted values are left alone."""
    key, separator, text = argument.partition("=")
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    is_list = key == KEY and text.startswith("[")
    if key not in TEXTS or not separator or is_quoted or is_list or text == "null":
        return argument
    return f"{key}={quoted(text)}"


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's complaint about a composition, as one line that names what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options if not option.startswith("_")]
        return f"{group}: no choice {name!r}{did_you_mean(name, options)}"
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown:
        key = unknown[1]
        parent, _, name = key.rpartition(".")
        rest = [argument for argument in arguments if argument.partition("=")[0] != key]
        return f"{key}: no such key{did_you_mean(name, _keys(parent, rest))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} does not read as key=value: {_first_line(error)}"
    return _first_line(error)


def _keys(parent: str, arguments: Sequence[str]) -> list[str]:
    """The keys under `parent` in the configuration that the arguments compose."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        try:
            cfg = hydra.compose(config_name="config", overrides=overrides)
        except (HydraException, OmegaConfBaseException):  # a second mistake: it comes next
            return []
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _report(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
