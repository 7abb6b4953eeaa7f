"""The parts of an answer to a conversation: text and calls of tools, as its tokens come."""

from __future__ import annotations

from typing import Any

from ....runtime.decoder.stream import Token
from ....runtime.decoder.token_choice import FinishReason
from ....runtime.text.tool_calls import ToolCallParser, ToolDelta


class ChatDeltas:
    """Converts the tokens of one answer; with a parser, calls of tools are taken out of its text."""

    def __init__(self, parser: ToolCallParser | None) -> None:
        self._parser = parser
        self._text: list[str] = []

    def push(self, token: Token) -> list[dict[str, Any]]:
        """What the next token adds, as OpenAI's field `delta` has it."""
        if self._parser is None:
            self._text.append(token.text)
            return [{"content": token.text}] if token.text else []
        found = self._parser.push(token.text, token.id)
        if token.finish_reason is not None:
            found += self._parser.end()
        return [_delta_of(one) for one in found]

    def message(self) -> dict[str, Any]:
        """The complete message."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        if self._parser is None:
            return message
        message["content"] = self._parser.text
        if self._parser.calls:
            message["content"] = self._parser.text or None
            message["tool_calls"] = [call.as_message() for call in self._parser.calls]
        return message

    def last(self) -> dict[str, Any]:
        """What the delta with the finish reason has."""
        return {}

    def finish_reason(self, token: Token) -> str:
        """OpenAI's finish reason after the last token."""
        if self._parser is not None and self._parser.calls and token.finish_reason is FinishReason.STOP:
            return "tool_calls"
        return "" if token.finish_reason is None else token.finish_reason.value


def _delta_of(delta: ToolDelta) -> dict[str, Any]:
    if delta.index is None:
        return {"content": delta.text}
    function: dict[str, Any] = {"arguments": delta.arguments}
    call: dict[str, Any] = {"index": delta.index, "function": function}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
    if delta.name is not None:
        function["name"] = delta.name
    return {"tool_calls": [call]}
