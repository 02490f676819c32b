"""The HTML page around the sections: one file, no script, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recbole_tpad.report.markup import Html, join, tag

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2327;--soft:#59636b;--rule:#dfe3e6;
--grid:#e8ebed;--best:#eef6ef;--good:#1a7f4b;--bad:#b3402f;--note:#fff8e6;--note-rule:#e3c878;
--c0:#7a858d;--c1:#2f6fb7;--c2:#d97a1e;--c3:#2f9168;--c4:#b0508f;--c5:#8a6a2f;--c6:#5a57c2;
--c7:#c2453d;--c8:#b9c0c5;--c9:#0f8b9d;--c10:#e06a9c;--c11:#6b8e23;--c12:#1f1f6b;--c13:#d4a017;
--c14:#7b3f00;--c15:#35b3e6}
@media (prefers-color-scheme:dark){:root{--bg:#15191c;--card:#1c2226;--ink:#e6eaec;--soft:#9aa6ae;
--rule:#333c42;--grid:#2a3238;--best:#1f3327;--good:#5fc58f;--bad:#ec8a78;--note:#2e2a1c;
--note-rule:#7c6a33;--c0:#98a4ac;--c1:#6aa9ee;--c2:#f0a35a;--c3:#5fc39a;--c4:#de8cc2;--c5:#c9a867;
--c6:#9a98f0;--c7:#ef857d;--c8:#4d575e;--c9:#3fc3d3;--c10:#f59ac0;--c11:#a5c95a;--c12:#c8ccff;
--c13:#f0cc57;--c14:#c98a5e;--c15:#7fd0f5}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 64px}
header p,.soft,figcaption,.caption{color:var(--soft)}
header p{margin:0}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.15rem;margin:44px 0 8px;padding-top:14px;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:26px 0 6px}
h4{font-size:.875rem;margin:0 0 6px;font-weight:600}
p{margin:6px 0 10px}
nav{margin:14px 0 0;font-size:.875rem;display:flex;flex-wrap:wrap;gap:4px 16px}
a{color:var(--c1)}
.caption{font-size:.875rem;max-width:100ch}
.finding{background:var(--card);border:1px solid var(--rule);border-left:4px solid var(--c1);
border-radius:6px;padding:16px 20px;margin-top:22px}
.finding .headline{font-size:1.2rem;line-height:1.35;font-weight:600;margin:0 0 10px}
.finding ul{margin:0;padding-left:1.15em}.finding li{margin:3px 0}
.cautions{font-size:.875rem;color:var(--soft);border-top:1px solid var(--rule);margin-top:12px;
padding-top:10px}
.protocol{font-size:.875rem;display:flex;flex-wrap:wrap;gap:4px 22px;margin:16px 0 0;padding:0;
list-style:none}
.protocol b,.facts b{font-weight:600}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:6px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--rule);
vertical-align:top}
thead th{border-top:0;color:var(--soft);font-weight:600;vertical-align:bottom}
th.name,td.name{text-align:left}
td.wrap{white-space:normal;text-align:left;min-width:16em}
tbody tr.inner>*{border-top-style:dotted}
td.best{background:var(--best);font-weight:700}
.sd{color:var(--soft);font-weight:400}
.change{display:block;font-size:.75rem;color:var(--soft);font-weight:400}
.change.good{color:var(--good);font-weight:600}.change.bad{color:var(--bad);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:14px;
margin:12px 0}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:6px;
padding:12px 12px 8px;break-inside:avoid;min-width:0}
figure.wide{grid-column:span 2}
figcaption{font-size:.8125rem;margin-top:4px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.8125rem;margin:8px 0 0;padding:0;
list-style:none}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;
background:currentColor;vertical-align:-1px}
.legend span{color:var(--ink)}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--soft)}
svg .end,svg .row-name{text-anchor:end}svg .middle,svg .axis{text-anchor:middle}
svg .row-name{fill:var(--ink)}
.grid{stroke:var(--grid);stroke-width:1}
.frame{fill:none;stroke:var(--rule)}
.line{fill:none;stroke:currentColor;stroke-width:1.6;stroke-linejoin:round;opacity:.85}
.dot{fill:currentColor;stroke:var(--card);stroke-width:1}
.seed{fill:currentColor;opacity:.5}
.bar{fill:currentColor}
.point{fill:currentColor;opacity:.72}.point:hover{opacity:1;stroke:var(--ink)}
.line:hover{stroke-width:3;opacity:1}
.whisker{stroke:currentColor;stroke-width:2}.ink{color:var(--ink);stroke-width:1.2}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}.c8{color:var(--c8)}
.c9{color:var(--c9)}.c10{color:var(--c10)}.c11{color:var(--c11)}.c12{color:var(--c12)}
.c13{color:var(--c13)}.c14{color:var(--c14)}.c15{color:var(--c15)}
.facts{font-size:.875rem;display:flex;flex-wrap:wrap;gap:2px 22px;margin:4px 0 10px;padding:0;
list-style:none}
.empty{color:var(--soft);font-size:.875rem;padding:12px 0}
.warn{background:var(--note);border:1px solid var(--note-rule);border-radius:6px;padding:8px 14px;
font-size:.875rem}
pre{background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:10px 14px;
font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;
overflow-wrap:anywhere}
.example{background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:12px 16px;
margin:12px 0;font-size:.8125rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:4px 28px}
.items{margin:0 0 10px;padding:0;list-style-position:inside}
.items li{padding:2px 6px;border-radius:4px}.items li.hit{background:var(--best);font-weight:600}
.across{list-style:none;display:flex;flex-wrap:wrap;gap:2px 8px}
.items img{height:28px;width:28px;object-fit:cover;border-radius:3px;margin-right:6px;
vertical-align:middle}
.why{display:block;color:var(--soft);font-weight:400;font-size:.75rem;padding-left:1.4em}
@media (max-width:760px){figure.wide{grid-column:span 1}}
@media (max-width:480px){main{padding:18px 12px 48px}h1{font-size:1.3rem}.finding{padding:12px 14px}
.finding .headline{font-size:1.05rem}table{font-size:.8125rem}th,td{padding:6px 7px}
thead th{white-space:normal}.extra{display:none}td .sd{display:block;font-size:.72rem}
td.wrap{min-width:9.5em}}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#bbb;
--grid:#ddd;--best:#eee;--good:#14663c;--bad:#8f3224;--c0:#6b757c;--c1:#245a96;--c2:#b8640f;
--c3:#247552;--c4:#8f3f74;--c5:#6f5524;--c6:#47449f;--c7:#9f352e;--c8:#aab2b7;--c9:#0b6a78;
--c10:#b04c78;--c11:#52701a;--c12:#15154a;--c13:#a37a0e;--c14:#5f3000;--c15:#1d86b0}
body{font-size:11pt}main{max-width:none;padding:0}nav{display:none}.scroll{overflow:visible}
table{font-size:8pt}th,td{padding:3px 5px}h2,h3,.caption,.legend,.facts{break-after:avoid}
tr,.example li{break-inside:avoid}
.charts{grid-template-columns:repeat(2,1fr)}*{print-color-adjust:exact}}
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: anchor, heading and content."""

    anchor: str
    title: str
    body: Html


