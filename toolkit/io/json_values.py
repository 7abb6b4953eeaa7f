"""JSON values of an input, read in blocks; what Python's decoder accepts and JSON does not is refused."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from ...runtime.errors import InputError
from .input_format import TEXT_HINT, Source

Fault = Callable[[str], InputError]
"""Makes the error for an invalid value from its position in the input."""
_MAX_VALUE = 1 << 26
"""Characters of a value in a JSON array; a longer one is taken for broken JSON."""
_SHOWN_FIELDS = 8
_SHOWN_DIGITS = 40


class JsonBuffer:
    """JSON text that is read in blocks and consumed value by value."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.ended = False

    def more(self, count: int = 1) -> bool:
        """Read at least `count` more characters, or up to the end; False if nothing was left."""
        pieces: list[str] = []
        got = 0
        while got < count and not self.ended:
            block = self.source.block()
            self.ended = not block
            try:
                pieces.append(self.decoder.decode(block, final=self.ended))
            except UnicodeDecodeError as error:
                raise InputError("the JSON is not valid UTF-8", hint="convert it, for example with `iconv`") from error
            got += len(pieces[-1])
        self.text = self.text + "".join(pieces)
        return got > 0

    def next_character(self) -> str:
        """The next character that is not whitespace, "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n\ufeff":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def pass_over(self) -> None:
        self.at += 1

    def value(self, number: int) -> tuple[Any, Fault | None]:
        """The next value, and the fault for which it must be refused, if any."""
        while True:
            faults: list[Fault] = []
            try:
                value, end = json.JSONDecoder(**_hooks(faults)).raw_decode(self.text, self.at)
            except RecursionError as error:
                raise InputError(f"the JSON of item {number} is nested too deeply") from error
            except ValueError as error:
                if len(self.text) - self.at > _MAX_VALUE or not self.more(max(1, len(self.text) - self.at)):
                    raise broken(f"item {number} cannot be read: {error}") from error
                continue
            if end == len(self.text) and not isinstance(value, (str, dict, list)) and self.more():
                # More digits may follow.
                continue
            self.at = end
            return value, faults[0] if faults else None

    def taken(self) -> None:
        """Discard the consumed text, and count it as read."""
        self.source.take(self.text[: self.at].encode())
        self.text, self.at = self.text[self.at :], 0


def broken(why: str) -> InputError:
    return InputError(f"the input is not valid JSON: {why}", hint=f"correct it; {TEXT_HINT}")


def _hooks(faults: list[Fault]) -> dict[str, Any]:
    """Hooks for Python's JSON decoder, which accepts more than JSON: they add what is invalid to `faults`."""

    def refuse(digits: str) -> None:
        faults.append(lambda where: _not_json(where, digits))

    def finite(digits: str) -> float:
        found = float(digits)
        if not math.isfinite(found):
            refuse(digits)
        return found

    def whole(digits: str) -> int:
        try:
            return int(digits)
        except ValueError:
            # More digits than Python converts.
            refuse(digits)
            return 0

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            faults.append(lambda where: _repeats(where, repeated))
        return found

    return {"parse_float": finite, "parse_int": whole, "parse_constant": refuse, "object_pairs_hook": without_repeats}


def _repeats(where: str, name: str) -> InputError:
    return InputError(f"{where} has the field {quoted([name])} more than once", hint="remove one of them")


def _not_json(where: str, literal: str) -> InputError:
    shown = literal if len(literal) <= _SHOWN_DIGITS else f"{literal[:_SHOWN_DIGITS]}..."
    return InputError(
        f"{where} has `{shown}`, which cannot be written as a JSON number",
        hint="write it as a string, or null",
    )


def parse_value(line: str, where: str) -> Any:
    """The JSON value in a line; raises InputError for invalid JSON, for NaN and for duplicate fields."""
    faults: list[Fault] = []
    try:
        value = json.loads(line, **_hooks(faults))
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"the JSON in {where} is nested too deeply") from error
    if faults:
        raise faults[0](where)
    return value


def quoted(names: Iterable[str]) -> str:
    """Field names for a message: a few, without control characters."""
    shown = list(names)
    some = ["`" + "".join(c if c.isprintable() else "\ufffd" for c in name[:80]) + "`" for name in shown]
    return ", ".join(some[:_SHOWN_FIELDS]) + (", ..." if len(some) > _SHOWN_FIELDS else "")
