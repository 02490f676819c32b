"""Keywords from CSV and JSON lines: good files, and what is wrong with bad ones, by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_catalogue import read_lines, write_catalogue

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.annotate import AnnotationReport, annotate_from_file


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    made = write_catalogue(tmp_path / "data", n_items=6)
    (made.path / "keywords.jsonl").unlink()
    return made


def annotate(folder: DatasetFolder, content: str | bytes, name: str) -> AnnotationReport:
    source = folder.path.parent / name
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    return annotate_from_file(folder.path.parent, folder.name, source)


def keywords(folder: DatasetFolder) -> dict[str, tuple[str, ...]]:
    found = DatasetFolder.open(folder.path.parent, folder.name)
    return {i.item_id: i.keywords for i in found.items if i.keywords}


CSV = (
    "keywords,item_id,note\n"
    "red; round  rim;red;,i01,x\n"
    '"blue, pale;square",i00,\n'
    ";,i02,\n"
    "lost,zz,\n"
)
JSONL = "\n".join(
    [
        json.dumps({"item_id": "i01", "keywords": ["red", " round  rim", "red", ""]}),
        "",
        json.dumps({"item_id": "i00", "keywords": ["blue, pale", "square"], "more": 1}),
        json.dumps({"item_id": "i02", "keywords": []}),
        json.dumps({"item_id": "zz", "keywords": ["lost"]}),
    ]
)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (CSV, "k.csv"),
        (CSV.replace("\n", "\r\n"), "k.CSV"),
        (b"\xef\xbb\xbf" + CSV.encode(), "k.csv"),
        (JSONL, "k.jsonl"),
        (JSONL + "\n", "keywords"),
    ],
    ids=["csv", "crlf", "bom", "jsonl", "no-extension"],
)
def test_good_files(folder: DatasetFolder, content: str | bytes, name: str) -> None:
    report = annotate(folder, content, name)
    assert keywords(folder) == {"i00": ("blue, pale", "square"), "i01": ("red", "round rim")}
    assert dict(report.statuses) == {"ok": 2, "empty": 1, "not asked": 3}
    assert (report.annotated, report.vocabulary.keywords, report.unknown) == (2, 4, 1)
    assert "1 lines were for items that the data set does not have" in str(report)
    problems = read_lines(folder.path / "keywords" / "file.problems.jsonl")
    assert problems[1] == {
        "item_id": "i03",
        "status": "not asked",
        "reason": "the file does not name it",
    }
    lines = read_lines(folder.path / "keywords.jsonl")
    assert [line["item_id"] for line in lines] == ["i00", "i01", "i02"]
    assert {line["annotator"] for line in lines} == {"file"}


def test_any_script(folder: DatasetFolder) -> None:
    annotate(folder, "item_id,keywords\ni00,赤い;круглый;☕\n", "k.csv")
    assert keywords(folder) == {"i00": ("赤い", "круглый", "☕")}


def test_a_second_run_replaces_the_first(folder: DatasetFolder) -> None:
    annotate(folder, CSV, "k.csv")
    annotate(folder, "item_id,keywords\ni05,green\n", "k.csv")
    assert keywords(folder) == {"i05": ("green",)}


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            "",
            "k.csv",
            r"k\.csv, line 1: the columns item_id and keywords are needed, found nothing",
        ),
        ("item,keywords\ni00,red\n", "k.csv", r"line 1: .*found item, keywords"),
        ("item_id,keywords\ni00,red\n,red\n", "k.csv", r"k\.csv, line 3: item_id or keywords"),
        ("item_id,keywords\ni00,red\ni01\n", "k.csv", r"k\.csv, line 3: item_id or keywords"),
        ("item_id,keywords\ni00,a\ni01,b\ni00,c\n", "k.csv", r"line 4: item 'i00' is named a sec"),
        ("item_id,keywords\nzz,red\n", "k.csv", r"names no item of the data set \(1 other"),
        (b"item_id,keywords\ni00,\xff\xfe\n", "k.csv", r"k\.csv is not UTF-8"),
        (f"item_id,keywords\ni00,{'x' * 200_000}\n", "k.csv", r"k\.csv is not a CSV file"),
        ("", "k.jsonl", r"names no item of the data set \(0 other"),
        ("{}\n", "k.jsonl", r"k\.jsonl, line 1: not a JSON object with item_id and keywords"),
        ('{"item_id": "i00"}\n', "k.jsonl", r"line 1: .*'keywords'"),
        ("item_id,keywords\ni00,;\n", "k.csv", r"No item got keywords\.\n"),
        (f"{JSONL.splitlines()[0]}\n{{broken\n", "k.jsonl", r"k\.jsonl, line 2: not a JSON object"),
        ("[1]\n", "k.jsonl", r"k\.jsonl, line 1: not a JSON object"),
        ("null\n", "k.jsonl", r"k\.jsonl, line 1: not a JSON object"),
        ('{"item_id": 3, "keywords": []}\n', "k.jsonl", r"line 1: item_id must be a string"),
        ('{"item_id": "i00", "keywords": "red"}\n', "k.jsonl", r"line 1: .*a list of strings"),
        ('{"item_id": "i00", "keywords": [null]}\n', "k.jsonl", r"line 1: .*a list of strings"),
    ],
)
def test_bad_files(folder: DatasetFolder, content: str | bytes, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        annotate(folder, content, name)
    assert not (folder.path / "keywords.jsonl").exists()


def test_a_bad_file_leaves_the_old_keywords(folder: DatasetFolder) -> None:
    annotate(folder, CSV, "k.csv")
    before = keywords(folder)
    with pytest.raises(InputError):
        annotate(folder, CSV + "\nbad\n", "k.csv")
    assert keywords(folder) == before


def test_absent_files(folder: DatasetFolder, tmp_path: Path) -> None:
    for source in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError, match=f"Cannot read {source}"):
            annotate_from_file(folder.path.parent, folder.name, source)
