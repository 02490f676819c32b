"""Runs an annotator over a data set folder and writes the keywords with their provenance."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import recbole_tpad
from recbole_tpad.data import DatasetFolder
from recbole_tpad.data.normalisation import Normaliser
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path, sha256_file, write_json
from recbole_tpad.keywords.annotator import STATUSES, Annotator, Answer, Outcome, Usage
from recbole_tpad.keywords.cache import RECORDS
from recbole_tpad.keywords.file import FileAnnotator
from recbole_tpad.keywords.vocabulary import VocabularyReport, vocabulary

FOLDER = "keywords"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class AnnotationReport:
    """What a run came to.

    Attributes:
        statuses: status → number of items, in the order of `STATUSES`, without zeros.
        problems: up to three (item id, reason) of each status but ok.
    """

    annotator: str
    visual: bool
    statuses: Mapping[str, int]
    problems: Mapping[str, Sequence[tuple[str, str]]]
    vocabulary: VocabularyReport
    usage: Usage | None = None
    stopped: str = ""
    unknown: int = 0

    @property
    def annotated(self) -> int:
        """Items with keywords."""
        return self.statuses.get("ok", 0)

    def __str__(self) -> str:
        lines = [f"keywords from '{self.annotator}':"]
        for status, count in self.statuses.items():
            lines.append(f"  {status:<10} {count:>9,}  {_meaning(status)}")
            for item_id, reason in self.problems.get(status, ()):
                lines.append(f"    {item_id}: {reason}")
        if self.unknown:
            lines.append(f"  {self.unknown:,} lines were for items that the data set does not have")
        if self.usage is not None:
            lines.append(f"  {_usage_text(self.usage)}")
        lines += [f"  {line}" for line in str(self.vocabulary).splitlines()]
        if not self.visual:
            lines.append(
                "  These keywords are not visual: they repeat the text. Use them as a control, or "
                "where there are no images."
            )
        return "\n".join(lines)


def _meaning(status: str) -> str:
    return {str(name): text for name, text in STATUSES.items()}[status]


def _usage_text(usage: Usage) -> str:
    text = f"{usage.asked:,} asked now, {usage.reused:,} answered by the cache"
    if usage.prompt_tokens or usage.completion_tokens:
        text += (
            f"; {usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} completion tokens"
        )
    if usage.cost is not None:
        text += f", cost {usage.cost:,.4f}"
        if usage.in_all.get("cost"):
            text += f" ({usage.in_all['cost']:,.4f} with earlier runs)"
    return text


@dataclass
class _Kept:
    """Normalised keywords and what became of the other items."""

    keywords: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Answer] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


def annotate(
    folder: DatasetFolder,
    annotator: Annotator,
    *,
    normaliser: Normaliser | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> AnnotationReport:
    """Annotate every item and make the result the data set's keywords.

    Writes ``keywords.jsonl`` and ``keywords.json`` (provenance) and keeps both as
    ``keywords/<name>.jsonl`` and ``.json``; ``keywords/<name>.problems.jsonl`` has the items
    without keywords. The present keywords stay where no item got any.

    Args:
        folder: the data set.
        annotator: where keywords come from.
        normaliser: how phrases are spelled; None: the defaults.
        name: under which the result is kept; None: the annotator's.
        limit: only the first so many items; the others count as not asked.

    Raises:
        InputError: no item got keywords (with the table of statuses), a name that is no file
            name, or what the annotator raises.
    """
    name = annotator.name if name is None else name
    if not _NAME.fullmatch(name) or name == Path(RECORDS).stem or name.endswith(".problems"):
        raise InputError(
            f"A result cannot be kept as '{name}'. Use letters, digits, '.', '_' and '-'; "
            "'answers' and names that end in '.problems' are taken."
        )
    rules = normaliser or Normaliser()
    outcome = annotator.annotate(folder.items[:limit])
    kept = _keep(folder, outcome, rules)
    told = vocabulary(kept.keywords, folder.items, rules.language)
    report = AnnotationReport(
        annotator=annotator.name,
        visual=annotator.visual,
        statuses={str(s): kept.statuses[s] for s in STATUSES if kept.statuses[s]},
        problems=_examples(kept.problems),
        vocabulary=told,
        usage=outcome.usage,
        stopped=outcome.stopped,
        unknown=outcome.unknown,
    )
    place = folder.path / FOLDER
    _write_lines(
        place / f"{name}.problems.jsonl",
        ({"item_id": a.item_id, "status": a.status, "reason": a.reason} for a in kept.problems),
    )
    if not report.annotated:
        why = f" {outcome.stopped}" if outcome.stopped else ""
        raise InputError(f"No item got keywords.{why}\n{report}")
    record = _provenance(annotator, rules, report)
    for stem in (place / name, folder.path / "keywords"):
        lines = stem.with_name(f"{stem.name}.jsonl")
        _write_lines(
            lines,
            (
                {"item_id": i, "keywords": kept.keywords[i], "annotator": annotator.name}
                for i in sorted(kept.keywords)
            ),
        )
        write_json(stem.with_name(f"{stem.name}.json"), record | {"sha256": sha256_file(lines)})
    return report


def annotate_from_file(data_path: str | Path, dataset: str, source: Path) -> AnnotationReport:
    """Take a data set's keywords from a file, as they are written there.

    Args:
        data_path: folder of data set folders.
        dataset: data set name.
        source: as for `FileAnnotator`.

    Raises:
        InputError: as `annotate` and `FileAnnotator.annotate`.
    """
    folder = DatasetFolder.open(data_path, dataset)
    return annotate(folder, FileAnnotator(source), normaliser=Normaliser(enabled=False))


def _keep(folder: DatasetFolder, outcome: Outcome, rules: Normaliser) -> _Kept:
    """Normalise the answers; one status an item, also for those without an answer."""
    answers = {answer.item_id: answer for answer in outcome.answers}
    kept = _Kept()
    for item_id in folder.item_ids:
        answer = answers.get(item_id) or Answer(item_id, "not asked", reason=outcome.stopped)
        if answer.status == "ok":
            phrases = rules(answer.keywords)
            if phrases:
                kept.keywords[item_id] = phrases
            else:
                answer = Answer(item_id, "empty", reason="nothing but stop words")
        if answer.status == "empty":
            kept.keywords[item_id] = []
        if answer.status != "ok":
            kept.problems.append(answer)
        kept.statuses[answer.status] += 1
    return kept


def _examples(problems: Iterable[Answer]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for answer in problems:
        listed = found.setdefault(answer.status, [])
        if answer.reason and len(listed) < _EXAMPLES:
            listed.append((answer.item_id, answer.reason))
    return found


def _provenance(
    annotator: Annotator, rules: Normaliser, report: AnnotationReport
) -> dict[str, object]:
    usage = report.usage
    return {
        "format": 1,
        **annotator.describe(),
        "annotator": annotator.name,
        "visual": annotator.visual,
        "normalisation": rules.describe(),
        "statuses": dict(report.statuses),
        "stopped": report.stopped or None,
        "usage": None
        if usage is None
        else {
            "asked": usage.asked,
            "reused": usage.reused,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost": usage.cost,
            "in_all": usage.in_all,
        },
        "vocabulary": report.vocabulary.to_json(),
        "recbole_tpad": recbole_tpad.__version__,
    }


def _write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=True) + "\n")
