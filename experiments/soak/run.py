"""Hours in minutes: random submits, aborts and page famine against the engine, everything checked.

    python experiments/soak/run.py --minutes 10
    python experiments/soak/run.py --minutes 10 --model qwen3-0.6b --dummy

The weather changes every thousand steps: a trickle, a flood, long requests that starve each other
of pages, a wave of aborts, a calm in which everything ends. The host sometimes sleeps. Checked:

- after each step: each request that a step touched has one token more, or has ended; none ends
  twice; none is touched after its end;
- every `--check-every` steps: the invariants of the device's state (paged.testing.invariants);
- in each calm: every request has ended, no page is held, no slot is taken, the counts are zero;
- each request that ended by itself has as many tokens as it asked for, as many log-probabilities;
- a sample, aborted ones included: its tokens are those of a reference that runs with plenty of
  pages and without a prefix cache, on a GPU with log-probabilities to the bit.

Prints a line a minute, and PASS or FAIL at the end, which is also the exit status.
"""

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from paged.engine import Engine
from paged.kv.paged import PagedKV
from paged.live_request import LiveRequest
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.testing.invariants import no_leak

# What a reference answers to requests: tokens and log-probabilities of each.
Answers = list[tuple[list[int], list[float]]]
Reference = Callable[[Sequence[LiveRequest]], Answers]


@dataclass(frozen=True)
class Weather:
    """Chances and sizes of what happens in a step."""

    name: str
    submits: float  # requests a step on average
    abort: float = 0.0  # chance that some request is aborted
    longest: float = 0.3  # of the model's length, for prompt and output each
    sleep: float = 0.0  # chance of a pause of the host
    calm: bool = False  # nothing new until everything has ended


CALM = Weather("calm", submits=0.0, calm=True)
WEATHERS = (
    Weather("trickle", submits=0.1, abort=0.02),
    Weather("flood", submits=4.0, abort=0.1, longest=0.2),
    Weather("famine", submits=0.5, abort=0.02, longest=0.49),
    Weather("aborts", submits=1.0, abort=0.9),
    Weather("sleepy", submits=0.3, abort=0.05, sleep=0.02),
)