def page(title: str, lead: Html, sections: Sequence[Section]) -> str:
    """Return the complete HTML document.

    Args:
        title: of the document; escaped.
        lead: what stands above the first section.
        sections: in order; each gets a link at the top.
    """
    links = [tag("a", section.title, href=f"#{section.anchor}") for section in sections]
    bodies = [
        tag("section", tag("h2", section.title), section.body, id=section.anchor)
        for section in sections
    ]
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            # Belt and braces for untrusted titles: even markup that slipped in could load nothing.
            tag(
                "meta",
                http_equiv="Content-Security-Policy",
                content="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
            ),
            tag("title", title),
            tag("style", Html(STYLE)),
        ],
        "\n",
    )
    body = tag("main", lead, tag("nav", links), bodies)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def figure(title: str, chart: Html, note: str | None = None, *, wide: bool = False) -> Html:
    """Return a chart with its heading and an optional note under it."""
    caption = tag("figcaption", note) if note else None
    return tag("figure", tag("h4", title), chart, caption, class_="wide" if wide else None)


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Return a legend of (colour class, label) pairs."""
    items = [tag("li", tag("i"), tag("span", label), class_=colour) for colour, label in entries]
    return tag("ul", items, class_="legend")


def facts(pairs: Sequence[tuple[str, object]], kind: str = "facts") -> Html:
    """Return a line of 'label value' facts."""
    items = [
        tag("li", tag("span", f"{label} ", class_="soft"), tag("b", value))
        for label, value in pairs
    ]
    return tag("ul", items, class_=kind)


def caption(words: str) -> Html:
    """Return an explanatory paragraph."""
    return tag("p", words, class_="caption")
