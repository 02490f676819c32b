"""Lines of a raw file as records: JSON objects, or Python dict literals (2014 release)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import duckdb

from dataset_converters.database import Database, quoted_list
from dataset_converters.raw_file import LITERAL, Block
from dataset_converters.reading import RejectionLog

# A Python string without prefix; a backslash takes the next character with it.
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no Python literal")


_WITHOUT_CONSTANTS = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(raw: bytes) -> Any:
    """Parse one line of JSON.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_literal(text: str) -> Any:
    """Parse one Python literal as `ast.literal_eval` does, or with JSON's true, false and null.

    The metadata of the 2014 release are such literals. Most of them become JSON when each string
    is written with double quotes, and JSON is parsed several times faster. Whatever is not JSON
    then, or would differ in meaning, goes to `ast.literal_eval`.

    Raises:
        ValueError: no literal, or nested too deeply.
    """
    try:
        return _WITHOUT_CONSTANTS.decode(_STRING.sub(_json_string, text))
    except (ValueError, SyntaxError, RecursionError):
        pass  # sets, tuples, None, string prefixes and the like: the slower parser decides
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _json_string(match: re.Match[str]) -> str:
    token = match.group()
    body = token[1:-1]
    if "\\" in body:
        return json.dumps(ast.literal_eval(token))
    if token[0] == "'" and '"' in body:
        body = body.replace('"', '\\"')
    return f'"{body}"'


def parse_line(raw: bytes) -> Any:
    """Parse a line as a Python literal where it starts like one (``{'``), else as JSON.

    Raises:
        ValueError: it is neither; the message says why.
    """
    if raw[:2] == LITERAL:
        return parse_literal(raw.decode("utf-8"))
    return parse_json(raw)


def block_records(
    block: Block, path: Path, rejections: RejectionLog, database: Database, keys: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a block's usable lines; the others go to `rejections`.

    A line counts as JSON when Python's parser accepts it or DuckDB's does (which reads a trailing
    comma, for instance), because blocks of regular lines are read by DuckDB alone. In the second
    case only `keys` of the object are returned.
    """
    if block.elements is not None:
        for number, element in enumerate(block.elements, start=block.first_line):
            if isinstance(element, dict):
                yield number, element
            else:
                raw = json.dumps(element).encode()
                rejections.add(path, number, "not a JSON object", raw)
        return
    for number, line in enumerate(block.read_lines(), block.first_line):
        raw = line.strip()
        if not raw:
            continue
        try:
            record = parse_line(raw)
        except ValueError as error:
            record = _parse_with_database(raw, database, keys)
            if record is None:
                rejections.add(
                    path,
                    number,
                    f"{'no literal' if raw[:2] == LITERAL else 'not JSON'} ({error})",
                    line,
                )
                continue
        if isinstance(record, dict):
            yield number, record
        else:
            rejections.add(path, number, "not a JSON object", line)


def _parse_with_database(
    raw: bytes, database: Database, keys: Sequence[str]
) -> dict[str, Any] | None:
    try:
        text = raw.decode("utf-8")
        kind = database.value("SELECT CASE WHEN json_valid($1) THEN json_type($1) END", [text])
    except (UnicodeDecodeError, duckdb.DataError, duckdb.InvalidInputException):
        return None
    if kind != "OBJECT":
        return None
    paths = quoted_list([f'$."{key}"' for key in keys])[1:-1]
    found = database.value(f"SELECT json_extract($1, [{paths}])", [text])
    return {
        key: json.loads(value) for key, value in zip(keys, found, strict=True) if value is not None
    }
