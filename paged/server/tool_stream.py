"""Tool calls of one streamed choice as OpenAI's deltas."""

import json

from paged.server.sse import quoted
from paged.server.tool_formats import ToolFormat
from paged.server.tool_parser import CallPiece, ToolParser
from paged.server.tools import new_call_id


class ToolStream:
    """What a choice's delta holds while its text grows."""

    def __init__(self, form: ToolFormat, *, parallel: bool) -> None:
        self.form = form
        self._parser = ToolParser(form, parallel=parallel)
        self._has_called = False

    def events(self, text: str, finish_reason: str | None) -> tuple[str, str | None]:
        """(members of the delta as JSON, the finish reason), from the next text and the end."""
        content, pieces = self._parser.feed(text)
        if finish_reason is not None:
            content += self._parser.finish()[0]
        members = [f'"content":{quoted(content)}'] if content else []
        if pieces:
            self._has_called = True
            members.append(f'"tool_calls":{json.dumps([self._shown(piece) for piece in pieces])}')
        if finish_reason == "stop" and self._has_called:
            finish_reason = "tool_calls"
        return ",".join(members), finish_reason

    def _shown(self, piece: CallPiece) -> dict[str, object]:
        """The id, the name and the first arguments; later on more arguments."""
        if piece.name is None:
            return {"index": piece.index, "function": {"arguments": piece.arguments}}
        return {
            "index": piece.index,
            "id": new_call_id(self.form),
            "type": "function",
            "function": {"name": piece.name, "arguments": piece.arguments},
        }
