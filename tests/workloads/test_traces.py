"""Traces: their formats, what is shared by all of them, and what is said of wrong files."""

from pathlib import Path

import numpy as np
import pytest

from paged.request import SamplingParams
from paged.workloads.azure import Azure
from paged.workloads.burstgpt import BurstGPT
from paged.workloads.mooncake import Mooncake
from paged.workloads.request import Request
from paged.workloads.sharegpt import ShareGPT
from paged.workloads.trace import Trace
from paged.workloads.vidur import Vidur

DATA = Path(__file__).parents[3] / "shared" / "data"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:48.6805900,396,109
2023-11-16 18:15:50.1805900,5,0
"""
MOONCAKE = """{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 500, "input_length": 1100, "output_length": 4, "hash_ids": [0, 7, 9]}
{"timestamp": 900, "input_length": 1024, "output_length": 4, "hash_ids": [3, 9]}
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
VIDUR = "num_prefill_tokens,num_decode_tokens\n3772,54\n2015,156\n10,1\n"
CHATS = "conv,turn,role,tokens\na,0,h,30\na,1,g,40\na,2,h,5\na,3,g,6\nb,0,h,7\nb,1,g,8\n"


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "trace.csv") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def lengths(trace) -> list[tuple[int, int]]:
    return [(request.prompt_len, request.output_len) for request in trace]


def test_azure(file):
    trace = Azure(path=file(AZURE))
    assert lengths(trace) == [(374, 44), (396, 109), (5, 1)]
    assert [request.arrival for request in trace] == [0, 2, 3.5]
    first, second = (request.prompt_token_ids() for request in trace.requests[:2])
    assert (first != second[:374]).mean() > 0.9


def test_mooncake_prompts_are_equal_where_their_hashes_are(file):
    one, two, three = Mooncake(path=file(MOONCAKE)).requests
    assert [request.arrival for request in (one, two, three)] == [0, 0.5, 0.9]
    tokens = [request.prompt_token_ids() for request in (one, two, three)]
    assert [len(prompt) for prompt in tokens] == [600, 1100, 1024]
    assert (tokens[0] == tokens[1][:600]).all()
    assert (tokens[1][1024:] == tokens[2][512:588]).all()  # the same block behind another
    assert (tokens[0][:512] != tokens[2][:512]).mean() > 0.9


def test_burstgpt_leaves_out_failures_and_other_models(file):
    path = file(BURST)
    assert lengths(BurstGPT(path=path)) == [(472, 18), (417, 276)]
    assert lengths(BurstGPT(path=path, model="GPT-4")) == [(417, 276)]
    assert lengths(BurstGPT(path=path, log_type="Conversation log")) == [(472, 18)]


def test_vidur_with_and_without_times(file):
    assert lengths(Vidur(path=file(VIDUR))) == [(3772, 54), (2015, 156), (10, 1)]
    poisson = Vidur(path=file(VIDUR), rate=5.0)
    gaps = np.diff([request.arrival for request in poisson])
    assert (gaps > 0).all()
    timed = "num_prefill_tokens,num_decode_tokens,arrived_at\n8,2,10.0\n9,2,14.0\n"
    assert [r.arrival for r in Vidur(path=file(timed))] == [0, 4]
    assert [r.arrival for r in Vidur(path=file(timed), rate=2.0)] == [0, 0.5]


def test_sharegpt_turns_repeat_what_was_said(file):
    path = file(CHATS)
    assert lengths(ShareGPT(path=path)) == [(30, 40), (7, 8)]
    trace = sorted(ShareGPT(path=path, turns=2), key=lambda request: request.prompt_len)
    assert lengths(trace) == [(7, 8), (30, 40), (75, 6)]
    first, second = trace[1], trace[2]
    said = np.concatenate([first.prompt_token_ids(), first.output_token_ids()])
    assert (second.prompt_token_ids()[:70] == said).all()
    assert second.arrival >= first.arrival + 40 * 0.02


def test_sharegpt_texts_are_counted_with_the_tokenizer(file):
    text = '[{"conversations": [{"from": "human", "value": "Once upon a time"}, \
             {"from": "gpt", "value": "there was a cat."}]}, {"conversations": []}]'
    path = file(text, "chats.json")
    with pytest.raises(ValueError, match=r"workload\.tokenizer"):
        ShareGPT(path=path)
    stories = str(Path(__file__).parents[2] / "paged" / "models" / "stories")
    (request,) = ShareGPT(path=path, tokenizer=stories).requests
    assert request.prompt == "Once upon a time"
    assert 1 < request.prompt_len < 16


