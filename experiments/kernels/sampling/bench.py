"""Times sampling beside torch and the floor, after a check of its draws.

    python experiments/kernels/sampling/bench.py

The floor reads the logits once at the bandwidth measured on an H200. Logits rotate through more
memory than L2 holds; a time is the median of replays of a graph. Two shapes of distribution: that
of a language model (Zipf: probability ~ rank^-1.5) and a flat one (normal logits of deviation 1),
where a filter keeps much of the vocabulary.
"""

import argparse

import torch

from paged.kernels.sampling import greedy_score, gumbel_score, sample
from paged.kernels.sampling_ref import sample_inputs, sample_ref
from paged.tasks.bench.hardware import graph_seconds

BANDWIDTH = 4.55e12  # bytes a second, read, measured on an H200
ROTATE_BYTES = 150e6
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CASES = {
    "greedy": {"temperature": 0.0},
    "greedy rows of the stochastic sampler": {"temperature": 0.0},
    "plain": {},
    "plain, temperature 0.7": {"temperature": 0.7},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "top-p 0.9, flat": {"top_p": 0.9},
    "top-k 5000, flat": {"top_k": 5000},
    "top-k 5000, top-p 0.9, flat": {"top_k": 5000, "top_p": 0.9},
    "mixed": None,  # greedy, plain, top-k, top-p, min-p and all filters, row by row
}


def make_logits(rows: int, vocab_size: int, flat: bool) -> torch.Tensor:
    if flat:
        return torch.randn(rows, vocab_size, device="cuda")
    ranks = torch.rand(rows, vocab_size, device="cuda").argsort(dim=1) + 1
    return -1.5 * ranks.float().log() + 0.1 * torch.randn(rows, vocab_size, device="cuda")


def make_inputs(rows: int, vocab_size: int, case: str) -> dict:
    inputs = sample_inputs("cuda", rows=rows, vocab_size=vocab_size)
    inputs["logits"] = make_logits(rows, vocab_size, case.endswith("flat"))
    if CASES[case] is not None:
        for name, value in (OFF | CASES[case]).items():
            inputs[name].fill_(value)
    return inputs


def check(rows: int, vocab_size: int, case: str) -> None:
    """Every draw is the reference's, or one whose score or floor is equal up to rounding."""
    inputs = make_inputs(rows, vocab_size, case)
    sample(**inputs)
    tokens, logprobs = sample_ref(**inputs)
    same = inputs["out_tokens"] == tokens
    assert same.float().mean() >= 1 - 1 / rows, (case, rows, vocab_size, tokens)
    torch.testing.assert_close(inputs["out_logprobs"][same], logprobs[same], rtol=1e-4, atol=1e-4)


def native(inputs: dict, case: str):
    """The same in torch operations, as vLLM does it without its optional kernels."""
    if case.startswith("greedy"):
        return inputs["logits"].argmax(dim=1)
    logits = inputs["logits"] / 1.0
    setting = OFF | CASES[case]
    if setting["min_p"]:
        probs = logits.softmax(dim=1)
        keep = probs >= setting["min_p"] * probs.amax(dim=1, keepdim=True)
        logits = logits.where(keep, float("-inf"))
    if setting["top_k"] or setting["top_p"] < 1:
        ordered, order = logits.sort(dim=1)
        if setting["top_k"]:
            ordered = ordered.where(ordered >= ordered[:, -setting["top_k"], None], float("-inf"))
        drop = ordered.softmax(dim=1).cumsum(dim=1) <= 1 - setting["top_p"]
        drop[:, -1] = False
        logits = torch.empty_like(logits).scatter_(1, order, ordered.masked_fill(drop, -torch.inf))
    probs = logits.softmax(dim=1)
    return probs.div_(torch.empty_like(probs).exponential_()).argmax(dim=1)


def time_case(rows: int, vocab_size: int, case: str, with_torch: bool) -> tuple[float, float]:
    """Microseconds of ours and of torch."""
    inputs = make_inputs(rows, vocab_size, case)
    copies = max(2, min(100, int(ROTATE_BYTES / inputs["logits"].nbytes) + 1))
    sets = [inputs] + [inputs | {"logits": inputs["logits"].clone()} for _ in range(copies - 1)]
    score = greedy_score if case == "greedy" else gumbel_score
    ours = 1e6 * graph_seconds([lambda one=one: sample(**one | {"score": score}) for one in sets])
    theirs = float("nan")
    if with_torch and CASES[case] is not None:
        theirs = 1e6 * graph_seconds(
            [lambda one=one: native(one, case) for one in sets[:4]], repeats=3
        )
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--vocab", type=int, nargs="+", default=[128256])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--no-torch", action="store_true")
    args = parser.parse_args()
    for vocab_size in args.vocab:
        for case in args.cases:
            check(16, vocab_size, case)
    print("draws equal the reference's")
    print("| rows | vocabulary | filter | floor | ours | torch |\n|---|---|---|---|---|---|")
    for vocab_size in args.vocab:
        for case in args.cases:
            for rows in args.rows:
                ours, theirs = time_case(rows, vocab_size, case, not args.no_torch)
                floor = rows * vocab_size * 4 / BANDWIDTH * 1e6
                print(
                    f"| {rows} | {vocab_size} | {case} | {floor:.1f} | {ours:.1f} | {theirs:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
