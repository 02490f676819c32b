"""Commands, presets, files and links that README and docs show exist as they are shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from doc_blocks import FENCED, shell_blocks

from recbole_tpad.cli import build_parser
from recbole_tpad.evaluation.suite import read_suite
from recbole_tpad.presets import preset_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)?(#[^)\s]+)?\)")


def commands(program: str, *, in_sentences: bool = False) -> list[tuple[Path, str]]:
    """(page, command line) of every shown call of a program, continuation lines joined."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [line for block in shell_blocks(text) for line in block.splitlines()]
        if in_sentences:
            blocks += [" ".join(words.split()) for words in INLINE.findall(FENCED.sub("", text))]
        for line in blocks:
            words = line.partition("#")[0].strip()
            start = words.find(program)
            if start >= 0 and (start == 0 or words[start - 1] in " -"):
                found.append((page, words[start:]))
    return found


OURS = commands("recbole-tpad ")
SCRIPTS = commands("python perf/", in_sentences=True)


def test_there_is_something_to_check() -> None:
    assert len(OURS) > 20
    assert len(SCRIPTS) > 1


@pytest.mark.parametrize(
    ("page", "line"), OURS, ids=[f"{page.stem}-{n}" for n, (page, _) in enumerate(OURS)]
)
def test_commands_are_accepted_as_shown(page: Path, line: str) -> None:
    words = shlex.split(line.replace("…", "X"))[1:]
    # A pipe or a background sign ends the command.
    for end in ("|", "&&", "&", ";", ">"):
        words = words[: words.index(end)] if end in words else words
    parsed, rest = build_parser().parse_known_args(words)
    assert all(re.fullmatch(r"--[\w.]+=.*", word) for word in rest), rest
    assert parsed.takes_keys or not rest, f"{page.name}: {rest}"
    generator, suite = getattr(parsed, "generator", None), getattr(parsed, "suite", None)
    if generator is not None and not generator.endswith((".yaml", "X", "NAME")):
        assert generator in preset_names("generator")
    if suite is not None and not suite.endswith((".yaml", "X", "NAME")):
        assert read_suite(suite)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


@pytest.mark.parametrize(
    ("page", "line"), SCRIPTS, ids=[f"{page.stem}-{n}" for n, (page, _) in enumerate(SCRIPTS)]
)
def test_measurement_scripts_have_the_options_shown(page: Path, line: str) -> None:
    words = shlex.split(line)
    script = ROOT / words[1]
    assert script.is_file(), f"{page.name}: {words[1]}"
    source = script.read_text(encoding="utf-8")
    for option in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
        assert f'"{option}"' in source, f"{page.name}: {words[1]} has no {option}"


def test_every_page_can_be_found_from_the_readme() -> None:
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        seen.add(page)
        for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            file = (page.parent / target).resolve() if target else page
            if file.suffix == ".md" and file not in seen and file.is_file():
                left.append(file)
    assert set(PAGES) <= seen, {p.name for p in set(PAGES) - seen}
