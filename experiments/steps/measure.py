"""Where does a step's time go? Decode steps at several batches, and a real mix of lengths.

    python experiments/steps/measure.py qwen3-0.6b --lengths lengths.json --profile 64 256

Random weights of the model's shape. `--lengths`: a JSON list of [prompt, output] tokens, run at
once; every answer must have its length. Then each batch of 512-token prompts decodes: 20 steps
unmeasured, 80 measured, and 10 under the profiler where `--profile` names the batch (kernels then
overlap by programmatic dependent launch: PAGED_PDL=0 gives times that add up).
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.stats import StepStats

MAX_NUM_BATCHED_TOKENS = 8192


def finish(llm: LLM) -> None:
    while llm.engine.has_unfinished:
        llm.engine.step()
    torch.cuda.synchronize()


def run_lengths(llm: LLM, lengths: list[list[int]], rng: random.Random) -> None:
    engine, ids = llm.engine, range(10, llm.spec.vocab_size - 10)
    prompts = [rng.choices(ids, k=prompt) for prompt, _ in lengths]
    steps: dict[int, list[StepStats]] = {}
    engine.on_step = lambda stats: steps.setdefault(stats.capacity, []).append(stats)
    began = time.perf_counter()
    live = [
        engine.submit(prompt, SamplingParams(temperature=0, max_tokens=output, ignore_eos=True))
        for prompt, (_, output) in zip(prompts, lengths)
    ]
    finish(llm)
    seconds = time.perf_counter() - began
    engine.on_step = None
    for request, (_, output) in zip(live, lengths):
        assert len(request.output.outputs[0].token_ids) == output
    total = sum(output for _, output in lengths)
    print(f"{len(lengths)} requests in {seconds:.2f} s, {total / seconds:.0f} output tokens/s")
    for capacity, stats in sorted(steps.items()):
        tokens, taken = sum(one.num_tokens for one in stats), sum(one.seconds for one in stats)
        print(
            f"  {len(stats)} steps of up to {capacity}: {tokens / len(stats):.0f} tokens, "
            f"{taken / len(stats) * 1e3:.2f} ms each, {taken:.2f} s in all, "
            f"{sum(one.host_seconds for one in stats) / len(stats) * 1e6:.0f} us of the host each"
        )


def run_batch(llm: LLM, batch: int, context: int, with_profile: bool, rng: random.Random) -> None:
    engine = llm.engine
    params = SamplingParams(temperature=0, max_tokens=140, ignore_eos=True)
    for _ in range(batch):
        engine.submit([rng.randrange(10, 1000) for _ in range(context)], params)
    for _ in range(batch * context // MAX_NUM_BATCHED_TOKENS + 20):  # the prompts, and 20 decodes
        engine.step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(80):
        engine.step()
    torch.cuda.synchronize()
    print(f"batch {batch}: {(time.perf_counter() - began) / 80 * 1e3:.3f} ms a step", flush=True)
    if with_profile:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(10):
                engine.step()
            torch.cuda.synchronize()
        rows = [(e.self_device_time_total, e.count, e.key) for e in trace.key_averages()]
        for us, count, name in sorted(rows, reverse=True)[:20]:
            print(f"  {us / 10:9.1f} us a step, {count / 10:6.1f} x {us / count:8.2f}  {name[:40]}")
    finish(llm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--profile", type=int, nargs="*", default=[])
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    args = parser.parse_args()
    llm = LLM(
        args.model,
        load="dummy",
        engine="graph",
        max_model_len=2048,
        num_slots=1024,
        kv=PagedKV(page_size=64, memory_fraction=0.8),
        scheduler=RankScheduler(
            max_num_seqs=args.max_num_seqs, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS
        ),
    )
    print("start:", ", ".join(f"{name} {s:.1f} s" for name, s in llm.startup.items()), flush=True)
    rng = random.Random(1)
    if args.lengths:
        lengths = json.loads(args.lengths.read_text())
        run_lengths(llm, lengths[:8], rng)
        run_lengths(llm, lengths, rng)
    for batch in args.batches:
        run_batch(llm, batch, args.context, batch in args.profile, rng)


if __name__ == "__main__":
    main()
