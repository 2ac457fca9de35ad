"""Several streams over one engine: whoever reads runs the steps of all."""

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
MINE, OTHERS = [[1, 2, 3]], [[4, 5, 6], [7]]


def make_llm() -> LLM:
    return LLM(
        dtype="float32",
        kv=PagedKV(num_pages=8),
        scheduler=RankScheduler(max_num_seqs=4, max_num_batched_tokens=16),
        max_model_len=48,
        num_slots=4,
    )


def test_a_stream_that_nobody_reads_costs_the_others_nothing(device):
    llm = make_llm()
    unread = llm.stream(MINE, GREEDY)
    seen = {}
    for output in llm.stream(OTHERS, GREEDY):
        assert output.prompt_token_ids in OTHERS, "a stream yields its own requests"
        seen.setdefault(output.request_id, []).append(len(output.outputs[0].token_ids))
    assert list(seen.values()) == [[1, 2, 3]] * 2, "each token is shown when it comes"
    steps = llm.engine.num_steps

    late = list(unread)  # its requests have long ended; nothing is lost, and no step is run
    assert all(output.finished for output in late)
    assert llm.engine.num_steps == steps
    again = llm.generate(MINE + OTHERS, GREEDY)
    ahead = llm.engine.in_flight  # as many may have been launched before the host knew of the end
    assert abs(llm.engine.num_steps - 2 * steps) <= ahead, "both runs took as many steps"
    assert [output.outputs[0].token_ids for output in late] == [
        output.outputs[0].token_ids for output in again[:1]
    ]


def test_streams_read_in_turns(device):
    llm = make_llm()
    first, second = llm.stream(MINE[0], GREEDY), llm.stream(OTHERS[0], GREEDY)
    own = llm.submit([8, 8], GREEDY)  # of no stream: whoever runs a step is shown it
    shown = [next(first).request_id, next(second).request_id, *(o.request_id for o in first)]
    assert {"0", "1"} <= set(shown)
    assert "1" not in (one for one in shown[:1] + shown[2:])
    rest = [output.request_id for output in second]
    assert set(rest) <= {"1", own.output.request_id}
    assert list(first) == list(second) == []
    everything = list(llm.stream([]))
    assert not llm.engine.has_unfinished
    assert len(own.token_ids) == 3
    assert all(output.request_id == own.output.request_id for output in everything)


def test_a_stream_ends_when_its_request_is_aborted(device):
    llm = make_llm()
    stream = llm.stream([[1, 2], [3, 4]], SamplingParams(max_tokens=40, ignore_eos=True))
    ids = {next(stream).request_id, next(stream).request_id}
    for request_id in ids:
        llm.abort(request_id)
    last = {output.request_id: output.outputs[0].finish_reason for output in stream}
    assert last == dict.fromkeys(ids, "abort")
    queued = llm.stream([5, 6], GREEDY)
    llm.abort("2")  # before any step: it ends at once, and there is nothing to show
    assert list(queued) == []


def test_generate_looks_at_an_output_when_it_has_ended(device):
    """Unless it may meet a stop string; and what streams and others want to see, they see."""
    llm = make_llm()
    looks: dict[str, int] = {}
    update = llm._texts.update

    def look(live):
        looks[live.request_id] = looks.get(live.request_id, 0) + 1
        update(live)

    llm._texts.update = look
    first = llm.generate(MINE + OTHERS, GREEDY)
    assert looks == {"0": 1, "1": 1, "2": 1}
    stream = llm.stream(MINE[0], GREEDY)
    text = first[0].outputs[0].text
    stops = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, stop=text[:1])
    again = llm.generate(MINE + OTHERS, [stops, GREEDY, GREEDY])
    assert looks["3"] == 3, "a stream's is followed, whoever runs the steps"
    assert looks["5"] == looks["6"] == 1
    assert again[0].outputs[0].text == ""
    assert again[0].outputs[0].stop_reason == text[:1]
    assert [one.outputs[0].text for one in again[1:]] == [one.outputs[0].text for one in first[1:]]
    assert next(stream).outputs[0].text == text
    assert not llm._watched
    assert not llm._grown
    assert len(llm._texts) == 0
