"""Prompts and conversations to token ids. Runs off the event loop; limits come first."""

from collections.abc import Sequence
from typing import Any

from paged.server.errors import ApiError, not_supported
from paged.server.protocol import Message
from paged.server.tools import plain_tool_call
from paged.state import Sizes
from paged.tokenizer import Tokenizer


class PromptReader:
    """Turns what clients send into token ids.

    Args:
        tokenizer: None for a model without one: prompts are token ids then.
        sizes: the engine's.
        vocab_size: ids must be below it.
        chat_template: Jinja, instead of the tokenizer's own.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        sizes: Sizes,
        vocab_size: int,
        chat_template: str | None = None,
    ) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.max_model_len = sizes.max_model_len
        self.chat_template = self._given_template = chat_template
        if tokenizer is not None and chat_template is None:
            self.chat_template = tokenizer.hf.chat_template
        # A text with more characters than this has more tokens than the model takes, so it need
        # not be tokenized to be refused.
        longest = 1 if tokenizer is None else max(map(len, tokenizer.hf.get_vocab()))
        self.max_characters = self.max_model_len * longest

    def text(self, prompt: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ids = self.need_tokenizer().encode(self._short_enough(prompt, "prompt"), add_special_tokens)
        if not ids:
            raise ApiError("prompt must hold at least one token, got an empty text", param="prompt")
        return ids

    def ids(self, given: Sequence[int], field: str = "prompt") -> list[int]:
        """Token ids that came in a field of the body, checked."""
        if not given:
            raise ApiError(f"{field} must hold at least one token, got none", param=field)
        if max(given) >= self.vocab_size:
            raise ApiError(
                f"{field}: token ids must be below {self.vocab_size}, the vocabulary, "
                f"got {max(given)}",
                param=field,
            )
        return list(given)

    def conversation(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        template_arguments: dict[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the answer begins."""
        tokenizer = self.need_tokenizer()
        if self.chat_template is None:
            raise ApiError(
                "this model has no chat template; use /v1/completions, or start the server with "
                "chat_template=FILE",
                param="messages",
                code="no_chat_template",
            )
        plain = [plain_message(message) for message in messages]
        for message in plain:
            self._short_enough(str(message.get("content") or ""), "messages")
        try:
            ids = tokenizer.hf.apply_chat_template(
                plain,
                chat_template=self._given_template,
                tokenize=True,
                return_dict=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(template_arguments or {}),
            )
        except Exception as error:  # templates raise whatever their author chose
            raise ApiError(
                f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        if not ids:
            raise ApiError("messages: they make an empty prompt", param="messages")
        return list(ids)

    def need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ApiError("this model has no tokenizer; send the prompt as token ids")
        return self.tokenizer

    def _short_enough(self, text: str, param: str) -> str:
        if len(text) > self.max_characters:
            raise ApiError(
                f"{param}: {len(text)} characters cannot fit the model's {self.max_model_len} "
                "tokens; please shorten it",
                param=param,
                code="context_length_exceeded",
            )
        return text


def plain_message(message: Message) -> dict[str, Any]:
    """A message as chat templates take it: its content as one text."""
    plain = message.model_dump(exclude={"content", "tool_calls"})
    if message.tool_calls:
        plain["tool_calls"] = [plain_tool_call(call) for call in message.tool_calls]
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise not_supported("messages", f"only text parts are supported, got {part.type!r}")
        content = "\n".join(part.text or "" for part in content)
    plain["content"] = content or ""  # templates would print None
    return plain
