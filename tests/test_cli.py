"""The command line: exit status, one message, nothing executed, nothing heavy loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_catalogue import write_catalogue

import recbole_tpad
from recbole_tpad.cli import build_parser, main
from recbole_tpad.store import open_store

COMMANDS = [
    "convert",
    "images",
    "keywords",
    "describe",
    "embed",
    "embeddings",
    "run",
    "rerank",
    "exec",
    "explain",
    "evaluate",
    "report",
    "demo",
]
SOURCES = ["amazon", "sequences", "table", "movielens", "session-ids"]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset")
    write_catalogue(path)
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command line that must end with status 2 and one message; return the message."""
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("recbole-tpad: ")
    assert "Traceback" not in said.err
    assert said.err.count("recbole-tpad: ") == 1
    return said.err


def test_the_commands_are_those_of_the_manual() -> None:
    assert list(build_parser().commands) == COMMANDS


@pytest.mark.parametrize(
    "arguments", [[], *([c] for c in COMMANDS), *(["convert", s] for s in SOURCES)]
)
def test_help_everywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--help"])
    assert done.value.code == 0
    assert "usage: recbole-tpad" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == recbole_tpad.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embd"], "Unknown command 'embd'. Did you mean 'embed'?"),
        (["frobnicate"], "Known: convert, images"),
        ([], "COMMAND"),
        (["convert"], "SOURCE"),
        (["convert", "amazn"], "amazn"),
        (["convert", "table", "--dataset", "x"], "--interactions"),
        (["convert", "movielens", "--dataset", "x", "--folder", "absent"], "no MovieLens files"),
        (["convert", "session-ids", "--dataset", "x", "--train", "a"], "--test"),
        (["embed"], "--dataset"),
        (["embeddings"], "ACTION"),
        (["embeddings", "imprt"], "imprt"),
        (["embeddings", "import", "--dataset", "shop", "--name", "x"], "--array"),
        (["embed", "--dataset", "shop"], "--generator"),
        (["images", "--dataset", "shop", "--form", "x"], "--from"),
        (["demo", "--fold=x"], "Unknown option '--fold'. Did you mean '--folder'"),
        (["demo", "--seed", "x"], "--seed"),
        (["demo", "extra"], "Unknown argument 'extra'"),
        (["report", "--outptu=x", "r.json"], "Did you mean '--output'"),
        (["keywords", "--dataset", "shop", "--annotator", "fil"], "--annotator"),
        (["keywords", "--dataset", "shop", "--compare", "a"], "--compare"),
        (["run", "--dataset", "shop", "--model", "DIMO", "--epochs", "3"], "--key=value"),
        (["run", "--dataset", "s", "--model", "D", "--epochs=1", "--epochs=2"], "given twice"),
        (["run", "--dataset", "s", "--model", "D", "--=2"], "Unknown argument '--=2'"),
    ],
)
def test_bad_command_lines(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *arguments)


def test_unknown_names(data_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["embed", "--generator", "random"],
        ["run", "--model", "Popularity"],
        ["evaluate", "--suite", "demo"],
        ["keywords", "--file", "k.csv"],
        ["images", "--from", str(data_path)],
        ["images"],
        ["describe"],
    ):
        said = fails(capsys, *command, "--dataset", "shp", "--data_path", data_path)
        assert "Did you mean 'shop'?" in said, command
    shop = ["--dataset", "shop", "--data_path", data_path]
    assert "Did you mean 'tfidf'" in fails(capsys, "embed", *shop, "--generator", "tfid")
    assert "Did you mean 'DIMO'" in fails(capsys, "run", *shop, "--model", "DIM0")
    assert "Did you mean 'demo'" in fails(capsys, "evaluate", *shop, "--suite", "dmo")
    said = fails(capsys, "embed", *shop, "--generator", "random", "--dimensoin=3")
    assert "Did you mean 'dimension'" in said
    said = fails(capsys, "run", *shop, "--model", "Popularity", "--train_bach_size=3")
    assert "Did you mean 'train_batch_size'" in said
    said = fails(capsys, "run", *shop, "--model", "SASRec", "--item_embeddings", "none-such")
    assert "none-such" in said
    assert "absent.json" in fails(capsys, "report", data_path / "absent.json")
    assert "--file" in fails(capsys, "keywords", *shop)


