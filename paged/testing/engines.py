"""Small engines around the oracle model, for tests of everything but the model."""

import random
from collections.abc import Sequence

import torch

from paged.engine import Engine
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.interfaces import Eviction, KVManager, LogitsProcessor, Proposer, Sampler, Scheduler
from paged.kv.paged import PagedKV
from paged.live_request import LiveRequest
from paged.mailbox import Mailbox
from paged.request import SamplingParams
from paged.samplers.greedy import GreedySampler
from paged.schedulers.base import RankScheduler
from paged.sizing import choose_num_host_pages
from paged.state import Sizes
from paged.structured.base import GrammarCompiler
from paged.testing.oracle import NoAttention, OracleModel

VOCAB_SIZE = 64


def oracle_engine(
    device: str,
    *,
    scheduler: Scheduler | None = None,
    kv: KVManager | None = None,
    eviction: Eviction | None = None,
    sampler: Sampler | None = None,
    eos_ids: tuple[int, ...] = (),
    grammars: GrammarCompiler | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
    proposer: Proposer | None = None,
    num_pages: int = 64,
    num_slots: int = 8,
    max_model_len: int = 160,
    nan_after: tuple[int, ...] = (),
    in_flight: int = 1,
    watchdog_seconds: float = 120.0,
    rings: dict[str, int] | None = None,
    **knobs,
) -> Engine:
    """An engine whose answers `engine.model.continuation` tells.

    `rings` are options of the mailbox, `knobs` are RankScheduler's.
    """
    scheduler = scheduler or RankScheduler(
        **{"max_num_seqs": 8, "max_num_batched_tokens": 64, "watermark": 0.0} | knobs
    )
    kv = kv or PagedKV(page_size=16)
    sizes = Sizes(
        num_slots=num_slots,
        max_num_seqs=min(scheduler.max_num_seqs, num_slots),
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=max_model_len,
        page_size=kv.page_size,
        num_pages=num_pages,
        num_draft_tokens=0 if proposer is None else proposer.num_draft_tokens,
        num_host_pages=choose_num_host_pages(scheduler, kv),
    )
    return Engine(
        model=OracleModel(sizes, device, VOCAB_SIZE, nan_after),
        sizes=sizes,
        scheduler=scheduler,
        kv=kv,
        eviction=eviction or ScoreEviction(lru),
        attention=NoAttention(),
        sampler=sampler or GreedySampler(),
        device=torch.device(device),
        in_flight=in_flight,
        watchdog_seconds=watchdog_seconds,
        mailbox=Mailbox(sizes, torch.device(device), vocab_size=VOCAB_SIZE, **(rings or {})),
        vocab_size=VOCAB_SIZE,
        eos_ids=eos_ids,
        grammars=grammars,
        logits_processors=logits_processors,
        proposer=proposer,
    )


def ragged_prompts(count: int, seed: int = 0, shared: int = 0) -> list[list[int]]:
    """Prompts of awkward lengths behind `shared` common tokens."""
    rng = random.Random(seed)
    head = [rng.randrange(VOCAB_SIZE) for _ in range(shared)]
    lengths = (1, 15, 16, 17, 33, 64, 80)
    return [
        head + [rng.randrange(VOCAB_SIZE) for _ in range(lengths[index % len(lengths)])]
        for index in range(count)
    ]


def run_to_end(engine: Engine, max_steps: int = 2000) -> None:
    """Step until every request has ended, checking the invariants; then nothing may be held."""
    for _ in range(max_steps):
        if not engine.has_unfinished:
            break
        engine.step()
        engine.kv.check(engine.requests)
    assert not engine.has_unfinished, f"requests did not end within {max_steps} steps"
    assert int((engine.pool.ref_count > 0).sum()) == 0, "pages are held after all requests ended"


def answer_all(
    engine: Engine, prompts: list[list[int]], num_tokens: int, **params
) -> list[LiveRequest]:
    """Run all prompts at once and assert that every answer is the oracle's."""
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True, **params)
    oracle = engine.model
    assert isinstance(oracle, OracleModel), "only the oracle model's answers are known"
    requests = [engine.submit(prompt, sampling) for prompt in prompts]
    run_to_end(engine)
    for request, prompt in zip(requests, prompts):
        completion = request.output.outputs[0]
        assert completion.finish_reason == "length", completion.finish_reason
        assert completion.token_ids == oracle.continuation(prompt, num_tokens)
    return requests
