"""Models, tokens, metrics, and what /debug shows."""

import json

from openai import types
from prometheus_client.parser import text_string_to_metric_families

import paged

DASHBOARD = {  # what vLLM's dashboards draw
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens",
    "generation_tokens", "time_to_first_token_seconds", "inter_token_latency_seconds",
    "time_per_output_token_seconds", "e2e_request_latency_seconds", "request_success",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    "request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens",
    "iteration_tokens_total", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits",
    "cache_config_info", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
    "spec_decode_draft_acceptance_rate",
}  # fmt: skip


def metrics(http) -> dict:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {family.name: family for family in families}


def value(http, name: str, **labels) -> float:
    return sum(
        sample.value
        for family in metrics(http).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_models_version_and_health(client, http):
    model = client.models.list().data[0]
    assert (model.id, model.object) == ("stories", "model")
    assert client.models.retrieve("stories").max_model_len == 1024
    assert http.get("/version").json() == {"version": paged.__version__}
    assert http.get("/health").status_code == 200


def test_tokenize_and_detokenize_are_inverse(http):
    text = "The little dog, na\u00efve \U0001f600."
    tokens = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 1024
    body = {"tokens": tokens["tokens"], "skip_special_tokens": True}
    assert http.post("/detokenize", json=body).json()["prompt"].strip() == text
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "The dog"}]})
    assert chat.status_code == 200
    assert chat.json()["count"] >= 2
    assert http.post("/tokenize", json={}).status_code == 400
    unknown = http.post("/detokenize", json={"tokens": [2**20]}).json()["error"]
    assert unknown["param"] == "tokens"


def test_metrics_have_the_names_dashboards_use(http):
    names = set(metrics(http))
    assert {f"paged:{name}" for name in DASHBOARD} <= names
    assert {f"vllm:{name}" for name in DASHBOARD} <= names


def test_metrics_count_what_happened(client, http):
    def counts() -> tuple[float, ...]:
        return (
            value(http, "paged:generation_tokens_total"),
            value(http, "vllm:prompt_tokens_total"),
            value(http, "paged:request_success_total", finished_reason="length"),
            value(http, "paged:time_to_first_token_seconds_count"),
            value(http, "paged:inter_token_latency_seconds_count"),
            value(http, "paged:request_prompt_tokens_sum"),
        )

    before = counts()
    client.completions.create(
        model="stories", prompt=[5, 6, 7], max_tokens=3, extra_body={"ignore_eos": True}
    )
    assert [after - first for first, after in zip(before, counts())] == [3, 3, 1, 1, 2, 3]
    assert value(http, "paged:num_requests_running") == 0
    assert value(http, "paged:kv_cache_usage_perc") == 0


def test_the_state_is_readable(client, http):
    stream = client.completions.create(
        model="stories",
        prompt=[5, 6, 7],
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True, "priority": 3},
    )
    next(stream)
    state = http.get("/debug/state").json()
    stream.close()
    slot = state["slots"][0]
    assert (slot["status"], slot["prompt_len"], slot["priority"]) == ("running", 3, 3)
    assert len(slot["block_table"]) == slot["num_pages"] >= 1
    assert slot["num_computed_tokens"] <= slot["total_len"]
    pages = state["pages"]
    assert pages["total"] == pages["free"] + pages["cached"] + pages["in_use"] == 64


def test_a_profile_is_written(client, http):
    stream = client.completions.create(
        model="stories", prompt=[5], max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    made = http.post("/debug/profile", json={"num_steps": 1}).json()
    assert http.post("/debug/profile").json()["num_steps"] == 10
    stream.close()
    with open(made["path"]) as trace:
        assert json.load(trace)["traceEvents"]


def test_answers_validate_against_the_clients_types(http):
    chat = {"messages": [{"role": "user", "content": "Once"}], "top_logprobs": 1}
    asked = {"max_tokens": 2, "logprobs": 1}
    made = http.post("/v1/completions", json=asked | {"prompt": "Once"}).json()
    types.Completion.model_validate(made)
    asked["logprobs"] = True
    made = http.post("/v1/chat/completions", json=asked | chat).json()
    types.chat.ChatCompletion.model_validate(made)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    body = asked | chat | usage
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    assert len(lines) >= 3
    for line in lines:
        types.chat.ChatCompletionChunk.model_validate_json(line.removeprefix("data: "))


def test_the_api_describes_itself(http):
    schema = http.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/debug/state"} <= set(schema["paths"])
    assert "ErrorBody" in schema["components"]["schemas"]
