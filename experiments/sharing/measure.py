"""Pages saved by sharing inside a request: parallel sampling and beam search; see README.md.

At every step, over all pages that requests hold: saved = (references - pages) / references, where a
page counts once for each row that holds it as a reference. Printed is the mean by references.
"""

import argparse
import random

import paged  # noqa: F401 - decides where kernels run
from paged.beams import BeamSearchParams
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler

# Means of Kwon et al., SOSP 2023, Fig. 11; lengths are drawn from exponential distributions.
LENGTHS = {"alpaca": (19.31, 58.45), "sharegpt": (161.31, 337.99)}
PAGE_SIZE = 16
STORY = (
    "Once upon a time there was a little dog named Max. Max loved to play in the park. One day he "
    "found a big red ball. He ran home to show it to his friend Lily. Lily was very happy. "
)


def draw_lengths(dataset: str, count: int, seed: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    means = LENGTHS[dataset]
    return [(max(1, round(rng.expovariate(1 / means[0]))),
             max(1, round(rng.expovariate(1 / means[1])))) for _ in range(count)]  # fmt: skip


def measure(mode: str, width: int, lengths: list[tuple[int, int]], longest: int) -> float:
    """Share of the pages saved, over a run in which all requests start together."""
    rows = width * len(lengths)
    llm = LLM(
        max_model_len=longest, num_slots=rows,
        kv=PagedKV(
            page_size=PAGE_SIZE, num_pages=rows * -(-longest // PAGE_SIZE), prefix_caching=False
        ),
        scheduler=RankScheduler(max_num_seqs=rows, max_num_batched_tokens=1024),
    )  # fmt: skip
    words = llm.tokenizer.encode(STORY * 40)
    for number, (prompt_len, output_len) in enumerate(lengths):
        prompt_len = min(prompt_len, longest - 2)
        output_len = min(output_len, longest - prompt_len)
        prompt = words[7 * number :][:prompt_len]
        if mode == "sampling":
            params = SamplingParams(n=width, max_tokens=output_len, ignore_eos=True, seed=number)
            llm.engine.submit(prompt, params)
        else:
            search = BeamSearchParams(width, output_len, ignore_eos=True)
            llm.engine.submit_beams(prompt, search)
    references = pages = 0
    while llm.engine.has_unfinished:
        llm.engine.step()
        counts = llm.engine.pool.ref_count
        references += int(counts.sum())
        pages += int((counts > 0).sum())
    return (references - pages) / references


def computed_sampling(width: int, lengths: list[tuple[int, int]]) -> float:
    """What `measure` finds for samples, from lengths alone: all pages in use, no model run.

    After output token t of t < output_len a row has computed prompt_len + t - 1 tokens; the full
    pages of the prompt but its last token are shared.
    """
    references = saved = 0
    for prompt_len, output_len in lengths:
        for tokens in range(prompt_len, prompt_len + output_len - 1):
            references += width * -(-tokens // PAGE_SIZE)
            saved += (width - 1) * ((prompt_len - 1) // PAGE_SIZE)
    return saved / references


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=LENGTHS, default="alpaca")
    parser.add_argument("--mode", choices=("sampling", "beams"), default="sampling")
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--num-requests", type=int, default=8)
    parser.add_argument("--longest", type=int, default=512, help="tokens; longer ones are cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--computed", action="store_true", help="samples, by lengths alone")
    args = parser.parse_args()
    lengths = draw_lengths(args.dataset, args.num_requests, args.seed)
    mean = [sum(pair[at] for pair in lengths) / len(lengths) for at in (0, 1)]
    print(f"{args.dataset}: {len(lengths)} requests, mean {mean[0]:.1f} in, {mean[1]:.1f} out")
    for width in args.widths:
        if args.computed:
            saved = computed_sampling(width, lengths)
        else:
            saved = measure(args.mode, width, lengths, args.longest)
        print(f"{args.mode} {width}: {saved:.2%} of the pages saved", flush=True)


if __name__ == "__main__":
    main()
