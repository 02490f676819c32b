"""Reads the elements of one large JSON array, a piece of the file at a time."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from dataset_converters.errors import InputError

_SPACE = " \t\n\r"
# An error nearer to the end of the text than this may only mean that the rest is to come.
_TAIL = 16


class ArrayReader:
    """Parses ``[element, element, …]`` fed in pieces.

    `elements` counts the elements returned so far.

    Raises (in every method):
        InputError: an element is not JSON, or something else than elements and commas stands there.
    """

    def __init__(self, path: Path) -> None:
        self.elements = 0
        self._path = path
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._wanted = "["

    def feed(self, data: bytes) -> list[Any]:
        """Return the elements that are complete with these bytes."""
        try:
            self._text += self._decode.decode(data)
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8 ({error})") from error
        found: list[Any] = []
        position = 0
        while True:
            position = self._skip_space(position)
            if position >= len(self._text):
                break
            step = self._step(position, found)
            if step is None:
                break
            position = step
        self._text = self._text[position:]
        return found

    def close(self) -> None:
        """Check that the array is complete."""
        if not self._wanted:
            return
        problem = "the array has no end"
        if self._text:
            try:
                self._json.decode(self._text)
            except json.JSONDecodeError as error:
                problem = error.msg
        raise self._error(f"not JSON ({problem})")

    def _step(self, position: int, found: list[Any]) -> int | None:
        """Read one mark or element; None where more text is needed."""
        mark = self._text[position]
        if self._wanted == "":
            raise self._error("text after the array's end")
        if self._wanted == "[":
            self._wanted = "]e"
            return position + 1
        if mark == "]" and "]" in self._wanted:
            self._wanted = ""
            return position + 1
        if self._wanted == "],":
            if mark != ",":
                raise self._error("not JSON (no comma after an element)")
            self._wanted = "e"
            return position + 1
        end = self._element(position, found)
        if end is not None:
            self._wanted = "],"
        return end

    def _element(self, position: int, found: list[Any]) -> int | None:
        try:
            element, end = self._json.raw_decode(self._text, position)
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _TAIL
            if cut:
                return None
            raise self._error(f"not JSON ({error.msg})") from error
        except RecursionError as error:
            raise self._error("nested too deeply") from error
        # "12" may be the start of "123": an element counts once something follows it.
        if self._skip_space(end) >= len(self._text):
            return None
        found.append(element)
        self.elements += 1
        return end

    def _skip_space(self, position: int) -> int:
        while position < len(self._text) and self._text[position] in _SPACE:
            position += 1
        return position

    def _error(self, problem: str) -> InputError:
        return InputError(
            f"{self._path}, element {self.elements + 1} of the JSON array: {problem}. Repair it."
        )
