"""Any attention: equal to plain attention on batches that break careless kernels."""

import inspect

import pytest

from paged.attention.reference import ReferenceAttention
from paged.interfaces import Attention
from paged.testing.attention_cases import ATTENTION_CASES, attention_case
from paged.testing.tolerances import assert_close

BUILT_IN = [
    "paged.attention.triton.TritonAttention",
    "paged.attention.reference.ReferenceAttention",
]


def build(component) -> Attention:
    assert inspect.isclass(component), "an attention component is a class of the interface"
    return component()


@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_equals_plain_attention(device, attention_component, name):
    case = attention_case(**ATTENTION_CASES[name], device=device)
    expected = case.run(ReferenceAttention())
    assert_close(case.run(build(attention_component)), expected)
