"""What compression costs in quality: perplexity and needles at 50% and 25% of the pages.

    python experiments/compression/measure.py --model HuggingFaceTB/SmolLM2-135M-Instruct

Perplexity: windows of a text; the prompt is computed as a whole, then pages are dropped down to the
ratio, and the text goes on, forced token by token, with the ratio kept. Needle: a number is hidden
in the text at several depths and asked for at the end; found is what a greedy answer begins with.
Prints a Markdown table; `pages` is the share that requests held while they drew, measured.
"""

import argparse
import gc
import math
import random

import torch

import paged  # noqa: F401 - decides where kernels run
from paged.interfaces import Compression
from paged.kv.compression import h2o, keydiff, knorm, paged_eviction, snapkv, tova
from paged.kv.compression.base import ScoreCompression
from paged.kv.compression.streaming_llm import StreamingLLM
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.state import RUNNING
from paged.workloads.trace import find_file

POLICIES = {
    "streaming_llm": StreamingLLM,
    "knorm": lambda **knobs: ScoreCompression(knorm.score, **knobs),
    "keydiff": lambda **knobs: ScoreCompression(keydiff.score, with_mean_key=True, **knobs),
    "paged_eviction": lambda **knobs: ScoreCompression(paged_eviction.score, **knobs),
    "tova": lambda **knobs: ScoreCompression(tova.score, with_attention=True, window=1, **knobs),
    "h2o": lambda **knobs: ScoreCompression(h2o.score, with_attention=True, **knobs),
    "snapkv": lambda **knobs: ScoreCompression(
        snapkv.score, with_attention=True, window=32, prompt_only=True, **knobs
    ),
}
CITIES = ("Oakville", "Riverton", "Springdale", "Lakewood", "Fairview")
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def build(args: argparse.Namespace, compression: Compression | None) -> LLM:
    length = args.prompt + max(args.output, 64)
    pages = args.batch * -(-length // args.page_size)
    return LLM(
        args.model,
        dtype=args.dtype,
        max_model_len=length,
        kv=PagedKV(page_size=args.page_size, num_pages=pages, compression=compression),
        scheduler=RankScheduler(max_num_seqs=args.batch, max_num_batched_tokens=2048),
    )


def windows(llm: LLM, text: str, args: argparse.Namespace) -> list[list[int]]:
    """Stretches of the text, [prompt + output] tokens each, evenly spread over it."""
    length = args.prompt + args.output
    tokens = llm.tokenizer.encode(text[: 40 * length * args.windows])
    step = (len(tokens) - length) // args.windows
    if step < 1:
        raise ValueError(f"--text has {len(tokens)} tokens, too few for {args.windows} windows")
    return [tokens[at * step :][:length] for at in range(args.windows)]


def perplexity(llm: LLM, texts: list[list[int]], prompt_len: int) -> float:
    """exp of the mean negative log-probability of what follows the prompts."""
    params = [
        SamplingParams(
            max_tokens=len(text) - prompt_len, forced_token_ids=text[prompt_len:], ignore_eos=True
        )
        for text in texts
    ]
    outputs = llm.generate([text[:prompt_len] for text in texts], params)
    logprobs = [logprob for output in outputs for logprob in output.outputs[0].logprobs]
    return math.exp(-sum(logprobs) / len(logprobs))


def needles(llm: LLM, texts: list[list[int]], prompt_len: int, seed: int) -> float:
    """Share of the numbers that are found."""
    rng = random.Random(seed)
    prompts, numbers = [], []
    for text in texts:
        for depth in DEPTHS:
            city, number = rng.choice(CITIES), str(rng.randrange(1000, 10000))
            needle = llm.tokenizer.encode(f"\nThe secret number of {city} is {number}.\n")
            question = llm.tokenizer.encode(
                f"\nQuestion: What is the secret number of {city}?\n"
                f"Answer: The secret number of {city} is"
            )
            filler = text[: prompt_len - len(needle) - len(question)]
            at = round(depth * len(filler))
            prompts.append(filler[:at] + needle + filler[at:] + question)
            numbers.append(number)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    answers = [output.outputs[0].text for output in llm.generate(prompts, params)]
    return sum(answer.strip().startswith(number) for answer, number in zip(answers, numbers)) / len(
        numbers
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--text", help="a text file; default texts/tinyshakespeare.txt of the data")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--output", type=int, default=256, help="tokens, for perplexity")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--recent", type=int, default=64, help="tokens that are protected")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32, help="sequences at once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    usual, origin = "texts/tinyshakespeare.txt", "github.com/karpathy/char-rnn"
    text = find_file(args.text, usual, origin).read_text("utf-8")

    print("| compression | ratio | pages | perplexity | needles found |\n|---|---|---|---|---|")
    cases = [(name, ratio) for name in args.policies for ratio in args.ratios]
    for name, ratio in [("none", 1.0), *cases]:
        compression = None
        if name != "none":
            compression = POLICIES[name](ratio=ratio, recent=args.recent)
        llm = build(args, compression)
        held, needed = [0], [0]

        def count(stats, llm=llm, held=held, needed=needed) -> None:
            rows = llm.engine.requests
            draws = (rows.status == RUNNING) & (rows.num_computed_tokens > rows.prompt_len)
            held[0] += int(rows.num_pages[draws].sum())
            needed[0] += int((rows.num_pages + rows.num_dropped)[draws].sum())

        llm.engine.on_step = count
        texts = windows(llm, text, args)
        measured = perplexity(llm, texts, args.prompt)
        found = needles(llm, texts, args.prompt, args.seed)
        share = held[0] / needed[0]
        print(f"| {name} | {ratio} | {share:.1%} | {measured:.2f} | {found:.1%} |", flush=True)
        del llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
