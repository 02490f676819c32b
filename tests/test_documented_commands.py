"""The commands of README and docs run as they are shown, in their order, on a small shop.

A command that needs what is not here says so on its own line (``# needs a GPU …``, ``# needs an
endpoint``, ``# needs a download``) or on the page's head; everything else is run. Settings that
only make it small are added, and nothing is taken away. Suites are planned (``--dry-run``), which
refuses whatever a run would refuse; other tests run them.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from doc_blocks import shell_blocks
from tiny_catalogue import TINY

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.demo.shop import make_shop

ROOT = Path(__file__).resolve().parents[1]
# Files that a page shows; their first line is a comment with their name.
FILE = re.compile(r"^```(?:python|yaml)\n# (\w+\.(?:py|yaml))\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"#\s*needs (a GPU|an endpoint|a download|a model)")
# Pages whose head says that they are not run here, and the words that say it.
ELSEWHERE = {"reproducing.md": "not been run", "results.md": "data sets named there"}
SMALL_TOWERS = [
    *(f"--backbone.tiny.{key}={value}" for key, value in TINY.items()),
    "--backbone.lora.rank=4",
    *(f"--{stage}.loop.steps=2" for stage in ("knowledge", "transition", "alignment")),
    "--knowledge.batch_size=8",
    "--transition.pairs_per_step=8",
    "--alignment.batch_size=8",
    "--alignment.projection=8",
]
SOME_ITEM = "B000123"
SMALL_MODEL = ["--epochs=1", "--train_batch_size=64"]

pytestmark = pytest.mark.slow


def shown(page: Path) -> list[str]:
    """Lines of the page's shell blocks, continuation lines joined."""
    blocks = shell_blocks(page.read_text(encoding="utf-8"))
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def ours(page: Path) -> list[str]:
    return [line for line in shown(page) if line.startswith("recbole-tpad ")]


PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if ours(page) and page.name not in ELSEWHERE
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop's raw files, and its data set folder with a store of small towers."""
    folder = tmp_path_factory.mktemp("raw")
    shop = make_shop(folder / "raw", items=60, users=150, sessions=400)
    data = ["--dataset", "shop", "--data_path", str(folder / "dataset")]
    for command in (
        ["convert", "amazon", *data, "--reviews", shop.reviews, "--meta", shop.meta],
        ["images", *data, "--from", shop.images],
        ["keywords", *data, "--file", shop.keywords],
        ["embed", *data, "--generator", "tpad-tiny", *SMALL_TOWERS],
    ):
        assert main([str(word) for word in command]) == 0
    return folder