def test_values_are_never_executed(
    data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "executed"
    shop = ["--dataset", "shop", "--data_path", data_path]
    for code in (
        f"__import__('pathlib').Path('{trace}').touch()",
        f"open('{trace}', 'w')",
        f"!!python/object/apply:os.system ['touch {trace}']",
        f"$(touch {trace})",
    ):
        fails(capsys, "embed", *shop, "--generator", "random", f"--dimension={code}")
        fails(capsys, "run", *shop, "--model", "Popularity", f"--train_batch_size={code}")
        assert not trace.exists(), code


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["embd", "--debug"], ["--debug", "embd"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback (most recent call last)" in said
        assert said.splitlines()[-1].startswith("recbole-tpad: Unknown command 'embd'")


def test_an_interrupt_is_not_an_error_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_tpad.demo.line.run_demo", interrupt)
    assert main(["demo"]) == 130
    assert "finished work is kept" in capsys.readouterr().err


def test_embedding_from_the_command_line(
    data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = ["--dataset", "shop", "--data_path", str(data_path)]
    given = ["--generator", "random", "--name", "control", "--dimension=5", "--seed=3"]
    assert main(["embed", *shop, *given]) == 0
    assert re.search(r"control: 24 items, random 5, role other\n", capsys.readouterr().out)
    store = open_store(data_path / "shop" / "embeddings" / "control")
    assert store.manifest.modalities == {"random": 5}


def test_vectors_come_and_go_from_the_command_line(
    data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = ["--dataset", "shop", "--data_path", str(data_path), "--name"]
    lines = [f"i{k:02d} {k + 1} 0.5\n" for k in reversed(range(24))]
    (tmp_path / "v.txt").write_text("".join(lines))
    assert main(["embeddings", "import", *shop, "mine", "--array", str(tmp_path / "v.txt")]) == 0
    assert "mine: 24 items, vectors 2, role other" in capsys.readouterr().out
    assert main(["embeddings", "info", *shop, "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modalities"] == {"vectors": 2}
    assert main(["embeddings", "verify", *shop, "mine"]) == 0
    assert "every one of 24 items" in capsys.readouterr().out
    out = tmp_path / "out.itememb"
    assert main(["embeddings", "export", *shop, "mine", "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text().splitlines()[:2] == [
        "item_emb_id:token\titem_emb:float_seq",
        "i00\t1 0.5",
    ]
    assert "no known format" in fails(
        capsys, "embeddings", "export", *shop, "mine", "--output", tmp_path / "out.csv"
    )
    assert "Did you mean 'mine'" in fails(capsys, "embeddings", "verify", *shop, "min")


def test_keywords_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_catalogue(tmp_path, n_items=4)
    (tmp_path / "k.csv").write_text("item_id,keywords\ni00,red;round\n")
    shop = ["--dataset", "shop", "--data_path", str(tmp_path)]
    assert main(["keywords", *shop, "--file", str(tmp_path / "k.csv")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "keywords from 'file':"
    assert said[1].split()[:2] == ["ok", "1"]
    assert "2 different keywords of 2 words for 1 items, 2.0 an item" in said[-3] + said[-4]


@pytest.mark.parametrize("call", ["pass", "main(['--help'])", "main(['embd'])"])
def test_nothing_heavy_is_loaded_for_a_message(call: str) -> None:
    code = (
        "import sys\nfrom recbole_tpad.cli import main\n"
        f"try:\n    {call}\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'recbole', 'transformers', 'pandas', 'numpy'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_transformers_bars_stay_out_of_logs() -> None:
    program = (
        "from recbole_tpad.cli import main\n"
        "main(['nothing'])\n"
        "from transformers.utils import logging\n"
        "raise SystemExit(logging.is_progress_bar_enabled())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