@dataclass
class Soak:
    """Drives one engine.

    Args:
        reference: answers for a sample of the requests; compared exactly.
        exact_logprobs: compare log-probabilities too.
        check_every: steps between two checks of the device's state.
        sample: share of the requests that the reference answers.
    """

    engine: Engine
    reference: Reference
    vocab_size: int
    exact_logprobs: bool
    seed: int = 0
    check_every: int = 50
    sample: float = 0.05
    max_live: int = 400
    weather_steps: int = 1000
    weathers: tuple[Weather, ...] = WEATHERS
    counts: Counter = field(default_factory=Counter)
    live: dict[int, LiveRequest] = field(default_factory=dict)  # by ticket
    sampled: list[LiveRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        length = self.engine.sizes.max_model_len
        self.stems = [self._tokens(self.rng.randrange(length // 2)) for _ in range(6)]
        self.engine.on_step = self._count
        self.lengths: dict[int, int] = {}  # tokens of each live request, by ticket
        self.aborted: set[int] = set()

    def run(
        self,
        seconds: float,
        max_rounds: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Raises AssertionError at the first thing that does not hold.

        A round is two weathers and a calm; the last one is run to its end.
        """
        began, said, rounds = time.monotonic(), 0, 0
        while time.monotonic() - began < seconds and rounds != max_rounds:
            for weather in (*self.rng.choices(self.weathers, k=2), CALM):
                for _ in range(1_000_000 if weather.calm else self.weather_steps):
                    self.turn(weather)
                    minutes = int((time.monotonic() - began) / 60)
                    if minutes > said:
                        said = minutes
                        say(f"{minutes:3d} min: {self.summary()}")
                    if weather.calm and not self.live:
                        break
                self.counts[weather.name] += 1
            self.check_calm()
            self.compare()
            rounds += 1

    def turn(self, weather: Weather) -> None:
        """One step, and what happens around it."""
        rng = self.rng
        many = int(rng.expovariate(1 / weather.submits)) if weather.submits else 0
        for _ in range(min(many, self.max_live - len(self.live))):
            self.submit(weather)
        if self.live and rng.random() < weather.abort:
            ticket = rng.choice(list(self.live))
            self.abort(self.live[ticket])
        if rng.random() < weather.sleep:
            time.sleep(rng.random() * 0.2)
        if not self.engine.has_unfinished:
            return
        for live in self.engine.step():
            self.touch(live)
        if self.counts["steps"] % self.check_every == 0:
            self.check_device()

    def submit(self, weather: Weather) -> None:
        rng, longest = self.rng, int(self.engine.sizes.max_model_len * weather.longest)
        stem = rng.choice(self.stems)[:longest] if rng.random() < 0.7 else []
        prompt = stem + self._tokens(rng.randrange(1, max(2, longest - len(stem))))
        greedy = rng.random() < 0.7
        params = SamplingParams(
            max_tokens=rng.randrange(1, longest),
            temperature=0.0 if greedy else 0.8,
            top_p=1.0 if greedy else 0.9,
            seed=rng.randrange(2**31),
            ignore_eos=True,
        )
        live = self.engine.submit(prompt, params)
        self.live[live.ticket], self.lengths[live.ticket] = live, 0
        self.counts["submitted"] += 1

    def abort(self, live: LiveRequest) -> None:
        self.engine.abort(live.output.request_id)
        self.aborted.add(live.ticket)
        if live.output.finished:  # it was queued
            self.end(live)

    def touch(self, live: LiveRequest) -> None:
        """A step says it has done something to this request."""
        name = live.output.request_id
        assert live.ticket in self.live, f"request {name} is touched after its end"
        grown = len(live.token_ids) - self.lengths[live.ticket]
        silent_end = live.output.outputs[0].finish_reason in ("abort", "error")
        assert grown == (0 if silent_end else 1), f"request {name} got {grown} tokens in a step"
        self.lengths[live.ticket] += grown
        self.counts["tokens"] += grown
        if live.output.finished:
            self.end(live)

    def end(self, live: LiveRequest) -> None:
        name, completion = live.output.request_id, live.output.outputs[0]
        wanted = live.params.max_tokens
        assert wanted is not None
        del self.live[live.ticket], self.lengths[live.ticket]
        reason, drawn = completion.finish_reason, len(completion.token_ids)
        assert len(completion.logprobs) == drawn == live.output.metrics.num_output_tokens
        if reason == "abort":
            assert live.ticket in self.aborted, f"request {name} was aborted by nobody"
            assert drawn <= wanted, f"request {name} got {drawn} tokens of {wanted}"
        else:
            assert (reason, drawn) == ("length", wanted), (
                f"request {name} ended by {reason} with {drawn} tokens of {wanted}"
            )
        self.aborted.discard(live.ticket)
        self.counts[reason] += 1
        if drawn and self.rng.random() < self.sample:
            self.sampled.append(live)

    def check_device(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()  # steps in flight change what the check reads
        self.engine.kv.check(self.engine.requests)
        self.counts["checks"] += 1

    def check_calm(self) -> None:
        """Everything has ended: nothing may be left anywhere."""
        assert not self.live, f"{len(self.live)} requests did not end"
        assert not self.engine.has_unfinished
        assert self.engine.step() == [], "a request is touched after all have ended"
        self.check_device()
        no_leak(self.engine.requests, self.engine.pool)
        self.engine.ledger.check_empty()

    def compare(self) -> None:
        """The sampled requests against the reference."""
        for live, (tokens, logprobs) in zip(self.sampled, self.reference(self.sampled)):
            name, completion = live.output.request_id, live.output.outputs[0]
            drawn = len(completion.token_ids)
            assert completion.token_ids == tokens[:drawn], f"request {name} has other tokens"
            if self.exact_logprobs:
                assert completion.logprobs == logprobs[:drawn], f"request {name}: other log-probs"
            self.counts["compared"] += 1
        self.sampled.clear()

    def summary(self) -> str:
        shown = (
            "steps", "submitted", "length", "abort", "tokens", "preempted", "cached_tokens",
            "checks", "compared",
        )  # fmt: skip
        counts = ", ".join(f"{self.counts[name]} {name}" for name in shown)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return f"{counts}; {memory} MiB of host memory"

    def _count(self, stats) -> None:
        self.counts["steps"] += 1
        self.counts["preempted"] += stats.num_preempted
        self.counts["cached_tokens"] += stats.cached_tokens

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(self.vocab_size) for _ in range(count)]


def llm_reference(llm: LLM) -> Reference:
    """Another engine, with plenty of pages."""

    def answer(requests: Sequence[LiveRequest]) -> Answers:
        prompts = [live.output.prompt_token_ids for live in requests]
        outputs = llm.generate(prompts, [live.params for live in requests]) if requests else []
        return [(one.outputs[0].token_ids, one.outputs[0].logprobs) for one in outputs]

    return answer


def make_llm(args: argparse.Namespace, num_pages: int, prefix_caching: bool) -> LLM:
    return LLM(
        args.model,
        load="dummy" if args.dummy else "auto",
        kv=PagedKV(num_pages=num_pages, prefix_caching=prefix_caching),
        scheduler=RankScheduler(max_num_seqs=64, max_num_batched_tokens=512, watermark=0.0),
        max_model_len=args.max_model_len,
        num_slots=128,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="stories")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--num-pages", type=int, default=160, help="of 16 tokens")
    parser.add_argument("--check-every", type=int, default=50, help="steps")
    parser.add_argument("--weather-steps", type=int, default=1000)
    parser.add_argument("--sample", type=float, default=0.05, help="share that is compared")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    llm = make_llm(args, args.num_pages, prefix_caching=True)
    soak = Soak(
        llm.engine,
        llm_reference(make_llm(args, 64 * (args.max_model_len // 16 + 1), prefix_caching=False)),
        vocab_size=llm.spec.vocab_size,
        exact_logprobs=llm.device.type == "cuda",
        seed=args.seed,
        check_every=args.check_every,
        sample=args.sample,
        weather_steps=args.weather_steps,
    )
    try:
        soak.run(60 * args.minutes)
    except (AssertionError, RuntimeError) as error:
        print(f"FAIL: {error}\n  after {soak.summary()}")
        return 1
    print(f"PASS: {soak.summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
