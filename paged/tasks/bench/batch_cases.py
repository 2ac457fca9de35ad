"""The operations that know sequences and rows of logits: attention and sampling, as cases."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from paged.attention.reference import ReferenceAttention
from paged.interfaces import AttentionMeta, AttentionSpec, Sampler
from paged.samplers.greedy import GreedySampler
from paged.samplers.stochastic import StochasticSampler
from paged.state import RequestTable, Sizes, StepPlan
from paged.tasks.bench.cases import Case, Shapes
from paged.testing.tolerances import assert_close

TOP_K, TOP_P = 40, 0.9


def attention_case(shapes: Shapes, batch: int, query_len: int, seq_len: int) -> Case:
    """`batch` sequences of `seq_len` keys; `query_len` is 1 (decode) or all of them (prefill)."""
    spec, device, page = shapes.spec, shapes.device, shapes.page_size
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    layer = AttentionSpec(heads, kv_heads, dim, spec.softmax_scale or dim**-0.5)
    tokens, pages = batch * query_len, -(-seq_len // page)

    meta = AttentionMeta(
        block_table=torch.randperm(batch * pages, device=device).int().view(batch, pages),
        cu_seqlens_q=torch.arange(0, tokens + 1, query_len, dtype=torch.int32, device=device),
        seq_lens=torch.full((batch,), seq_len, dtype=torch.int32, device=device),
        num_seqs=torch.tensor([batch], dtype=torch.int32, device=device),
        num_tokens=torch.tensor([tokens], dtype=torch.int32, device=device),
        page_size=page,
        max_num_tokens=tokens,
        max_seq_len=seq_len,
    )

    def make() -> dict:
        qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device).to(shapes.dtype)
        cache = torch.randn(2, batch * pages, kv_heads, page, dim, device=device).to(shapes.dtype)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        out = torch.full((tokens, heads, dim), float("nan"), **shapes.on)
        # A step plans once for all layers: only the first run after this is to do that work.
        shapes.attention.plan(meta)
        return {"q": q, "k": k, "v": v, "kv_cache": tuple(cache), "meta": meta, "spec": layer,
                "out": out}  # fmt: skip

    def check(inputs: dict) -> None:
        expected = ReferenceAttention().forward(**inputs | {"out": torch.empty_like(inputs["out"])})
        assert_close(inputs["out"], expected)

    def library(backend: SDPBackend, inputs: dict) -> torch.Tensor:
        """Over contiguous keys and values, which pages are not: the library's best case."""
        q = inputs["q"].unflatten(0, (batch, query_len)).transpose(1, 2)
        k, v = (
            cache.view(batch, kv_heads, pages * page, dim)[:, :, :seq_len]
            for cache in inputs["kv_cache"]
        )
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=query_len > 1, scale=layer.softmax_scale, enable_gqa=True
            )

    backends = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    seen = query_len * seq_len - query_len * (query_len - 1) / 2  # pairs of query and key
    size = shapes.dtype.itemsize
    name = f"decode {batch} x {seq_len}" if query_len == 1 else f"prefill {batch} x {seq_len}"
    return Case(
        f"attention, {name}",
        make,
        lambda inputs: shapes.attention.forward(**inputs),
        check,
        2 * size * dim * (batch * seq_len * kv_heads + tokens * heads),
        4.0 * batch * seen * heads * dim,
        {name: partial(library, backend) for name, backend in backends.items()},
    )


def sampling_cases(shapes: Shapes, rows: int) -> Iterator[Case]:
    """Greedy, and top-k with top-p, over the model's vocabulary."""
    vocab = shapes.spec.vocab_size
    sizes = Sizes(rows, rows, rows, 16, 16, 1)
    num_bytes = 4.0 * rows * vocab

    def case(name: str, sampler: Sampler, temperature: float, check, library) -> Case:
        def make() -> dict:
            requests = RequestTable(sizes, shapes.device)
            requests.temperature.fill_(temperature)
            requests.top_k.fill_(TOP_K)
            requests.top_p.fill_(TOP_P)
            requests.seed.copy_(torch.arange(rows))
            plan = StepPlan(sizes, shapes.device)
            plan.num_samples.fill_(rows)
            plan.sample_slots.copy_(torch.arange(rows))
            logits = 3 * torch.randn(rows, vocab, device=shapes.device)
            return {"logits": logits, "requests": requests, "plan": plan}

        return Case(f"sampling, {name}, {rows} rows", make, lambda inputs: sampler.sample(**inputs),
                    check, num_bytes, 0.0, {"torch": library})  # fmt: skip

    def is_largest(inputs: dict) -> None:
        expected = inputs["logits"].argmax(-1)
        assert torch.equal(inputs["plan"].sampled_tokens.long(), expected), "not the largest logit"

    def is_kept(inputs: dict) -> None:
        drawn = inputs["plan"].sampled_tokens.long()
        kept = _kept(inputs["logits"]).gather(1, drawn.clamp_min(0)[:, None])
        assert (drawn >= 0).all(), "a row drew no token"
        assert kept.all(), "a token was drawn that the filters drop"

    yield case(
        "greedy", GreedySampler(), 0.0, is_largest, lambda inputs: inputs["logits"].argmax(-1)
    )
    yield case(
        f"top-k {TOP_K} and top-p {TOP_P}", StochasticSampler(), 1.0, is_kept, _draw_by_sorting
    )


def _kept(logits: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] bool: what top-k and then top-p keep, with room for rounding at the edge."""
    values, ids = logits.sort(descending=True)
    probabilities = values[:, :TOP_K].softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.zeros_like(logits, dtype=torch.bool)
    return kept.scatter_(1, ids[:, :TOP_K], before < TOP_P + 1e-5)


def _draw_by_sorting(inputs: dict) -> torch.Tensor:
    """The usual way with torch operations: sort, filter, draw by the exponential trick."""
    values, ids = inputs["logits"].sort(descending=True)
    values = values.masked_fill(torch.arange(values.shape[1], device=values.device) >= TOP_K, -1e9)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before > TOP_P, 0.0)
    noise = torch.empty_like(probabilities).exponential_()
    return ids.gather(1, (probabilities / noise).argmax(-1, keepdim=True))
