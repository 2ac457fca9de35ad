"""What batch-invariant attention costs: the whole forward, both settings, in CUDA graphs.

    python experiments/numerics/measure.py --model llama-3.1-8b

Random weights of the model's real shape, random pages. Each forward is captured and replayed;
times are medians. Before anything is timed, both settings pass the attention contract's cases.
"""

import argparse

import torch

from paged.attention.reference import ReferenceAttention
from paged.attention.triton import TritonAttention
from paged.interfaces import AttentionMeta
from paged.models.loading import load_model
from paged.state import Sizes, StepPlan, next_power_of_2
from paged.tasks.bench.hardware import graph_seconds
from paged.testing.attention_cases import ATTENTION_CASES, attention_case
from paged.testing.tolerances import assert_close

# (sequences, new tokens each, keys each)
CASES = (
    (1, 1, 512), (1, 1, 4096), (1, 1, 32768), (16, 1, 4096), (64, 1, 576), (64, 1, 2048),
    (256, 1, 1024), (1, 2048, 2048), (1, 8192, 8192), (16, 512, 512), (2, 1024, 8192),
)  # fmt: skip
PAGE_SIZE = 64
SETTINGS = ("invariant", "fast")
MAX_KEYS = max(seqs * keys for seqs, _, keys in CASES)


def fill(plan: StepPlan, seqs: int, new: int, keys: int) -> AttentionMeta:
    """One batch by hand: `seqs` sequences of `keys` keys, the last `new` of them computed now."""
    sizes, device = plan.sizes, plan.positions.device
    per_seq = -(-keys // PAGE_SIZE)
    pages = torch.randperm(sizes.num_pages, device=device)[: seqs * per_seq].view(seqs, per_seq)
    plan.block_table[:seqs, :per_seq] = pages.to(torch.int32)
    position = torch.arange(keys - new, keys, device=device).repeat(seqs)
    seq = torch.arange(seqs, device=device).repeat_interleave(new)
    tokens = seqs * new
    plan.positions[:tokens] = position.to(torch.int32)
    page = pages[seq, position // PAGE_SIZE]
    plan.slot_mapping[:tokens] = page * PAGE_SIZE + position % PAGE_SIZE
    plan.input_ids[:tokens] = torch.randint(0, 1000, (tokens,), device=device, dtype=torch.int32)
    plan.cu_seqlens_q.fill_(tokens)
    plan.cu_seqlens_q[: seqs + 1] = torch.arange(seqs + 1, device=device) * new
    plan.seq_lens.zero_()
    plan.seq_lens[:seqs] = keys
    plan.logits_indices[:seqs] = torch.arange(1, seqs + 1, device=device) * new - 1
    for scalar, value in ((plan.num_tokens, tokens), (plan.num_seqs, seqs)):
        scalar.fill_(value)
    plan.num_samples.fill_(seqs)
    return AttentionMeta(
        block_table=plan.block_table, cu_seqlens_q=plan.cu_seqlens_q, seq_lens=plan.seq_lens,
        num_seqs=plan.num_seqs, num_tokens=plan.num_tokens, page_size=PAGE_SIZE,
        max_num_tokens=max(16, next_power_of_2(tokens)), max_seq_len=next_power_of_2(keys),
    )  # fmt: skip


def median_ms(decoder, plan, meta, attention, repeats: int) -> float:
    def forward() -> None:
        decoder.forward(plan, meta, attention, meta.max_num_tokens)

    return 1e3 * graph_seconds([forward], repeats)


def check(settings: tuple[str, ...]) -> None:
    """Raise AssertionError unless every setting's attention is right, at the model's shape too."""
    shape = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": PAGE_SIZE}
    cases = [*ATTENTION_CASES.values(), shape | {"lens": ((1, 2000), (300, 1500), (1, 513))}]
    for arguments in cases:
        case = attention_case(**arguments, device="cuda", dtype=torch.bfloat16)
        expected = case.run(ReferenceAttention())
        for numerics in settings:
            assert_close(case.run(TritonAttention(numerics=numerics)), expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    check(SETTINGS)
    device = torch.device("cuda")
    decoder = load_model(args.model, torch.bfloat16, device, load="dummy").decoder
    sizes = Sizes(
        num_slots=256, max_num_seqs=256, max_num_batched_tokens=8192,
        max_model_len=max(keys for _, _, keys in CASES), page_size=PAGE_SIZE,
        num_pages=-(-MAX_KEYS // PAGE_SIZE) + 64,
    )  # fmt: skip
    decoder.allocate(sizes.max_num_batched_tokens, sizes.max_num_seqs, PAGE_SIZE, sizes.num_pages)
    for keys, values in decoder.kv_caches:
        keys.normal_()
        values.normal_()
    plan = StepPlan(sizes, device)
    print(f"{args.model}, bfloat16, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'seqs':>5} {'new':>5} {'keys':>6} {'invariant ms':>13} {'fast ms':>9} {'cost':>7}")
    for seqs, new, keys in CASES:
        meta = fill(plan, seqs, new, keys)
        ours, fast = (
            median_ms(decoder, plan, meta, TritonAttention(numerics=numerics), args.repeats)
            for numerics in SETTINGS
        )
        print(f"{seqs:>5} {new:>5} {keys:>6} {ours:>13.3f} {fast:>9.3f} {ours / fast - 1:>+7.1%}")


if __name__ == "__main__":
    main()
