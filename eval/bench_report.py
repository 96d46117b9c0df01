"""A benchmark run as Markdown and as one HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.intervals import Interval
from visd.observe.files import write_atomic

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, head, rows

STYLE = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ccc}"


def write_reports(out: Path, document: Mapping[str, Any]) -> str:
    """Write `report.md` and `report.html`; returns the Markdown."""
    title = f"{document['title']} ({document['split']}), {document['settings']['model']}"
    tables, notes = tables_of(document), list(document["notes"])
    if document["protocol"]["changed"]:
        notes.append(f"not the protocol as it is: {', '.join(document['protocol']['changed'])} changed")
    text = markdown(title, tables, notes)
    write_atomic(out / "report.md", text)
    write_atomic(out / "report.html", page(title, tables, notes))
    return text


def tables_of(document: Mapping[str, Any]) -> list[Table]:
    """Scores, answers that could not be read, categories, protocol."""
    result, protocol = document["result"], document["protocol"]
    named = {"**" + n + "**" if n == document["headline"] else n: v for n, v in result["scores"].items()}
    head = ("", "score", "units")
    tables: list[Table] = [("Scores (95 % bootstrap intervals)", head, _rows({**named, **result["several"]}))]
    counts = [(f"read: {name}", str(count)) for name, count in result["statuses"].items()]
    counts += [(f"dropped: {name} (counted as wrong)", str(count)) for name, count in result["dropped"].items()]
    tables.append(("Answers", ("", "count"), [*counts, ("truncated, share", str(Interval(**result["truncated"])))]))
    tables += [(f"By {name}", head, _rows(values)) for name, values in result["by_category"].items()]
    video = ", ".join(f"{name} {value:g}" for name, value in protocol["video"].items()) or "none"
    facts = [
        ("protocol", f"{protocol['name']}: {protocol['source']}"),
        ("video", video),
        ("decoding", ", ".join(f"{name} {value}" for name, value in protocol["decoding"].items())),
        ("prompt hash", document["prompt_hash"]),
        (
            "data",
            ", ".join(f"{name} at {commit}" for name, commit in (document.get("hub") or {}).items()) or "local copy",
        ),
        ("versions", ", ".join(f"{name} {value}" for name, value in document["versions"].items())),
    ]
    return [*tables, ("Protocol", ("", ""), facts)]


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, str(Interval(**value)), str(value["n"])) for name, value in values.items()]


def markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    lines = [f"# {title}", ""]
    for name, head, rows in tables:
        lines += [f"## {name}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows] + [""]
    return "\n".join([*lines, *(f"* {note}" for note in notes)]) + "\n"


def page(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell.replace('**', ''))}</{tag}>" for cell in cells) + "</tr>"

    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    for name, head, rows in tables:
        body = "".join(row(cells, "td") for cells in rows)
        parts.append(f"<h2>{html.escape(name)}</h2><table>{row(head, 'th')}{body}</table>")
    parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    return "\n".join(parts) + "\n"
