"""report.html from results.json, and from nothing else."""

from __future__ import annotations

from pathlib import Path

from recbole_tpad.files import atomic_path
from recbole_tpad.report.comparisons import comparisons_section
from recbole_tpad.report.data_card import data_section
from recbole_tpad.report.examples import examples_section
from recbole_tpad.report.finding import find
from recbole_tpad.report.generators import generators_section
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import page
from recbole_tpad.report.reference import reference_section
from recbole_tpad.report.sections import (
    Colours,
    cost_section,
    curves_section,
    environment_section,
    failures_section,
    protocol_line,
    results_section,
)
from recbole_tpad.report.slices import slices_section
from recbole_tpad.report.spaces import spaces_section
from recbole_tpad.results import Results, read_results


def write_report(results_path: str | Path, output_path: str | Path | None = None) -> Path:
    """Write one self-contained HTML file: no scripts, no network, equal input gives equal bytes.

    Args:
        results_path: results.json, format 1.
        output_path: default: report.html beside it.

    Returns:
        Path of the report.

    Raises:
        InputError: a results file that is unreadable or damaged (names the file and the key).
    """
    results = read_results(results_path)
    output = Path(output_path) if output_path is not None else results.path.parent / "report.html"
    with atomic_path(output) as temporary:
        temporary.write_text(render(results), encoding="utf-8")
    return output


def render(results: Results) -> str:
    """Return the report as HTML."""
    groups = results.groups()
    colours = Colours(groups)
    name = results.content["dataset"]["name"]
    finding = find(results)
    lead = join(
        [
            tag(
                "header",
                tag("h1", f"Recommendation on {name}"),
                tag("p", "Sequential recommenders with and without item embeddings"),
            ),
            tag(
                "div",
                tag("p", finding.headline, class_="headline"),
                tag("ul", [tag("li", line) for line in finding.details])
                if finding.details
                else None,
                tag("div", [tag("p", line) for line in finding.cautions], class_="cautions")
                if finding.cautions
                else None,
                class_="finding",
            ),
            protocol_line(results, groups),
        ]
    )
    sections = [
        results_section(results, groups, colours) if groups else None,
        slices_section(groups, colours) if any(r.slices for g in groups for r in g.rows) else None,
        reference_section(results),
        comparisons_section(results),
        examples_section(results.content.get("examples")),
        curves_section(results, groups, colours),
        spaces_section(groups),
        generators_section(results.content["generators"]),
        cost_section(results, groups, colours) if groups else None,
        data_section(results.content.get("data")),
        failures_section(results),
        environment_section(results),
    ]
    return page(f"{name}: recommendation report", Html(lead), [s for s in sections if s])
