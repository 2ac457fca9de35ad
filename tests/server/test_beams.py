"""`use_beam_search` over HTTP: the engine's own search, or a refusal that names the field."""

from contextlib import suppress

import httpx
import pytest

from paged.beams import BeamSearchParams
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.schedulers.base import RankScheduler

PROMPT = "The little dog"
SEARCH = {"model": "stories", "n": 3, "max_tokens": 5, "use_beam_search": True}


def test_choices_are_the_sequences_of_the_engines_search(http):
    llm = LLM(
        "stories", max_model_len=64, kv=PagedKV(page_size=16, num_pages=32),
        scheduler=RankScheduler(max_num_seqs=4, max_num_batched_tokens=32),
    )  # fmt: skip
    params = BeamSearchParams(3, 5, ignore_eos=True, length_penalty=2.0)
    (expected,) = llm.beam_search(PROMPT, params)
    knobs = {"prompt": PROMPT, "ignore_eos": True, "length_penalty": 2.0, "echo": True}
    made = http.post("/v1/completions", json=SEARCH | knobs).json()
    assert [one["text"] for one in made["choices"]] == [one.text for one in expected.sequences]
    assert [one["finish_reason"] for one in made["choices"]] == ["length"] * 3
    assert made["usage"]["completion_tokens"] == 15


def test_a_chat_is_searched_whatever_neutral_values_say(client):
    made = client.chat.completions.create(
        messages=[{"role": "user", "content": PROMPT}], temperature=0, seed=3, top_p=1,
        presence_penalty=0, extra_body={"use_beam_search": True, "top_k": -1, "bad_words": []},
        **{name: value for name, value in SEARCH.items() if name != "use_beam_search"},
    )  # fmt: skip
    assert len({choice.message.content for choice in made.choices}) == 3


def test_leaving_a_search_frees_its_pages(http, until):
    body = SEARCH | {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True}
    with suppress(httpx.ReadTimeout):
        http.post("/v1/completions", json=body, timeout=2)
    state = until(lambda state: not state["slots"] and not state["queue"])
    assert state["pages"]["in_use"] == 0


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"n": 17}, "n", "beam_width must be from 1 to 16, got 17"),
        ({"n": 5}, "n", "beam_width must be at most max_num_seqs (4), got 5"),
        ({"max_tokens": 800}, "n", "beam_width: 3 beams need up to 153 pages"),
        ({"length_penalty": 200}, "length_penalty", "less than or equal to 100"),
        ({"stop": "."}, "stop", "does not read it, got '.'"),
        ({"stream": True}, "stream", "does not read it"),
        ({"logprobs": 0}, "logprobs", "does not read it"),
        ({"best_of": 4}, "best_of", "does not read it"),
        ({"min_tokens": 2}, "min_tokens", "does not read it, got 2"),
        ({"user": "ann"}, "user", "does not read it"),
        ({"guided_regex": "a+"}, "guided_regex", "does not read it"),
        ({"use_beam_search": None, "length_penalty": 2}, "length_penalty", "use_beam_search=true"),
    ],
)  # fmt: skip
def test_what_a_search_cannot_honour_is_refused(http, change, param, message):
    answer = http.post("/v1/completions", json=SEARCH | {"prompt": PROMPT} | change)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
