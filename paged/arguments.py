"""Arguments against a signature: the keyword-only constructor is the schema of its YAML."""

import ast
import difflib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

SCALARS = (bool, int, float, str)


def parameters_of(target: Callable) -> dict[str, inspect.Parameter]:
    """Keyword parameters of a class or function; `**kwargs` stands for those of the base classes.

    Annotations come resolved, so that `from __future__ import annotations` changes nothing.
    """
    owners = list(target.__mro__) if inspect.isclass(target) else [target]
    found: dict[str, inspect.Parameter] = {}
    for owner in owners:
        call = vars(owner).get("__init__") if inspect.isclass(owner) else owner
        if call is None or owner is object:
            continue
        own = inspect.signature(call, eval_str=True).parameters.values()
        for parameter in own:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own):
            break
    found.pop("self", None)
    return found


def check_arguments(
    path: str, given: Mapping[str, object], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """`given` as keyword arguments. Raises ValueError naming every key that does not fit.

    Lists become tuples where the annotation asks for one. `path` is where the keys stand in the
    configuration, for messages such as `scheduler.max_num_seqs: expected int, got 'banana'`.
    """
    problems, accepted = [], {}
    for key, value in given.items():
        if key not in parameters:
            problems.append(f"{path}.{key}: no such key{did_you_mean(key, parameters)}")
            continue
        annotation = parameters[key].annotation
        if not fits(value, annotation):
            problems.append(f"{path}.{key}: expected {describe(annotation)}, got {value!r}")
        elif isinstance(value, list) and typing.get_origin(annotation) is not list:
            value = tuple(value)
        accepted[key] = value
    for key, parameter in parameters.items():
        if key not in given and parameter.default is parameter.empty:
            problems.append(f"{path}.{key}: missing, and it has no default")
    if problems:
        raise ValueError("; ".join(problems))
    return accepted


def check_fields(path: str, function: Callable, *records: Any) -> None:
    """Raise ValueError if a policy's function reads a field that what it gets does not have.

    `records` are the named tuples of its first parameters. The compiler would say so too, but on
    the first step and many lines later. A function whose source is not to be had is left to it.
    """
    function = getattr(function, "fn", function)  # what `@triton.jit` wraps
    if not inspect.isfunction(function):
        return
    try:
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    except (OSError, SyntaxError):
        return
    given = dict(zip(inspect.signature(function).parameters, records))
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            given.pop(node.id, None)  # it is something else from there on
    for node in nodes:
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        record = given.get(node.value.id)
        if record is not None and not hasattr(record, node.attr):
            read = f"{function.__name__} reads {node.value.id}.{node.attr}"
            hint = did_you_mean(node.attr, record._fields)
            raise ValueError(f"{path}: {read}: no such field{hint}")


def quoted(text: str) -> str:
    """A text as one value of Hydra's grammar."""
    # Hydra reads \\ and \' only in front of a quote; OmegaConf would resolve ${...}.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text.replace("${", "\\${"))
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def did_you_mean(key: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown key: the nearest valid one, and all of them."""
    choices = sorted(valid)
    near = difflib.get_close_matches(key, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return hint + (f" (one of {', '.join(choices)})" if choices else " (it takes none)")


def fits(value: object, annotation: object) -> bool:
    """Whether a plain YAML value suits an annotation; what YAML cannot express is let through."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation in SCALARS:
        return type(value) is annotation
    container = origin or annotation
    if container in (list, tuple, Sequence):
        elements = [one for one in inner if one is not Ellipsis]
        return isinstance(value, list | tuple) and (
            len(elements) != 1 or all(fits(item, elements[0]) for item in value)
        )
    if container in (dict, Mapping):
        return isinstance(value, dict)
    return True


def describe(annotation: object) -> str:
    """An annotation in the words of its source: `int`, `int or null`, `'a' or 'b'`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(one) for one in inner)
    if origin is typing.Literal:
        return " or ".join(repr(one) for one in inner)
    if annotation is None or annotation is type(None):
        return "null"
    container = origin or annotation
    if container in (list, tuple, Sequence):
        elements = [describe(one) for one in inner if one is not Ellipsis]
        return f"a list of {elements[0]}" if len(elements) == 1 else "a list"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
