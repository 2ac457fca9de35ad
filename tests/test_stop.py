"""What ends an output, on the embedded model: stop strings, stop tokens, and what is left of it."""

import pytest

from paged.detokenizer import StopStrings
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler

PROMPT = "Once upon a time there was a little"
NUM_TOKENS = 10


@pytest.fixture(scope="module")
def llm():
    return LLM(
        kv=PagedKV(num_pages=64),
        scheduler=RankScheduler(max_num_seqs=4, max_num_batched_tokens=64),
        max_model_len=128,
    )


@pytest.fixture(scope="module")
def plain(llm):
    return ask(llm)


def ask(llm, prompt=PROMPT, **params):
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": NUM_TOKENS} | params)
    output = llm.generate(prompt, sampling)[0].outputs[0]
    assert not llm.engine.has_unfinished
    assert int((llm.engine.pool.ref_count > 0).sum()) == 0
    return output


def test_the_output_ends_where_a_stop_string_is_complete(device, llm, plain):
    # From the middle of one token to the middle of another.
    words = plain.text.split(" ")
    stop = f"{words[2][1:]} {words[3][:-1]}"
    at = plain.text.index(stop)
    output = ask(llm, stop=["nowhere in the text", stop])
    assert (output.text, output.finish_reason, output.stop_reason) == (
        plain.text[:at],
        "stop",
        stop,
    )
    assert output.token_ids == plain.token_ids[: len(output.token_ids)]
    assert output.logprobs == plain.logprobs[: len(output.token_ids)]
    text = llm.tokenizer.decode(output.token_ids)
    assert stop in text
    assert stop not in llm.tokenizer.decode(output.token_ids[:-1])

    kept = ask(llm, stop=stop, include_stop_str_in_output=True)
    assert kept.text == plain.text[: at + len(stop)]
    assert kept.token_ids == output.token_ids


def test_a_stop_string_is_not_looked_for_before_min_tokens(device, llm, plain):
    stop = plain.text.split(" ")[2]
    early = ask(llm, stop=stop)
    late = ask(llm, stop=stop, min_tokens=len(early.token_ids) + 1)
    assert len(late.token_ids) > len(early.token_ids)
    assert late.text.startswith(early.text + stop)


def test_a_stop_string_that_never_comes_changes_nothing(device, llm, plain):
    output = ask(llm, stop=["zebra quartz", plain.text[-3:] + "zzz"])
    assert (output.text, output.token_ids) == (plain.text, plain.token_ids)
    assert (output.finish_reason, output.stop_reason) == ("length", None)


def test_a_stop_token_is_no_text_unless_asked_for(device, llm, plain):
    stop = plain.token_ids[7]
    place = plain.token_ids.index(stop) + 1
    output = ask(llm, stop_token_ids=[stop])
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.token_ids == plain.token_ids[:place]
    kept = ask(llm, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert len(output.text) < len(kept.text)
    assert kept.text.startswith(output.text)
    assert plain.text.startswith(kept.text)


def test_a_stop_string_ends_one_request_of_many_and_in_streams(device, llm, plain):
    stop = plain.text.split(" ")[3]
    params = [
        SamplingParams(temperature=0, max_tokens=NUM_TOKENS, stop=wanted) for wanted in (None, stop)
    ]
    seen: dict[str, str] = {}
    for request in llm.stream([PROMPT, PROMPT], params):
        text = request.outputs[0].text
        assert text.startswith(seen.get(request.request_id, ""))
        seen[request.request_id] = text
    assert list(seen.values()) == [plain.text, plain.text[: plain.text.index(stop)]]


def test_special_tokens_are_text_only_when_asked_for(device, llm):
    eos = llm.tokenizer.eos_id
    params = {"max_tokens": 2, "ignore_eos": True}
    ended = [*llm.tokenizer.encode(PROMPT), eos]
    shown = llm.tokenizer.decode([eos], skip_special_tokens=False)
    output = ask(llm, prompt=ended, skip_special_tokens=False, stop=[shown], **params)
    assert shown not in output.text  # of the prompt, not of the output
    assert ask(llm, detokenize=False).text == ""


def test_prompts_are_truncated_from_the_left(device, llm):
    ids = llm.tokenizer.encode(PROMPT * 20)
    whole = SamplingParams(max_tokens=3, truncate_prompt_tokens=-1, ignore_eos=True)
    request = llm.generate([ids], whole)[0]
    assert request.prompt_token_ids == ids[-125:]
    assert len(request.outputs[0].token_ids) == 3
    request = llm.generate([ids], SamplingParams(max_tokens=3, truncate_prompt_tokens=9))[0]
    assert request.prompt_token_ids == ids[-9:]
    with pytest.raises(ValueError, match="prompt must be shorter than max_model_len"):
        llm.generate([ids], SamplingParams(max_tokens=3, truncate_prompt_tokens=500))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stop": ""}, "stop must be strings that are not empty"),
        ({"stop": ["a", 3]}, "stop must be strings"),
        ({"stop": "a", "detokenize": False}, "stop needs detokenize=True"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be -1 or positive"),
    ],
)
def test_wrong_parameters_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)


def test_text_is_held_back_while_it_may_begin_a_stop_string():
    finder = StopStrings(["<end>", "\n\n"])
    pieces = [finder.add(text) for text in ("a<", "en", "x<e", "nd", ">b")]
    assert pieces == ["a", "", "<enx", "", ""]
    assert finder.met == "<end>"
    both = StopStrings(["bc", "abcd"])
    assert both.add("xabcd") == "x"
    assert both.met == "abcd"