@pytest.fixture
def workspace(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """What a reader of the page has at hand, as the working folder."""
    shutil.copytree(raw / "dataset", tmp_path / "dataset")
    shutil.copytree(raw / "dataset", tmp_path / "demo" / "dataset")
    shutil.copy(raw / "raw" / "reviews.json.gz", tmp_path / "Grocery_5.json.gz")
    shutil.copy(raw / "raw" / "meta.json.gz", tmp_path / "meta_Grocery.json.gz")
    shutil.copy(raw / "raw" / "keywords.csv", tmp_path / "keywords.csv")
    shutil.copy(ROOT / "tests" / "stock_run_recbole.py", tmp_path / "run_recbole.py")
    page: Path = request.getfixturevalue("page")
    if "--dataset grocery" in page.read_text(encoding="utf-8"):
        grocery(raw, tmp_path)
    own_tables(raw, tmp_path)
    for name, content in FILE.findall(page.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grocery(raw: Path, folder: Path) -> None:
    """The data set 'grocery' with towers under the name of the paper's preset."""
    data = ["--dataset", "grocery", "--data_path", str(folder / "dataset")]
    files = ["--reviews", raw / "raw" / "reviews.json.gz", "--meta", raw / "raw" / "meta.json.gz"]
    for command in (
        ["convert", "amazon", *data, *files],
        ["images", *data, "--from", raw / "raw" / "images"],
        ["keywords", *data, "--file", raw / "raw" / "keywords.csv", "--name", "openai"],
        ["embed", *data, "--generator", "tpad-tiny", "--name", "tpad", *SMALL_TOWERS],
    ):
        assert main([str(word) for word in command]) == 0
    ids = DatasetFolder.open(folder / "dataset", "grocery").item_ids
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    words = ["embed", *data, "--generator", "random", "--name", "tpad-2"]
    assert main(words) == 0
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((len(ids), 6)))


def own_tables(raw: Path, folder: Path) -> None:
    """clicks.csv, items.csv, pictures, and vectors of the page on one's own data."""
    inter = pd.read_csv(raw / "dataset/shop/shop.inter", sep="\t")
    clicks = pd.DataFrame(
        {
            "user_id": inter["session_id:token"].str.partition("_")[0],
            "item_id": inter["item_id:token"],
            "timestamp": inter["timestamp:float"].astype(int),
        }
    )
    clicks.to_csv(folder / "clicks.csv", index=False)
    items = sorted(set(clicks["item_id"]))
    with (folder / "items.csv").open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["item_id", "title", "brand", "category", "price", "description"])
        for k, item in enumerate(items):
            kind = ("mug", "bowl", "plate")[k % 3]
            rows.writerow([item, f"Blue {kind} no {k}", "Acme", "Kitchen > Mugs", 12.5, "For tea"])
    (folder / "pictures").mkdir()
    images = raw / "dataset/shop/images"
    for file in sorted(images.iterdir()):
        shutil.copy(file, folder / "pictures" / file.name)
    np.save(folder / "vectors.npy", np.random.default_rng(1).standard_normal((len(items), 6)))
    if not (folder / "ids.txt").exists():
        (folder / "ids.txt").write_text("\n".join(items) + "\n")


def first_item(folder: Path) -> str:
    """An item of the data set 'grocery'."""
    lines = (folder / "dataset" / "grocery" / "items.jsonl").read_text(encoding="utf-8")
    return str(json.loads(lines.partition("\n")[0])["item_id"])


def completed(line: str, folder: Path) -> list[str]:
    """The shown command's words, with what makes it small, and names of files that exist."""
    words = shlex.split(line.partition("#")[0])[1:]
    words = [
        str(max(folder.glob(word.replace("…", "*")))) if "saved/" in word and "…" in word else word
        for word in words
    ]
    words = [first_item(folder) if word == SOME_ITEM else word for word in words]
    option = dict(itertools.pairwise(words))
    towers = words[0] == "embed" and str(option.get("--generator", "")).startswith("tpad")
    if towers and "--update" not in words:
        words += SMALL_TOWERS
    elif words[0] in ("run", "evaluate", "exec"):
        given = {word.partition("=")[0] for word in words}
        words += [key for key in SMALL_MODEL if key.partition("=")[0] not in given]
        if words[0] == "evaluate" and "--dry-run" not in words:
            words.append("--dry-run")
    return words


def stand_in(words: list[str], raw: Path) -> list[str] | None:
    """What leaves the same files as a command that cannot be run here."""
    if words[0] == "images":
        return [*words, "--from", str(raw / "raw" / "images")]
    if words[0] == "embed":
        place = words.index("tpad")
        return [*words[:place], "tpad-tiny", "--name", "tpad", *words[place + 1 :]]
    return None


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_commands_run_as_shown(
    page: Path, workspace: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = 0
    for line in ours(page):
        words = completed(line, workspace)
        if NEEDS.search(line):
            instead = stand_in(words, raw)
            assert instead is None or main(instead) == 0
            continue
        if words[0] == "convert" and (workspace / "dataset" / words[3]).exists():
            words.append("--overwrite")
        status = main(words)
        assert status == 0, f"{line}\n{capsys.readouterr().err[-2000:]}"
        run += 1
    assert run > 0


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_pages_that_are_not_run_say_so(name: str) -> None:
    head = (ROOT / "docs" / name).read_text(encoding="utf-8")[:2500]
    assert ELSEWHERE[name] in " ".join(head.split())