@pytest.mark.parametrize("kind", [Azure, Mooncake, BurstGPT, Vidur, ShareGPT])
def test_a_missing_file_says_where_to_get_it(kind, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere; get it from https://"):
        kind(path=str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAGED_DATA", str(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"no file .*mine/.*, data/.*; get it from https://"):
        kind()


def test_the_data_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "azure").mkdir()
    (tmp_path / "azure" / "AzureLLMInferenceTrace_conv.csv").write_text(AZURE)
    monkeypatch.setenv("PAGED_DATA", str(tmp_path))
    assert len(Azure()) == 3


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Azure, "A,B\n1,2\n", "has no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        (Azure, AZURE + "yesterday,3,4\n", "line 5: TIMESTAMP"),
        (Azure, AZURE + "2023-11-16 18:15:50,many,4\n", "line 5: ContextTokens must be a number"),
        (Mooncake, MOONCAKE + "[]\n", "line 4 must be an object"),
        (Mooncake, MOONCAKE + "{\n", "line 4 is not JSON"),
        (Mooncake, '{"timestamp": 0, "input_length": 513, "output_length": 5, "hash_ids": [1]}',
         r"line 1: hash_ids must name 2 blocks of 512 tokens, got \[1\]"),
        (Vidur, VIDUR + "0,3\n", "line 5: num_prefill_tokens must be at least 1, got 0"),
        (Vidur, "num_prefill_tokens,num_decode_tokens\n", "no request is left"),
    ],
)  # fmt: skip
def test_wrong_files_are_named_by_line(file, kind, text, message):
    with pytest.raises(ValueError, match=message):
        kind(path=file(text))


def plain(count: int = 200) -> list[Request]:
    return [Request(0.5 * i, ((i, 10 + i % 7),), 5 + i % 3, output=1000 + i) for i in range(count)]


def test_rates_stretch_the_arrivals():
    base = [request.arrival for request in Trace(plain())]
    assert base[-1] == 99.5
    fast = [request.arrival for request in Trace(plain(), rate_scale=4.0)]
    assert fast == [arrival / 4 for arrival in base]
    assert Trace(plain(), rate=10.0).requests[-1].arrival == pytest.approx(19.9)
    with pytest.raises(ValueError, match=r"workload\.rate needs arrival times"):
        Trace([Request(0.0, ((1, 1),), 1, output=2)] * 2, rate=1.0)


def test_samples_are_fixed_by_the_seed_and_by_nothing_else():
    part = Trace(plain(), fraction=0.3, seed=1)
    assert 30 < len(part) < 90
    assert part.requests == Trace(plain(), fraction=0.3, seed=1).requests
    assert part.requests != Trace(plain(), fraction=0.3, seed=2).requests
    more = Trace(plain(), fraction=0.3, seed=1, num_clients=4, prediction_error=0.5, deadline=3.0)
    assert lengths(part) == lengths(more)
    assert len(Trace(plain(), limit=7)) == 7
    assert max(p + o for p, o in lengths(Trace(plain(), max_len=18))) == 18
    with pytest.raises(ValueError, match="no request is left"):
        Trace(plain(), max_len=3)


def test_parts_are_the_trace_cut_into_pieces():
    whole = Trace(plain(20))
    pieces = [Trace(plain(20), limit=8, part=part) for part in range(3)]
    assert [size for piece in pieces for size in lengths(piece)] == lengths(whole)
    assert [len(piece) for piece in pieces] == [8, 8, 4]
    assert pieces[1].requests[0].arrival == 0
    assert pieces[1].requests[2].arrival == 1.0
    with pytest.raises(ValueError, match="no request is left"):
        Trace(plain(20), limit=8, part=3)
    for wrong in ({"part": 1}, {"part": -1, "limit": 8}):
        with pytest.raises(ValueError, match=r"workload\.part counts stretches of workload\.limit"):
            Trace(plain(20), **wrong)


def test_answers_are_cut():
    cut = Trace(plain(), max_output_len=6, prediction_error=0.0)
    assert lengths(cut) == [(prompt, min(6, output)) for prompt, output in lengths(Trace(plain()))]
    assert max(request.predicted_len for request in cut) == 6


def test_what_is_drawn_for_policies():
    trace = Trace(
        plain(), num_clients=3, num_priorities=2, prediction_error=0.0, deadline=[1.0, 2.0]
    )
    assert {request.client for request in trace} == {0, 1, 2}
    assert {request.priority for request in trace} == {0, 1}
    assert [r.predicted_len for r in trace] == [r.output_len for r in trace]
    assert all(1 <= request.deadline <= 2 for request in trace)
    wrong = Trace(plain(), prediction_error=0.5)
    assert [r.predicted_len for r in wrong] != [r.output_len for r in wrong]
    params = SamplingParams(**trace.requests[3].sampling)
    assert params.max_tokens == trace.requests[3].output_len == params.predicted_tokens
    assert params.client == trace.requests[3].client


@pytest.mark.parametrize(
    ("key", "value"),
    [("limit", 0), ("fraction", 0.0), ("fraction", 1.5), ("rate", 0.0), ("rate_scale", -1.0),
     ("prediction_error", -0.1), ("deadline", [3.0, 1.0]), ("num_clients", 0),
     ("max_output_len", 0)],
)  # fmt: skip
def test_keys_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"workload\.{key} must be"):
        Trace(plain(), **{key: value})


@pytest.mark.skipif(not DATA.is_dir(), reason="the traces are not here")
def test_the_published_traces():
    azure = Azure(path=str(DATA / "azure" / "AzureLLMInferenceTrace_conv.csv"))
    assert len(azure) == 19366
    assert 3500 < azure.requests[-1].arrival < 3700
    mooncake = Mooncake(path=str(DATA / "mooncake" / "conversation_trace.jsonl"))
    assert len(mooncake) == 12031
    assert len(Vidur(path=str(DATA / "vidur" / "arxiv_summarization_lengths.csv"))) == 28257
    chats = ShareGPT(path=str(DATA / "sharegpt" / "sharegpt_v3_lengths_smollm2.csv"))
    assert len(chats) > 10_000
