"""Prometheus metrics, by the names vLLM's dashboards use.

Counts are plain numbers, written by the thread that receives from the engine; the exposition is
made from them when /metrics is read. A token costs one bisection.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from paged.server.generation import Sample
from paged.server.wire import Progress, Steps
from paged.state import Sizes

# Buckets are vLLM's, so that a dashboard's quantiles mean the same.
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
NEXT_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
FINE_NEXT_TOKEN = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, *NEXT_TOKEN)
REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISH_REASONS = ("stop", "length", "abort", "error")
FIRST_GUESS = 1  # seconds to wait, where nothing is known yet


class Histogram:
    """Counts by bucket; `bounds` ascend, values beyond the last count as well."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, int]]:
        """(upper bound, values up to it), the last for all."""
        total, found = 0, []
        for bound, counted in zip((*self.bounds, float("inf")), self.counts):
            total += counted
            found.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
        return found


def lengths(longest: int) -> list[float]:
    """1, 2, 5, 10, 20, 50, ... up to `longest`."""
    return [m * 10**e for e in range(9) for m in (1, 2, 5) if m * 10**e <= longest] or [1]


class Metrics(Collector):
    """What the server counts.

    Args:
        model_name: value of the label.
        alias: a second prefix under which everything appears too, e.g. `vllm`.
    """

    def __init__(self, model_name: str, alias: str | None = None) -> None:
        self.model_name = model_name
        self.prefixes = ("paged", alias) if alias else ("paged",)
        self.sizes: Sizes | None = None
        self.num_running = self.num_waiting = 0
        self.free_pages = self.cached_pages = 0
        self.num_aborted = 0
        self.counters: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.histograms: dict[str, tuple[str, Histogram]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def configure(self, sizes: Sizes) -> None:
        """The engine's sizes are known: bounds of the histograms of lengths depend on them."""
        self.sizes, self.free_pages = sizes, sizes.num_pages
        long = lengths(sizes.max_model_len)
        for name, text, bounds in (
            ("time_to_first_token_seconds", "Time to first token.", FIRST_TOKEN),
            ("inter_token_latency_seconds", "Time between tokens.", FINE_NEXT_TOKEN),
            ("time_per_output_token_seconds", "Time between tokens (old name).", NEXT_TOKEN),
            ("request_time_per_output_token_seconds", "Mean of a request.", FINE_NEXT_TOKEN),
            ("e2e_request_latency_seconds", "Arrival to end.", REQUEST),
            ("request_queue_time_seconds", "Arrival to admission.", REQUEST),
            ("request_prefill_time_seconds", "Admission to first token.", REQUEST),
            ("request_decode_time_seconds", "First token to end.", REQUEST),
            ("request_inference_time_seconds", "Admission to end.", REQUEST),
            ("request_prompt_tokens", "Prompt tokens of a request.", long),
            ("request_generation_tokens", "Output tokens of a request.", long),
            ("request_max_num_generation_tokens", "Most output tokens it may have.", long),
            ("request_params_max_tokens", "max_tokens as asked for.", long),
            ("request_params_n", "n as asked for.", (1, 2, 5, 10, 20)),
            ("iteration_tokens_total", "Tokens of a step.", STEP_TOKENS),
        ):
            self.histograms[name] = (text, Histogram(bounds))

    def observe(self, name: str, value: float, times: int = 1) -> None:
        self.histograms[name][1].observe(value, times)

    def steps(self, steps: Steps) -> None:
        """The engine's report of its last steps."""
        self.num_running, self.num_waiting = steps.num_running, steps.num_waiting
        self.free_pages, self.cached_pages = steps.free_pages, steps.cached_pages
        self.counters["num_preemptions"] += steps.num_preempted
        self.counters["prefix_cache_hits"] += steps.cached_tokens
        self.counters["spec_decode_num_draft_tokens"] += steps.num_draft_tokens
        self.counters["spec_decode_num_accepted_tokens"] += steps.num_accepted_tokens
        for num_tokens in steps.num_tokens:
            self.observe("iteration_tokens_total", num_tokens)

    def requested(self, n: int, max_tokens: int | None) -> None:
        """A request was accepted."""
        self.observe("request_params_n", n)
        if max_tokens is not None:
            self.observe("request_params_max_tokens", max_tokens)

    def tokens(self, number: int, seconds: float, *, first: bool) -> None:
        """Tokens of one sample came, `seconds` after the ones before (or its arrival)."""
        self.counters["generation_tokens"] += number
        if first:
            self.observe("time_to_first_token_seconds", seconds)
            return
        self.observe("inter_token_latency_seconds", seconds / number, number)
        self.observe("time_per_output_token_seconds", seconds / number, number)

    def finished(self, sample: Sample, reason: str, e2e: float, progress: Progress) -> None:
        """A sample has ended by itself."""
        self.reasons[reason] += 1
        num_prompt, num_output = len(sample.token_ids), sample.num_tokens
        self.counters["prompt_tokens"] += num_prompt
        self.counters["prefix_cache_queries"] += num_prompt
        self.observe("request_prompt_tokens", num_prompt)
        self.observe("request_generation_tokens", num_output)
        self.observe("request_max_num_generation_tokens", sample.params.max_tokens or 0)
        self.observe("e2e_request_latency_seconds", e2e)
        if progress.times is None:
            return
        queued, prefill, decode = progress.times
        self.observe("request_queue_time_seconds", queued)
        self.observe("request_prefill_time_seconds", prefill)
        self.observe("request_decode_time_seconds", decode)
        self.observe("request_inference_time_seconds", prefill + decode)
        if num_output > 1:
            self.observe("request_time_per_output_token_seconds", decode / (num_output - 1))

    def aborted(self, number: int) -> None:
        """Samples were given up because their client has gone."""
        self.num_aborted += number  # in the event loop, so not one of the receiver's counts

    def retry_after(self) -> int:
        """Whole seconds after which a place is likely: the mean time a request has taken."""
        latency = self.histograms["e2e_request_latency_seconds"][1]
        ended = sum(latency.counts)
        return max(FIRST_GUESS, min(60, round(latency.sum / ended))) if ended else FIRST_GUESS

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        for prefix in self.prefixes:
            yield from self._families(f"{prefix}:")

    def describe(self) -> Iterable[Metric]:
        return []  # names are known once the engine runs

    def _families(self, prefix: str) -> Iterator[Metric]:
        labels, values = ["model_name", "engine"], [self.model_name, "0"]
        total = self.sizes.num_pages if self.sizes else 1
        usage = 1 - (self.free_pages + self.cached_pages) / total
        drafted = self.counters["spec_decode_num_draft_tokens"]
        accepted = self.counters["spec_decode_num_accepted_tokens"] / max(1, drafted)
        for name, text, value in (
            ("num_requests_running", "Requests that run.", self.num_running),
            ("num_requests_waiting", "Requests that wait.", self.num_waiting),
            ("kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", usage),
            ("gpu_cache_usage_perc", "Share of the KV pages in use (old name).", usage),
            (
                "spec_decode_draft_acceptance_rate",
                "Share of draft tokens that were right.",
                accepted,
            ),
        ):
            gauge = GaugeMetricFamily(prefix + name, text, labels=labels)
            gauge.add_metric(values, value)
            yield gauge
        for name, text in (
            ("prompt_tokens", "Prompt tokens of requests that ended."),
            ("generation_tokens", "Tokens generated."),
            ("num_preemptions", "Preemptions."),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
            ("prefix_cache_hits", "Prompt tokens found there."),
            ("spec_decode_num_draft_tokens", "Draft tokens that were verified."),
            ("spec_decode_num_accepted_tokens", "Draft tokens that were right."),
        ):
            counter = CounterMetricFamily(prefix + name, text, labels=labels)
            counter.add_metric(values, self.counters[name])
            yield counter
        success = CounterMetricFamily(
            prefix + "request_success", "Requests that ended.", labels=[*labels, "finished_reason"]
        )
        for reason in FINISH_REASONS:
            given_up = self.num_aborted if reason == "abort" else 0
            success.add_metric([*values, reason], self.reasons[reason] + given_up)
        yield success
        for name, (text, histogram) in self.histograms.items():
            family = HistogramMetricFamily(prefix + name, text, labels=labels)
            family.add_metric(values, histogram.buckets(), histogram.sum)
            yield family
        if self.sizes is not None:
            info = {name: str(value) for name, value in vars(self.sizes).items()}
            info |= {"block_size": info["page_size"], "num_gpu_blocks": info["num_pages"]}
            sizes = GaugeMetricFamily(
                prefix + "cache_config_info", "Sizes of the engine.", labels=["engine", *info]
            )
            sizes.add_metric(["0", *info.values()], 1)
            yield sizes
