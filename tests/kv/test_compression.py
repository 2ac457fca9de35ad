"""Compression in the engine: what attention sees, what each policy keeps, what is refused."""

from types import SimpleNamespace

import pytest
import torch

from paged.beams import BeamSearchParams
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.interfaces import Compression
from paged.kv.compression import h2o, keydiff, knorm, paged_eviction, snapkv, tova
from paged.kv.compression.base import ScoreCompression
from paged.kv.compression.streaming_llm import StreamingLLM
from paged.kv.contiguous_max import reserve_len
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.schedulers.priority import rank as priority
from paged.simulator.engine import SimulatedEngine
from paged.state import RUNNING, RequestTable, Sizes
from paged.testing.interpreting import rowwise_dots
from paged.testing.tiny_models import save_tiny_model, transformers_logprobs

SIZE = 16
POLICIES = {
    "streaming_llm": StreamingLLM,
    "knorm": lambda **knobs: ScoreCompression(knorm.score, **knobs),
    "keydiff": lambda **knobs: ScoreCompression(keydiff.score, with_mean_key=True, **knobs),
    "paged_eviction": lambda **knobs: ScoreCompression(paged_eviction.score, **knobs),
    "tova": lambda **knobs: attended(tova, window=1, **knobs),
    "h2o": lambda **knobs: attended(h2o, **knobs),
    "snapkv": lambda **knobs: attended(snapkv, window=WINDOW, prompt_only=True, **knobs),
}
WINDOW = 21
KNOBS = {"pages": 3, "sinks": 4, "recent": 1}
PROMPT = [(11 * i + i * i) % 250 + 3 for i in range(78)]


def attended(policy, **knobs) -> ScoreCompression:
    return ScoreCompression(policy.score, with_attention=True, **knobs)


