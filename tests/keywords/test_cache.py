"""The answer cache: what is appended stays, whatever happens in the middle of a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_tpad.errors import InputError
from recbole_tpad.keywords.cache import AnswerCache

KEYS = [f"{k:064x}"[::-1] for k in range(1, 9)]
ROOT = Path(__file__).resolve().parents[2]


def record(key: str, **more: object) -> dict[str, object]:
    return {"key": key, "keywords": ["red", "赤い"], **more}


def test_what_is_added_is_there_the_next_time(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        assert cache.claim(KEYS[0])
        cache.add(record(KEYS[0], prompt_tokens=7, cost=0.5))
        cache.add({"asked": KEYS[1], "rejected": "broken", "prompt_tokens": 3, "cost": 0.25})
        assert cache.get(KEYS[0]) == record(KEYS[0], prompt_tokens=7, cost=0.5)
    with AnswerCache(tmp_path) as cache:
        assert cache.get(KEYS[0]) == record(KEYS[0], prompt_tokens=7, cost=0.5)
        assert cache.get(KEYS[1]) is None
        assert cache.spent == {"prompt_tokens": 10, "completion_tokens": 0, "cost": 0.75}
        assert cache.largest_prompt == 7
        assert len(cache) == 1


@given(st.data())
def test_a_line_cut_anywhere_loses_only_itself(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with AnswerCache(folder) as cache:
            for key in KEYS[:3]:
                cache.add(record(key))
        path = folder / "answers.jsonl"
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        with AnswerCache(folder) as cache:
            assert len(cache) == complete
            cache.add(record(KEYS[5]))
        with AnswerCache(folder) as cache:
            # A line that lacks nothing but its end is whole.
            at_end = cut < len(whole) and whole[cut : cut + 1] == b"\n"
            assert len(cache) == complete + 1 + at_end
            assert cache.get(KEYS[5]) is not None
            assert cache.cut == (0 if at_end or cut == 0 or whole[cut - 1 : cut] == b"\n" else 1)
        assert path.read_bytes().startswith(whole[:cut])


OTHER = """
import sys
from pathlib import Path
from recbole_tpad.keywords.cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]))
print(cache.claim(sys.argv[2]), cache.claim(sys.argv[3]), flush=True)
sys.stdin.readline()
cache.add({"key": sys.argv[2], "keywords": ["other"]})
print("added", flush=True)
sys.stdin.readline()
"""


def test_a_claim_keeps_another_process_out_until_it_answers_or_dies(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        assert cache.claim(KEYS[0])
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(tmp_path), KEYS[1], KEYS[0]],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "True False\n"
            assert not cache.claim(KEYS[1])
            assert cache.get(KEYS[1]) is None
            assert cache.claim(KEYS[2])
            cache.add(record(KEYS[2]))
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "added\n"
            cache.refresh()
            assert cache.get(KEYS[1]) == {"key": KEYS[1], "keywords": ["other"]}
        finally:
            other.kill()
            other.communicate()
        assert not cache.claim(KEYS[1])  # answered
        assert cache.claim(KEYS[0])
        cache.release(KEYS[0])
        assert cache.claim(KEYS[3])
    with AnswerCache(tmp_path) as cache:
        assert cache.claim(KEYS[0])
        assert len(cache) == 2


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path), KEYS[1], KEYS[0]],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True True\n"
    with AnswerCache(tmp_path) as cache:
        assert not cache.claim(KEYS[1])
        other.kill()
        other.communicate()
        assert cache.claim(KEYS[1])


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    lines = ["[1]", '{"key": 3, "keywords": []}', '{"key": "x", "keywords": "red"}', "", "{"]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n" + json.dumps(record(KEYS[0])))
    with AnswerCache(tmp_path) as cache:
        assert len(cache) == 0  # the last line may be another process's, under way
        assert cache.cut == 1
        cache.add(record(KEYS[1]))
        assert len(cache) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write answers to"):
        AnswerCache(tmp_path / "file")
