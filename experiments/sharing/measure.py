"""Pages saved by sharing inside a request: parallel sampling and beam search; see README.md.

At every step, over all pages that requests hold: saved = (references - pages) / references, where a
page counts once for each row that holds it as a reference. Printed is the mean by references.
"""

import argparse
import json
import random
from pathlib import Path

from replay import replay

import paged  # noqa: F401 - decides where kernels run
from paged.beams import BeamSearchParams
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.config import find_model
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.tokenizer import load_tokenizer

# Means of Kwon et al., SOSP 2023, Fig. 11; lengths are drawn from gamma distributions.
LENGTHS = {"alpaca": (19.31, 58.45), "sharegpt": (161.31, 337.99)}
PAGE_SIZE = 16
STORY = (
    "Once upon a time there was a {kind} {animal} named {name}. {name} loved to play in the "
    "{place}. One day {name} found a {other} {thing}. The {animal} ran home to show it to a "
    "friend. "
)
WORDS = {
    "kind": ("little", "big", "happy", "sad", "brave"),
    "animal": ("dog", "cat", "bird", "bear", "girl", "boy", "rabbit"),
    "name": ("Max", "Lily", "Tom", "Anna", "Ben", "Sam", "Mia"),
    "place": ("park", "garden", "forest", "house", "snow"),
    "other": ("red", "blue", "shiny", "old", "tiny"),
    "thing": ("ball", "box", "key", "stone", "flower", "hat"),
}


def make_text(num_stories: int, seed: int) -> str:
    """What prompts are cut from."""
    rng = random.Random(f"text {seed}")
    words = [{name: rng.choice(some) for name, some in WORDS.items()} for _ in range(num_stories)]
    return "".join(STORY.format(**one) for one in words)


def draw_lengths(
    dataset: str, count: int, seed: int, prompt_cv: float = 1.0
) -> list[tuple[int, int]]:
    """(prompt, output) of each request; `prompt_cv` is the prompts' deviation by their mean, the
    outputs' is 1."""
    rng = random.Random(seed)
    prompt_mean, output_mean = LENGTHS[dataset]
    spread = prompt_cv**2
    return [(max(1, round(rng.gammavariate(1 / spread, prompt_mean * spread))),
             max(1, round(rng.expovariate(1 / output_mean)))) for _ in range(count)]  # fmt: skip


def make_requests(
    model: str, lengths: list[tuple[int, int]], longest: int, seed: int, path: str | None
) -> list[tuple[list[int], int]]:
    """(prompt, output length) of each request, cut to `longest` tokens together. Prompts begin as a
    question of the file does, or anywhere in made-up stories."""
    tokenizer = load_tokenizer(find_model(model, with_weights=False))
    if path is None:
        words = tokenizer.encode(make_text(400, seed))
    else:
        turns = [json.loads(line)["turns"][0] for line in Path(path).read_text().splitlines()]
        questions = [tokenizer.encode(turn) for turn in turns]
    requests = []
    for number, (prompt_len, output_len) in enumerate(lengths):
        prompt_len = min(prompt_len, longest - 2)
        if path is None:
            begin = 97 * number % (len(words) - prompt_len)
            prompt = words[begin : begin + prompt_len]
        else:
            enough = [question for question in questions if len(question) >= prompt_len]
            prompt = enough[number % len(enough)][:prompt_len]
        requests.append((prompt, min(output_len, longest - prompt_len)))
    return requests


def measure(
    model: str, mode: str, width: int, requests: list[tuple[list[int], int]], longest: int
) -> float:
    """Share of the pages saved, over a run in which all requests start together."""
    rows = width * len(requests)
    llm = LLM(
        model, max_model_len=longest, num_slots=rows,
        kv=PagedKV(
            page_size=PAGE_SIZE, num_pages=rows * -(-longest // PAGE_SIZE), prefix_caching=False
        ),
        scheduler=RankScheduler(max_num_seqs=rows, max_num_batched_tokens=max(1024, rows)),
    )  # fmt: skip
    for number, (prompt, output_len) in enumerate(requests):
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


def computed_sampling(width: int, lengths: list[tuple[int, int]]) -> tuple[float, float]:
    """What `measure` finds for samples, from lengths alone: all pages in use, no model run. And the
    published count of them (replay.py says what that is).

    After output token t of t < output_len a row has computed prompt_len + t - 1 tokens; the full
    pages of the prompt but its last token are shared.
    """
    ours, published = [0, 0], [0, 0]  # references, saved
    for prompt_len, output_len in lengths:
        for tokens in range(prompt_len, prompt_len + output_len - 1):
            ours[0] += width * -(-tokens // PAGE_SIZE)
            ours[1] += (width - 1) * ((prompt_len - 1) // PAGE_SIZE)
            published[0] += width * -(-(tokens + 1) // PAGE_SIZE)
            published[1] += (width - 1) * (prompt_len // PAGE_SIZE)
        published[0] += width * -(-prompt_len // PAGE_SIZE)
        published[1] += (width - 1) * -(-prompt_len // PAGE_SIZE)
    return ours[1] / ours[0], published[1] / published[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=LENGTHS, default="alpaca")
    parser.add_argument("--mode", choices=("sampling", "beams"), default="sampling")
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--model", default="stories", help="a folder, a GGUF file, or a hub id")
    parser.add_argument("--prompts", help="a .jsonl of questions as MT-Bench's, for the prompts")
    parser.add_argument("--prompt-cv", type=float, default=1.0, help="deviation / mean of prompts")
    parser.add_argument("--num-requests", type=int, default=8)
    parser.add_argument("--longest", type=int, default=512, help="tokens; longer ones are cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--computed",
        action="store_true",
        help="run no engine: samples by lengths alone, beams by transformers",
    )
    args = parser.parse_args()
    lengths = draw_lengths(args.dataset, args.num_requests, args.seed, args.prompt_cv)
    requests = make_requests(args.model, lengths, args.longest, args.seed, args.prompts)
    mean = [sum(pair[at] for pair in lengths) / len(lengths) for at in (0, 1)]
    print(f"{args.dataset}: {len(lengths)} requests, mean {mean[0]:.1f} in, {mean[1]:.1f} out")
    for width in args.widths:
        published = None
        if args.computed and args.mode == "beams":
            saved, published = replay(args.model, requests, width, PAGE_SIZE)
        elif args.computed:
            saved, published = computed_sampling(width, lengths)
        else:
            saved = measure(args.model, args.mode, width, requests, args.longest)
        other = "" if published is None else f", {published:.2%} by the published count"
        print(f"{args.mode} {width}: {saved:.2%} of the pages saved{other}", flush=True)


if __name__ == "__main__":
    main()
