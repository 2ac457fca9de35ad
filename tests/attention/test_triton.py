import pytest
import torch

from paged.attention.alibi import alibi_slopes
from paged.attention.reference import ReferenceAttention
from paged.attention.triton import TritonAttention
from paged.testing.attention_cases import ATTENTION_CASES, attention_case
from paged.testing.interpreting import rowwise_dots
from paged.testing.tolerances import assert_close

OTHERS = ((1, 40), (9, 9))


@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_triton_matches_the_reference(name, device, dtype):
    attention = TritonAttention(split_size=128, workspace_rows=0)
    case = attention_case(**ATTENTION_CASES[name], device=device, dtype=dtype)
    assert_close(case.run(attention), case.run(ReferenceAttention()))


@pytest.mark.parametrize("name", ["decode", "mqa", "sliding_window_long", "softcap"])
def test_parallel_splits_match_the_reference(name, device, dtype):
    attention = TritonAttention(split_size=128, workspace_rows=256)
    case = attention_case(**ATTENTION_CASES[name], device=device, dtype=dtype)
    assert_close(case.run(attention), case.run(ReferenceAttention()))


@pytest.mark.parametrize(
    "name", ["ragged", "empty", "chunk_of_long_context", "mha_wide", "sliding_window_long"]
)
def test_short_and_tall_tiles_share_a_step(name, device, dtype):
    attention = TritonAttention(split_size=128, workspace_rows=256, short_capacity=0)
    case = attention_case(**ATTENTION_CASES[name], device=device, dtype=dtype)
    assert_close(case.run(attention), case.run(ReferenceAttention()))


def test_sequences_that_outgrow_the_workspace_keep_their_bits(device, dtype):
    lens = ((1, 300), (1, 600), (1, 300), (3, 500))
    cases = [
        attention_case(lens, device=device, dtype=dtype).run(
            TritonAttention(split_size=128, workspace_rows=rows)
        )
        for rows in (0, 5, 11, 100)
    ]
    for case in cases[1:]:
        assert torch.equal(case, cases[0])


@pytest.mark.parametrize(
    "variant", [{}, {"sliding_window": 150}, {"logit_softcap": 5.0, "alibi": True}], ids=str
)
def test_bits_of_a_token_do_not_depend_on_how_it_is_computed(variant, device, dtype):
    """The token at position 199 as decode, in chunks, in a prefill, in company, both ways."""
    sequential = TritonAttention(split_size=128, workspace_rows=0)
    parallel = TritonAttention(split_size=128, workspace_rows=1024)
    mixed = TritonAttention(split_size=128, workspace_rows=1024, short_capacity=0)

    def last_token(attention, q_len, others=(), **options):
        lens, seeds = (*others, (q_len, 200)), (*range(100, 100 + len(others)), 7)
        options = {"max_seq_len": 400, "device": device, "dtype": dtype} | variant | options
        return attention_case(lens, seeds=seeds, **options).run(attention)[-1]

    with rowwise_dots():
        decode = last_token(sequential, 1)
        assert torch.isfinite(decode).all()
        assert torch.equal(last_token(parallel, 1), decode)
        assert torch.equal(last_token(sequential, 1, OTHERS), decode)
        assert torch.equal(last_token(sequential, 7), decode)
        assert torch.equal(last_token(parallel, 45, OTHERS), decode)
        assert torch.equal(last_token(mixed, 1, OTHERS), decode)
        assert torch.equal(last_token(mixed, 70, OTHERS), decode)
        # room for hundreds of tokens: the tiles of prefill
        assert torch.equal(last_token(sequential, 200, OTHERS, spare_tokens=400), decode)
        assert torch.equal(last_token(sequential, 1, page_size=128), decode)


def test_bits_of_a_prefill_do_not_depend_on_its_chunks(device, dtype):
    attention = TritonAttention(split_size=128)
    options = {"seeds": (3,), "device": device, "dtype": dtype}
    with rowwise_dots():
        whole = attention_case(((200, 200),), **options).run(attention)
        for start, end in ((0, 7), (133, 140), (136, 200)):
            chunk = attention_case(((end - start, end),), **options).run(attention)
            assert torch.equal(chunk, whole[start:end])


def test_layers_of_different_heads_share_a_plan(device, dtype):
    attention = TritonAttention()
    wide = attention_case(num_heads=8, num_kv_heads=1, device=device, dtype=dtype)
    narrow = attention_case(num_heads=2, num_kv_heads=2, device=device, dtype=dtype)
    outs = [torch.empty_like(case.q) for case in (wide, narrow)]
    attention.plan(wide.meta)
    for case, out in zip((wide, narrow), outs):
        attention.forward(case.q, case.k, case.v, case.kv_cache, wide.meta, case.spec, out)
        assert_close(out[: case.num_tokens], case.run(ReferenceAttention()))


def test_buffers_are_kept_from_step_to_step(device, dtype):
    attention = TritonAttention(workspace_rows=512, split_size=128)
    attention_case(device=device, dtype=dtype, max_seq_len=512).run(attention)
    kept = {key: tensor.data_ptr() for key, tensor in attention._items.items()}
    partials = {key: acc.data_ptr() for key, (acc, *_) in attention._partials.items()}
    attention_case(device=device, dtype=dtype, max_seq_len=512).run(attention)
    assert kept == {key: tensor.data_ptr() for key, tensor in attention._items.items()}
    assert partials == {key: acc.data_ptr() for key, (acc, *_) in attention._partials.items()}


def test_alibi_slopes_are_those_of_the_paper():
    eight = [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(8).tolist() == eight
    assert alibi_slopes(1).tolist() == [2.0**-8]
    twelve = torch.tensor([*eight, 2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5])
    torch.testing.assert_close(alibi_slopes(12), twelve)


@pytest.mark.parametrize("split_size", [0, 64, 300])
def test_split_size_is_checked(split_size):
    with pytest.raises(ValueError, match="split_size must be a power of two from 128 up"):
        TritonAttention(split_size=split_size)


def test_workspace_is_checked():
    with pytest.raises(ValueError, match="workspace_rows must be at least 0, got -1; 0 turns"):
        TritonAttention(workspace_rows=-1)
