"""One growing answer to content and tool calls.

    [ content | begin, calls, end | content ]

The name of a call goes out as soon as its arguments begin; they follow as they come, letter for
letter.
"""

import json
import re
from dataclasses import dataclass
from enum import Enum, auto

from paged.server.tool_formats import ToolFormat

SEPARATORS = " \t\r\n,;"  # between calls
NAME_IN_OBJECT = re.compile(
    r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
NAME_IN_FRONT = re.compile(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class CallPiece:
    """More of the call `index`; its first piece, and no other, has the name."""

    index: int
    name: str | None
    arguments: str


class JsonEnd:
    """Finds the end of a JSON object or list in a text that comes in pieces."""

    def __init__(self, depth: int = 0) -> None:
        self.depth, self._in_string, self._escaped = depth, False, False

    def feed(self, text: str) -> int:
        """Characters of `text` up to the end of the value; -1 if it goes on behind it."""
        for at, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return at + 1
        return -1


class State(Enum):
    CONTENT = auto()  # text for the reader
    BETWEEN = auto()  # behind `begin` or a call, in front of a call or `end`
    CALL = auto()  # in a call whose name is not known yet
    ARGUMENTS = auto()
    CLOSING = auto()  # behind the arguments, still in the call's object


class ToolParser:
    """Splits one growing answer into content and calls. However it is cut, the sum is the same.

    Args:
        parallel: False drops all calls but the first.
    """

    def __init__(self, form: ToolFormat, *, parallel: bool = True) -> None:
        self.form, self.parallel = form, parallel
        self.num_calls = 0
        self._state, self._text = State.CONTENT, ""
        self._is_blank = True  # nothing but space since the answer's beginning or the last call
        self._skipped: str | None = None  # what would be content if no call follows
        self._scan = JsonEnd()
        self._in_object = True  # the call is an object around name and arguments
        self._content: list[str] = []
        self._pieces: list[CallPiece] = []

    def feed(self, text: str) -> tuple[str, list[CallPiece]]:
        """What the next piece of text is certain to bring: content, and pieces of calls."""
        self._text += text
        steps = {
            State.CONTENT: self._read_content,
            State.BETWEEN: self._read_between,
            State.CALL: self._read_call,
            State.ARGUMENTS: self._read_arguments,
            State.CLOSING: self._read_closing,
        }
        while self._text and steps[self._state]():
            pass
        return self._take()

    def finish(self) -> tuple[str, list[CallPiece]]:
        """What was held back, when no more text comes; a call without a name is content."""
        if self._state in (State.BETWEEN, State.CALL):
            self._give_back("" if self._skipped is None else self._text)
        elif self._state is State.CONTENT and not (self._is_blank and self.num_calls):
            self._content.append(self._text)
        self._text = ""
        return self._take()

    def _take(self) -> tuple[str, list[CallPiece]]:
        content, pieces = "".join(self._content), self._pieces
        self._content, self._pieces = [], []
        if not self.parallel:
            pieces = [piece for piece in pieces if piece.index == 0]
        return content, pieces

    def _go(self, state: State, num_read: int) -> bool:
        """To another state, behind so many characters."""
        self._state, self._text = state, self._text[num_read:]
        return True

    def _give_back(self, text: str) -> None:
        """What has been taken for calls since `begin`, and `text` behind it, is content."""
        content = (self._skipped or "") + text
        self._content.append(content)
        self._is_blank = not content.strip()
        self._skipped = None

    def _read_content(self) -> bool:
        text, begin = self._text, self.form.begin
        space = len(text) - len(text.lstrip()) if self._is_blank else 0
        if self._is_blank and space == len(text):
            return False
        if self.form.bare and self._is_blank and not self.num_calls and text[space] in "{[":
            self._skipped = text[:space]
            return self._go(State.BETWEEN, space)
        at = text.find(begin) if begin else -1
        if at >= 0:
            if at > space:
                self._content.append(text[:at])
            self._skipped = begin
            return self._go(State.BETWEEN, at + len(begin))
        shown = len(text) - _num_held(text, begin)
        if shown > space:
            self._content.append(text[:shown])
            self._text, self._is_blank = text[shown:], False
        return False

    def _read_between(self) -> bool:
        begin, end = self.form.begin, self.form.end
        text = self._text.lstrip(SEPARATORS)
        self._skip(len(self._text) - len(text))
        if any(text != mark and mark.startswith(text) for mark in (begin, end, "]")):
            return False  # there is no text, or it may become a mark
        if begin and text.startswith(begin):
            return self._skip(len(begin))
        if text[0] == "[":
            return self._skip(1)
        if text[0] == "{" or (self.form.named_in_front and text[0].isidentifier()):
            return self._go(State.CALL, 0)
        closing = end if end and text.startswith(end) else "]" if text[0] == "]" else ""
        if self._skipped is None:
            self._is_blank = True
        else:
            self._give_back(closing)
        return self._go(State.CONTENT, len(closing))

    def _skip(self, num_read: int) -> bool:
        if self._skipped is not None:
            self._skipped += self._text[:num_read]
        self._text = self._text[num_read:]
        return True

    def _read_call(self) -> bool:
        self._in_object = self._text.startswith("{")
        found = (NAME_IN_OBJECT if self._in_object else NAME_IN_FRONT).match(self._text)
        if found:
            self._pieces.append(CallPiece(self.num_calls, found[1], ""))
            self._scan, self._skipped = JsonEnd(), None
            return self._go(State.ARGUMENTS, found.end())
        end = JsonEnd().feed(self._text) if self._in_object else -1
        if end < 0:
            return False
        call = _call_of(self._text[:end])
        if call is None:
            self._give_back(self._text[:end])
            return self._go(State.CONTENT, end)
        self._pieces.append(CallPiece(self.num_calls, *call))
        self.num_calls += 1
        self._skipped = None
        return self._go(State.BETWEEN, end)

    def _read_arguments(self) -> bool:
        end = self._scan.feed(self._text)
        shown = len(self._text) if end < 0 else end
        self._pieces.append(CallPiece(self.num_calls, None, self._text[:shown]))
        if end < 0:
            self._text = ""
            return False
        self._scan = JsonEnd(depth=1)
        self.num_calls += 1
        return self._go(State.CLOSING if self._in_object else State.BETWEEN, end)

    def _read_closing(self) -> bool:
        end = self._scan.feed(self._text)
        self._go(State.BETWEEN if end >= 0 else State.CLOSING, len(self._text) if end < 0 else end)
        return end >= 0


def read_calls(
    form: ToolFormat, text: str, *, parallel: bool = True
) -> tuple[str, list[tuple[str, str]]]:
    """(content, [(name, arguments)]) of a whole answer."""
    parser = ToolParser(form, parallel=parallel)
    content, pieces = parser.feed(text)
    rest, _ = parser.finish()
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append((piece.name, piece.arguments))
        else:
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + piece.arguments)
    return content + rest, calls


def _num_held(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    longest = min(len(text), max(0, len(marker) - 1))
    return next((n for n in range(longest, 0, -1) if marker.startswith(text[-n:])), 0)


def _call_of(text: str) -> tuple[str, str] | None:
    """(name, arguments) of a call in any order of its keys; None if it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = call.get("name")
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(name, str):
        return None
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments)
