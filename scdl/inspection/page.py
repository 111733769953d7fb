"""The HTML page of a report, which needs no other file: tables, and histograms as SVG."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scdl.dataset import summary
from scdl.inspection.distributions import Distribution, Labels, number
from storage_backends import __version__

if TYPE_CHECKING:
    from scdl.inspection.survey import DataReport

#: Size of a histogram, and height of its axis, in units of the SVG.
_WIDTH, _HEIGHT, _AXIS = 360, 110, 18
#: Archives of a collection that are listed.
_MOST_MEMBERS = 50

_STYLE = """
:root { color-scheme: light dark; --bar: #2a6fb0; --line: #8886; }
@media (prefers-color-scheme: dark) { :root { --bar: #6db1ee; } }
.scdl-report { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; }
.scdl-report h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
.scdl-report h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.scdl-report table { border-collapse: collapse; width: 100%; }
.scdl-report th, .scdl-report td { text-align: left; padding: .15rem .8rem .15rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
.scdl-report th { font-weight: 600; width: 14rem; }
.scdl-report .bars th { font-weight: 400; width: 45%; }
.scdl-report .bars td { white-space: nowrap; width: 1%; }
.scdl-report .bars td:last-child { width: auto; }
@media (max-width: 30rem) { .scdl-report th { width: 8rem; } }
.scdl-report .figures { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.scdl-report figure { margin: 0; }
.scdl-report figcaption { font-weight: 600; overflow-wrap: anywhere; }
.scdl-report figcaption small { font-weight: 400; display: block; }
.scdl-report svg { width: 100%; height: auto; }
.scdl-report rect { fill: var(--bar); }
.scdl-report text { fill: currentColor; font-size: 11px; }
.scdl-report .bar { background: var(--bar); height: .6rem; margin-top: .4rem; }
"""


def page(report: DataReport) -> str:
    """A whole document."""
    title = html.escape(str(report.description["path"]))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n</head>\n"
        f'<body style="margin: 1rem">\n{body(report)}\n</body>\n</html>\n'
    )


def body(report: DataReport) -> str:
    """The contents of the page, with their style."""
    about, n = report.description, report.n_sampled
    sample = f"all {n:,} cells" if n == about["n_obs"] else f"{n:,} cells drawn at random"
    counted: dict[str, Distribution | Labels | None] = {
        "genes per cell": report.genes_per_cell,
        "sum per cell": report.total_per_cell,
        "values": report.values,
        "cells with a gene, %": report.cells_per_gene,
    }
    sections = [
        f"<h1>{html.escape(str(about['path']))}</h1>",
        summary.table(_contents(about)),
        _section("Cells, genes and values", _figures(counted)),
        _section("obs", _figures(report.obs)),
        _section("Graphs", summary.table(_graphs(report.graphs))),
        _section("Integrity", _integrity(report)),
        _section("Size on disk", _sizes(about)),
        _section("Archives", _members(about)),
        f"<p><small>Distributions: {sample}. Written by scdl {__version__}.</small></p>",
    ]
    return f'<style>{_STYLE}</style>\n<div class="scdl-report">{"".join(sections)}</div>'


def _section(title: str, content: str) -> str:
    """A section; empty without content."""
    empty = summary.table({})
    return "" if content in ("", empty) else f"<h2>{html.escape(title)}</h2>{content}"


def _contents(about: Mapping[str, Any]) -> summary.Facts:
    n_obs, n_vars, nnz = about["n_obs"], about["n_vars"], about["nnz"]
    kinds = ", ".join(f"{name} {dtype}" for name, dtype in about["dtypes"].items())
    columns = {name: table["columns"] for name, table in about.get("tables", {}).items()}
    return {
        "kind": f"{about['kind']} ({', '.join(about.get('backends') or [about['backend']])})",
        "size": summary.size(n_obs, n_vars),
        "stored values": f"{nnz:,}, {nnz / max(n_obs, 1):,.0f} per cell",
        "dtypes": kinds,
        "on disk": f"{about['nbytes']:,} bytes, {about['nbytes'] / max(n_obs, 1):,.0f} per cell",
        "matrix of the source": ", ".join(about.get("matrices", [])),
        "source files": summary.names(about.get("sources", [])),
        **{f"columns of {name}": ", ".join(found) for name, found in columns.items()},
        "obsm": ", ".join(about.get("obsm", [])),
        "further elements": ", ".join(about.get("elements", [])),
    }


def _figures(found: Mapping[str, Distribution | Labels | None]) -> str:
    figures = [_figure(name, one) for name, one in found.items() if one is not None]
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def _figure(name: str, found: Distribution | Labels) -> str:
    scale = "; bins of equal ratios" if getattr(found, "is_logarithmic", False) else ""
    caption = f"{html.escape(name)}<small>{html.escape(f'{found}{scale}')}</small>"
    drawn = _histogram(found) if isinstance(found, Distribution) else _label_bars(found)
    return f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>"


def _histogram(found: Distribution) -> str:
    """Bars of equal width, with the first, middle and last edge below them."""
    if not found.counts:
        return ""
    n, highest = len(found.counts), max(found.counts)
    width = _WIDTH / n
    bars = [
        f'<rect x="{i * width:.1f}" y="{_HEIGHT * (1 - count / highest):.1f}" '
        f'width="{width * 0.9:.1f}" height="{_HEIGHT * count / highest:.1f}">'
        f"<title>{number(found.edges[i])} to {number(found.edges[i + 1])}: {count:,}</title></rect>"
        for i, count in enumerate(found.counts)
    ]
    ticks = [(0, "start", 0), (_WIDTH / 2, "middle", n // 2), (_WIDTH, "end", n)]
    labels = [
        f'<text x="{x:.0f}" y="{_HEIGHT + _AXIS - 4}" text-anchor="{anchor}">'
        f"{number(found.edges[edge])}</text>"
        for x, anchor, edge in (ticks if n > 1 else ticks[:1])
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _AXIS}" role="img">{"".join(bars + labels)}</svg>'
    )


def _label_bars(found: Labels) -> str:
    most = max(found.largest.values(), default=1)
    rows = [_bar(name, f"{count:,}", count / most) for name, count in found.largest.items()]
    if found.n_labels > len(found.largest):
        rest = found.n - sum(found.largest.values())
        rows.append(_bar(f"{found.n_labels - len(found.largest):,} more", f"{rest:,}", 0))
    return f'<table class="bars">{"".join(rows)}</table>'


def _bar(name: str, value: str, share: float) -> str:
    bar = f'<div class="bar" style="width: {share:.1%}"></div>' if share else ""
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td><td>{bar}</td></tr>"


def _graphs(graphs: Mapping[str, Mapping[str, float]]) -> summary.Facts:
    return {
        key: f"{stats['mean']:.1f} neighbours per cell, {stats['least']:,} to {stats['most']:,}; "
        f"{stats['without']:,} cells without"
        for key, stats in graphs.items()
    }


def _integrity(report: DataReport) -> str:
    if report.verification is None:
        return "<p>Not verified.</p>"
    found = report.verification
    lines = [f"{finding.verdict.name.lower()}: {finding.message}" for finding in found.findings]
    how = "every byte" if found.deep else "structure"
    verdict = f"<p>{found.verdict.name.capitalize()} ({how} verified).</p>"
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return verdict + (f"<ul>{listed}</ul>" if listed else "")


def _sizes(about: Mapping[str, Any]) -> str:
    """Bytes of arrays and tables, with a bar for each, the largest first."""
    parts = {**about.get("arrays", {}), **about.get("tables", {})}
    sizes = {name: int(part["nbytes"]) for name, part in parts.items()}
    most = max(sizes.values(), default=0)
    rows: Sequence[str] = [
        _bar(name, f"{size:,} bytes", size / max(most, 1))
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]
    return f'<table class="bars">{"".join(rows)}</table>' if rows else ""


def _members(about: Mapping[str, Any]) -> str:
    members = about.get("members", [])
    facts = {
        member["name"]: summary.size(member["n_obs"], member["n_vars"])
        for member in members[:_MOST_MEMBERS]
    }
    if len(members) > _MOST_MEMBERS:
        facts[f"and {len(members) - _MOST_MEMBERS:,} more"] = "archives"
    return summary.table(facts)
