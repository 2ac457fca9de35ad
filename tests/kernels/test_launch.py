import pytest
import torch

from paged.kernels.embedding import embedding
from paged.kernels.linear import linear
from paged.kernels.norm import norm
from paged.kernels.rope_kv import rope_kv


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [16, 64, 256])
def test_kernels_read_the_plan_of_this_replay_before_they_wait(capacity):
    """Counts and slots change between replays, and are written right before the embedding."""
    heads, head_dim = 8, 64
    width = heads * head_dim
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    table = torch.randn(100, width, **options)
    weight, scale = torch.randn(width, width, **options) / width**0.5, torch.ones(width, **options)
    ids = torch.arange(capacity, dtype=torch.int32, device="cuda") % 100
    counts = torch.zeros(1, dtype=torch.int32, device="cuda")
    slots = torch.zeros(capacity, dtype=torch.int64, device="cuda")
    num_tokens, slot_mapping = torch.zeros_like(counts), torch.zeros_like(slots)
    order, rows = torch.zeros_like(ids), torch.zeros_like(ids)
    x, y, qkv, sampled = (torch.zeros(capacity, width, **options) for _ in range(4))
    k_cache, v_cache = (torch.zeros(capacity, 2, 16, head_dim, **options) for _ in range(2))

    def step():
        for tensor in (x, y, qkv, sampled, k_cache, v_cache):
            tensor.fill_(float("nan"))
        torch.cuda._sleep(20_000)
        num_tokens.copy_(counts)
        slot_mapping.copy_(slots)
        rows.copy_(order)
        embedding(ids, table, num_tokens, x)
        norm(x, scale, num_tokens, y, 1e-6)
        linear(y, weight, num_tokens, qkv)
        plan = (slot_mapping, k_cache, v_cache, num_tokens)
        rope_kv(qkv, ids, None, *plan, heads - 4, 2, head_dim)
        norm(x, scale, num_tokens, sampled, 1e-6, rows=rows)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for replay in range(40):
        live = 1 + (replay * 13) % capacity
        counts.fill_(live)
        slots.copy_(torch.randperm(16 * capacity)[:capacity])
        order[:live] = torch.randperm(live)
        graph.replay()
        assert torch.equal(sampled[:live], y[order[:live].long()])
        assert bool(sampled[live:].isnan().all())
        assert bool(qkv[:live].isfinite().all())
        assert bool(qkv[live:].isnan().all())
        page, offset = slots // 16, slots % 16
        for cache, first in ((k_cache, heads - 4), (v_cache, heads - 2)):
            kept = qkv.view(capacity, heads, head_dim)[:live, first : first + 2]
            assert torch.equal(cache[page, :, offset][:live], kept)
            assert int(cache.isfinite().sum()) == kept.numel()