def score_attended(policy: str, attention: torch.Tensor, prompt_len: int) -> torch.Tensor:
    """[tokens] of attention [layers, heads, queries, tokens]."""
    if policy == "tova":
        return attention[:, :, -1].mean((0, 1))
    if policy == "h2o":
        return attention.sum(2).mean((0, 1))
    scores = attention[:, :, prompt_len - WINDOW : prompt_len].sum(2).mean((0, 1))
    scores[-(-prompt_len // SIZE) * SIZE :] = 1e9
    return scores


def score_tokens(policy: str, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[tokens] of keys and values [layers, heads, tokens, D], by each paper's formula."""
    if policy == "knorm":
        scores = -keys.norm(dim=-1)
    elif policy == "paged_eviction":
        scores = values.norm(dim=-1) / keys.norm(dim=-1)
    elif policy == "keydiff":
        mean = torch.nn.functional.normalize(keys, dim=-1).mean(2, keepdim=True)
        scores = -torch.cosine_similarity(keys, mean, dim=-1)
    else:
        scores = torch.zeros(keys.shape[:3])
    return scores.mean((0, 1))


@torch.no_grad()
def expected_logprobs(model, token_ids: list[int], prompt_len: int, policy: str) -> torch.Tensor:
    """log p(token | what is kept before it) of the tokens behind the prompt, by transformers.

    Dropped pages are masked for every later query; the budget is that of KNOBS.
    """
    ids, total = torch.tensor([token_ids]), len(token_ids)
    mask = torch.full((total, total), float("-inf")).triu(1)
    kept = list(range(total))
    for length in range(prompt_len, total):
        if length != prompt_len and length % SIZE:
            continue
        output = model(
            ids[:, :length], attention_mask=mask[None, None, :length, :length],
            output_attentions=True,
        )  # fmt: skip
        layers = output.past_key_values.layers
        held = [at for at in kept if at < length]
        keys = torch.stack([layer.keys[0] for layer in layers])[:, :, held]
        values = torch.stack([layer.values[0] for layer in layers])[:, :, held]
        if policy in ("tova", "h2o", "snapkv"):
            weights = torch.stack(output.attentions)[:, 0]
            of_tokens = score_attended(policy, weights, prompt_len)[held]
        else:
            of_tokens = score_tokens(policy, keys, values)
        pages = sorted({at // SIZE for at in held if (at // SIZE + 1) * SIZE <= length})
        first_recent = (length - KNOBS["recent"]) // SIZE
        choice = [page for page in pages if 0 < page < first_recent]
        score = {
            page: of_tokens[[i for i, at in enumerate(held) if at // SIZE == page]].mean().item()
            for page in choice
        }
        excess = len(pages) + 1 - KNOBS["pages"]
        for page in sorted(choice, key=lambda page: (score[page], page))[: max(excess, 0)]:
            mask[length:, page * SIZE : (page + 1) * SIZE] = float("-inf")
            kept = [at for at in kept if at // SIZE != page]
    logits = model(ids, attention_mask=mask[None, None]).logits[0, prompt_len - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, prompt_len:, None])[:, 0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny_model("llama", folder)
    model.set_attn_implementation("eager")  # gives the weights of attention
    return model, str(folder)


def build(folder: str, compression: Compression, num_pages: int = 32, **knobs) -> LLM:
    knobs = {"max_num_seqs": 4, "max_num_batched_tokens": 128, "watermark": 0.0} | knobs
    return LLM(
        folder,
        dtype="float32",
        kv=PagedKV(page_size=SIZE, num_pages=num_pages, compression=compression),
        scheduler=RankScheduler(**knobs),
        num_slots=8,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_log_probabilities_are_those_of_transformers_with_dropped_pages_masked(
    device, saved, policy
):
    model, folder = saved
    llm = build(folder, POLICIES[policy](**KNOBS))
    output = llm.generate(PROMPT, SamplingParams(max_tokens=7, temperature=0, ignore_eos=True))
    answer = output[0].outputs[0]
    found, tokens = torch.tensor(answer.logprobs), PROMPT + answer.token_ids
    expected = expected_logprobs(model, tokens, len(PROMPT), policy)
    assert (found - expected).abs().max() < 2e-4
    whole = transformers_logprobs(model, tokens)[len(PROMPT) - 1 :]
    assert abs(found[0] - whole[0]) < 2e-4, "the prompt is attended to as a whole"
    assert (found[1:] - whole[1:]).abs().max() > 0.01, "dropped pages change what follows"


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_preemption_chunks_and_prefix_hits_change_no_bit(device, saved, policy):
    long = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, priority=1)
    urgent = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, priority=0)
    with rowwise_dots():
        alone = build(saved[1], POLICIES[policy](**KNOBS)).generate(PROMPT, long)[0].outputs[0]
        crowd = build(
            saved[1], POLICIES[policy](**KNOBS), rank=priority, preemptive=True, max_num_seqs=1,
            chunk=7,
        )  # fmt: skip
        crowd.generate(PROMPT[:40], urgent)
        live = crowd.submit(PROMPT, long)
        while len(live.token_ids) < 15:
            crowd.engine.step()
        dropped = int(crowd.engine.requests.num_dropped.max())
        crowd.generate(PROMPT[::-1], urgent)
        while crowd.engine.has_unfinished:
            crowd.engine.step()
    metrics = live.output.metrics
    assert dropped >= 3
    assert metrics.num_preemptions == 1
    assert (metrics.num_cached_tokens > 0) == (policy != "h2o"), "h2o asks every query"
    answer = live.output.outputs[0]
    assert (answer.token_ids, answer.logprobs) == (alone.token_ids, alone.logprobs)


def kept_pages(device, compression, keys, values=None) -> list[int]:
    """Which pages a row keeps of its full ones, where page i holds keys[i] [D] in every token."""
    keys = torch.stack(keys)
    values = torch.ones_like(keys) if values is None else torch.stack(values)
    pages = torch.stack([keys, values])[:, :, None].expand(-1, -1, SIZE, -1).flatten(2)
    sizes = Sizes(
        num_slots=2, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=SIZE * len(keys),
        page_size=SIZE, num_pages=len(keys),
    )  # fmt: skip
    requests, kv = RequestTable(sizes, device), PagedKV(page_size=SIZE, compression=compression)
    pool = kv.allocate(requests, torch.device(device))
    requests.status[1] = RUNNING
    for column in (requests.prompt_len, requests.total_len, requests.num_computed_tokens):
        column[1] = SIZE * len(keys)
    requests.num_pages[1] = len(keys)
    requests.block_table[1] = torch.arange(len(keys))
    pool.counters[0], pool.ref_count[:] = len(keys), 1
    model = SimpleNamespace(pages=pages.contiguous().to(device), head_dim=keys.shape[1])
    kv.compress(requests, model)
    kept = requests.block_table[1, : int(requests.num_pages[1])].tolist()
    dropped = [page for page in range(len(keys)) if page not in kept]
    at = (len(keys) + torch.arange(pool.num_free())) % len(pool.free_ring)
    assert pool.free_ring[at].tolist() == dropped, "all others are free again"
    return kept


FLAT = torch.full((16,), 0.5)
NOTHING_PROTECTED = {"pages": 4, "sinks": 0, "recent": 0}


def test_streaming_llm_keeps_sinks_and_the_window(device):
    policy = StreamingLLM(pages=4, sinks=20, recent=0)
    assert kept_pages(device, policy, [FLAT] * 8) == [0, 1, 7]


def test_knorm_keeps_keys_of_small_norms(device):
    policy = POLICIES["knorm"](**NOTHING_PROTECTED)
    keys = [FLAT * scale for scale in (3.0, 0.1, 2.0, 0.3, 5.0, 0.2)]
    assert kept_pages(device, policy, keys) == [1, 3, 5]


def test_keydiff_keeps_keys_unlike_the_others_whatever_their_norms(device):
    policy = POLICIES["keydiff"](**NOTHING_PROTECTED)
    other = FLAT * torch.tensor([1.0, -1.0] * 8)
    keys = [FLAT, FLAT * 9, other * 0.1, FLAT * 0.1, -FLAT, FLAT * 3, other * 7, FLAT]
    assert kept_pages(device, policy, keys) == [2, 4, 6]


def test_paged_eviction_keeps_large_values_behind_small_keys(device):
    policy = POLICIES["paged_eviction"](**NOTHING_PROTECTED)
    keys = [FLAT * scale for scale in (1.0, 2.0, 0.1, 1.0, 9.0)]
    values = [FLAT * scale for scale in (1.0, 9.0, 0.01, 2.0, 1.0)]
    assert kept_pages(device, policy, keys, values) == [0, 1, 3]


@pytest.mark.parametrize("policy", ["streaming_llm", "knorm", "keydiff", "paged_eviction"])
def test_sinks_and_recent_tokens_are_kept_whatever_their_scores(device, policy):
    compression = POLICIES[policy](ratio=0.01, sinks=17, recent=20)
    scales = torch.linspace(9, 1, 9)
    keys = [FLAT * scale for scale in scales]
    assert kept_pages(device, compression, keys) == [0, 1, 7, 8]
    keys.reverse()
    assert kept_pages(device, compression, keys) == [0, 1, 7, 8]


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
def test_ratio_is_the_share_of_the_pages_kept(device, ratio):
    policy = StreamingLLM(ratio=ratio, sinks=0, recent=0)
    # One more is the page that the next token goes into: it counts.
    assert len(kept_pages(device, policy, [FLAT] * 15)) + 1 == 16 * ratio


def test_a_request_longer_than_the_pool_runs_and_holds_its_budget(device, saved):
    llm = build(saved[1], StreamingLLM(pages=2, recent=0), num_pages=3)
    most = []
    llm.engine.on_step = lambda stats: most.append(int(llm.engine.requests.num_pages.max()))
    params = SamplingParams(max_tokens=18, ignore_eos=True, temperature=0)
    output = llm.generate(PROMPT[:31], params)[0].outputs[0]
    assert (len(output.token_ids), max(most)) == (18, 2)
    with pytest.raises(ValueError, match=r"needs up to 5 pages.*kv\.num_pages=3"):
        llm.generate(PROMPT[:70], params)


def test_what_cannot_be_compressed_is_refused(tmp_path, saved):
    with pytest.raises(ValueError, match=r"pages must be at least 6: sinks=4 and recent=64"):
        PagedKV(compression=StreamingLLM(pages=5))
    with pytest.raises(ValueError, match=r"kv\.compression\.ratio must be in \(0, 1\], got 0"):
        StreamingLLM(ratio=0)
    with pytest.raises(ValueError, match=r"kv\.compression\.recent must be at least 0, got -1"):
        StreamingLLM(recent=-1)
    with pytest.raises(ValueError, match="allocator that holds pages for computed tokens only"):
        PagedKV(reserve_len=reserve_len, compression=StreamingLLM())
    with pytest.raises(ValueError, match="kv/compression=none with task=simulate"):
        SimulatedEngine(
            sizes=Sizes(4, 4, 64, 128, SIZE, 16), scheduler=RankScheduler(),
            kv=PagedKV(compression=StreamingLLM()), eviction=ScoreEviction(lru),
            step_seconds=lambda *work: 1.0, vocab_size=64,
        )  # fmt: skip
    save_tiny_model("mistral", tmp_path)
    with pytest.raises(ValueError, match="sliding windows"):
        build(str(tmp_path), StreamingLLM())
    with pytest.raises(ValueError, match="kv/compression=none"):
        build(saved[1], StreamingLLM()).beam_search(PROMPT, BeamSearchParams(2, 4))
