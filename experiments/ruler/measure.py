"""RULER's niah_single_1: one number hidden in noise, to be found again; see README.md.

The task is that of Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language
Models?" (COLM 2024), with the prompts of lm-evaluation-harness: the noise is one line repeated
until the prompt and 128 tokens of answer fill the context, the key is an adjective and a noun, the
value has seven digits, and an answer is right if it holds the value. The words are our own, so
single samples differ from the harness's.
"""

import argparse
import json
import os
import random
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import paged  # noqa: F401 - decides where kernels run
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.config import find_model
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.tokenizer import load_tokenizer

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic numbers for {key} is: {value}."
PROMPT = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the number afterwards.\n{context}\nWhat is the special magic number for {key} "
    "mentioned in the provided text? The special magic number for {key} mentioned in the provided "
    "text is"
)
ADJECTIVES = ("brave", "calm", "dusty", "early", "fancy", "giant", "happy", "icy", "jolly", "kind")
NOUNS = ("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island")
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Sample:
    """`depth` is the share of the noise in front of the needle."""

    prompt: str
    value: str
    depth: float


def make_sample(num_lines: int, rng: random.Random) -> Sample:
    key = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    value = str(rng.randint(10**6, 10**7 - 1))
    place = rng.randrange(num_lines)
    lines = [NOISE] * num_lines
    lines.insert(place, NEEDLE.format(key=key, value=value))
    prompt = PROMPT.format(context="\n".join(lines), key=key)
    return Sample(prompt, value, place / num_lines)


def make_samples(
    count: int, num_tokens: int, length: Callable[[str], int], seed: int
) -> list[Sample]:
    """Samples as long as `num_tokens` tokens allow, answer included."""
    samples = []
    for number in range(count):
        num_lines = 1
        while True:  # the same draws with one line more, until it does not fit
            longer = make_sample(num_lines + 1, random.Random(f"{seed} {number}"))
            if length(longer.prompt) + ANSWER_TOKENS > num_tokens:
                break
            num_lines += 1
        samples.append(make_sample(num_lines, random.Random(f"{seed} {number}")))
    return samples


def answers_of_server(url: str, prompts: list[str], max_tokens: int) -> list[str]:
    """Greedy answers of an OpenAI-compatible server, all prompts in one request."""
    body = {"prompt": prompts, "max_tokens": max_tokens, "temperature": 0.0}
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=3600) as response:
        choices = json.load(response)["choices"]
    return [choice["text"] for choice in sorted(choices, key=lambda one: one["index"])]


def answers_of_engine(args: argparse.Namespace, prompts: list[str]) -> list[str]:
    """Greedy answers of an engine in this process, with as many pages as all its rows can fill."""
    pages = args.max_num_seqs * -(-args.tokens // args.page_size)
    llm = LLM(
        args.model,
        max_model_len=args.tokens,
        kv=PagedKV(page_size=args.page_size, num_pages=pages),
        scheduler=RankScheduler(max_num_seqs=args.max_num_seqs, max_num_batched_tokens=2048),
    )
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    return [output.outputs[0].text for output in llm.generate(prompts, params)]


def answers_of_transformers(args: argparse.Namespace, prompts: list[str]) -> list[str]:
    """Greedy answers of transformers on the CPU in float32; a GGUF file needs accelerate."""
    import torch
    from transformers import AutoModelForCausalLM

    path = find_model(args.model)
    given = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).eval()
    tokenizer, answers = load_tokenizer(path), []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=args.max_tokens, do_sample=False)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :].tolist()))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default=os.environ.get("PAGED_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        help="a GGUF file, a folder, or a hub id; by default what $PAGED_SMOLLM2 names",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024, help="of prompt and answer")
    parser.add_argument("--max-tokens", type=int, default=ANSWER_TOKENS, help="of the answer")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--url", help="ask this server, which serves the same model")
    parser.add_argument("--transformers", action="store_true", help="ask transformers instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = load_tokenizer(find_model(args.model, with_weights=False))
    if tokenizer is None:
        raise SystemExit(f"{args.model} has no tokenizer")
    encode = tokenizer.encode
    samples = make_samples(args.samples, args.tokens, lambda text: len(encode(text)), args.seed)
    prompts = [sample.prompt for sample in samples]
    if args.url:
        answers = answers_of_server(args.url, prompts, args.max_tokens)
    elif args.transformers:
        answers = answers_of_transformers(args, prompts)
    else:
        answers = answers_of_engine(args, prompts)
    print("| sample | prompt tokens | depth | number | found | answer |\n|---|---|---|---|---|---|")
    found = 0
    for number, (sample, answer) in enumerate(zip(samples, answers)):
        right = sample.value in answer
        found += right
        shown = " ".join(answer.split())[:40]
        print(
            f"| {number} | {len(encode(sample.prompt))} | {sample.depth:.0%} | {sample.value} | "
            f"{'yes' if right else 'no'} | {shown} |"
        )
    print(f"\n{found} of {len(samples)}")


if __name__ == "__main__":
    main()
