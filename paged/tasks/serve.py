"""task=serve: the OpenAI-compatible server, until a signal ends it."""

from collections.abc import Callable, Sequence
from typing import Any

from paged.llm import LLM


def serve(
    llm_factory: Callable[[], LLM],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: str | Sequence[str] = "paged",
    api_key: str | Sequence[str] | None = None,
    max_queued: int | None = 1024,
    max_body_bytes: int = 32 * 2**20,
    drain_seconds: float = 60.0,
    chat_template: str | None = None,
    tool_parser: str | dict[str, Any] | None = None,
    metrics_alias: str | None = None,
    profile_dir: str | None = None,
    num_tokenizer_threads: int = 2,
    debug: bool = True,
    access_log: bool = False,
) -> None:
    """Serve the model over HTTP.

    Args:
        host, port: where to listen; port 0 takes a free one.
        served_model_name: what clients call the model, or several names for it.
        api_key: what clients must send; a list accepts any. None takes PAGED_API_KEY from the
            environment, and without that asks for no key.
        max_queued: requests that may wait beyond those that can run at once; more get 429.
        max_body_bytes: of a request.
        drain_seconds: after SIGTERM, how long running requests may take to end.
        chat_template: a Jinja file, or the template itself, instead of the model's.
        tool_parser: how the model writes tool calls: hermes, llama3_json, mistral, or a dictionary
            of `begin` and `end`. None takes it from the chat template.
        metrics_alias: a second prefix of all metrics; `vllm` feeds dashboards made for it.
        profile_dir: where /debug/profile writes traces; None switches it off.
        num_tokenizer_threads: threads that turn prompts into tokens.
        debug: serve /debug/state and its siblings.
        access_log: a line on stderr for each request.
    """
    try:
        from paged.server.runner import ServerSettings, keys_of, serve_forever
    except ModuleNotFoundError as error:
        raise ValueError(f"task=serve needs {error.name}; pip install 'paged[serve]'") from error
    names = served_model_name
    settings = ServerSettings(
        names=(names,) if isinstance(names, str) else tuple(names),
        host=host,
        port=port,
        api_keys=keys_of(api_key if api_key is None or isinstance(api_key, str) else (*api_key,)),
        max_queued=max_queued,
        max_body_bytes=max_body_bytes,
        drain_seconds=drain_seconds,
        chat_template=chat_template,
        tool_parser=tool_parser,
        metrics_alias=metrics_alias,
        profile_dir=profile_dir,
        num_tokenizer_threads=num_tokenizer_threads,
        debug=debug,
        access_log=access_log,
    )
    serve_forever(llm_factory, settings)
