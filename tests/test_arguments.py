"""A component's signature is the schema of its YAML."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import triton

from paged.arguments import check_arguments, describe, fits, parameters_of
from paged.eviction.base import ScoreEviction
from paged.kv.compression.base import ScoreCompression
from paged.schedulers.base import RankScheduler


class Base:
    def __init__(self, *, size: int = 1, share: float = 0.5) -> None: ...


class Derived(Base):
    def __init__(self, *, name: str, **rest: Any) -> None: ...


class Inherited(Base):
    pass


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (True, int, False),
        ("1", int, False),
        (1, float, True),
        (False, float, False),
        (1, bool, False),
        (None, int | None, True),
        ("x", int | None, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], Sequence[int], True),
        ([1, "x"], tuple[int, ...], False),
        ("ab", Sequence[str], False),
        ({"a": 1}, dict[str, int], True),
        (object(), Base, True),
    ],
)
def test_yaml_values_fit_annotations(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_annotations_are_described_in_words():
    assert describe(int | None) == "int or null"
    assert describe(Literal["a", "b"]) == "'a' or 'b'"
    assert describe(tuple[int, ...]) == "a list of int"


def test_kwargs_stand_for_the_parameters_of_the_base():
    assert set(parameters_of(Derived)) == {"name", "size", "share"}
    assert set(parameters_of(Inherited)) == {"size", "share"}


def test_every_wrong_key_is_named_at_once():
    given = {"size": "banana", "shape": 3}
    with pytest.raises(ValueError, match=r"part\.size") as caught:
        check_arguments("part", given, parameters_of(Derived))
    message = str(caught.value)
    assert "part.size: expected int, got 'banana'" in message
    assert "part.shape: no such key; did you mean share? (one of name, share, size)" in message
    assert "part.name: missing" in message


def test_lists_become_tuples():
    def target(*, ids: tuple[int, ...]) -> None: ...

    assert check_arguments("part", {"ids": [1, 2]}, parameters_of(target)) == {"ids": (1, 2)}


@triton.jit
def misspelt_page(page, now):
    return page.last_used - page.hit


def misspelt_row(row, now):
    return row.arrival + now.seconds


@triton.jit
def misspelt_token(token, weight):
    return weight * token.keys


@triton.jit
def renamed(page, now):
    step = now.step
    now = page
    return now.hits + step


@pytest.mark.parametrize(
    ("part", "function", "message"),
    [
        (ScoreEviction, misspelt_page, r"eviction: misspelt_page reads page\.hit: .* mean hits\?"),
        (RankScheduler, misspelt_row, r"scheduler: .* now\.seconds: no such field .*ms, step"),
        (ScoreCompression, misspelt_token, r"kv\.compression: .* token\.keys: .* mean key\?"),
    ],
)
def test_a_field_that_is_not_there_is_named_before_anything_is_compiled(part, function, message):
    with pytest.raises(ValueError, match=message):
        part(function)


def test_what_is_no_longer_the_argument_is_left_alone():
    ScoreEviction(renamed)
