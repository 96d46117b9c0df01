"""`python -m data_tools convert`: public data formats to the canonical manifest, and back.

    python -m data_tools convert --from video_r1 Video-R1-260k.json train.jsonl --num-workers 8
    python -m data_tools convert --from manifest --to ms_swift train.jsonl swift.jsonl

OUT is a manifest in JSON Lines (.jsonl) or Parquet (.parquet). Rows that cannot be used are listed in OUT.dropped.jsonl
with their reason; what was found and changed is counted in OUT.report.json. If more rows than --max-dropped cannot be
used, OUT is not written. An interrupted conversion goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.convert.base import Options
from data_tools.convert.boxes import CONVENTIONS
from data_tools.convert.formats import FORMATS
from data_tools.convert.work import Conversion, find_convention
from data_tools.io.cli import check_output, guarded, summary, tool_parser
from data_tools.io.manifests import check_kind, replacing, write_manifest
from data_tools.io.passes import Pass, add_pass_arguments, beside, run_pass, write_dropped
from data_tools.io.rows import check_input, load_json
from data_tools.io.shards import ShardedWork, ShardReport
from visd import strict_json
from visd.data.fields import ManifestError
from visd.observe.files import write_atomic
from visd.types import ANSWER_TYPES, VisdError


def main(arguments: list[str]) -> int:
    chosen = _parser().parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:13} {format.about}" for name, format in FORMATS.items())
    parser = tool_parser("convert", f"{__doc__}\nformats:\n{formats}")
    parser.add_argument(
        "input", type=Path, help="file to read: .json, .jsonl, .parquet, .csv, .tsv, .txt or a folder of `datasets`"
    )
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--from", dest="source_format", choices=FORMATS, required=True, help="format of the input")
    writable = [name for name, format in FORMATS.items() if format.write]
    parser.add_argument("--to", dest="target_format", choices=writable, default="manifest", help="format of OUT")
    parser.add_argument("--source", default="", help="source of the samples where rows name none; default: the format")
    parser.add_argument("--root", type=Path, help="data root, to read the sizes of files that boxes need")
    parser.add_argument("--boxes", choices=("auto", *CONVENTIONS), default="auto", help="how boxes are written")
    parser.add_argument(
        "--answer-type", choices=ANSWER_TYPES, default="", help="of all answers; default: by their text"
    )
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="name of a column")
    parser.add_argument("--strip", default="", metavar="PREFIX", help="beginning of media paths to cut off")
    parser.add_argument("--folder", default="", help="folder to put before every media path")
    parser.add_argument("--spans", type=Path, help="NExT-GQA: gsub_*.json")
    parser.add_argument("--paths", type=Path, help="NExT-GQA: map_vid_vidorID.json")
    parser.add_argument("--durations", type=Path, help="Charades-STA: CSV with columns id and length")
    parser.add_argument("--ids", choices=("keep", "row"), default="keep", help="row: source and row number instead")
    parser.add_argument("--max-dropped", type=float, default=0.0, help="largest share of rows that may be dropped")
    add_pass_arguments(parser)
    return parser


def _main(chosen: argparse.Namespace) -> int:
    out: Path = chosen.out
    if chosen.target_format == "manifest":
        check_kind(out)
    elif out.suffix not in (".jsonl", ".json"):
        raise VisdError(f"{out}: {chosen.target_format} is written as .jsonl or .json")
    check_output(out, chosen.overwrite)
    check_input(chosen.input, folder=True)
    conversion, found = _conversion(chosen)
    return run_pass(
        out,
        [chosen.input],
        conversion,
        Pass.chosen(chosen),
        lambda work, report: _finish(work, report, chosen, found),
        name="convert",
    )


def _conversion(chosen: argparse.Namespace) -> tuple[Conversion, dict[str, Any]]:
    """The conversion, and what is said about boxes in its report."""
    columns = dict(_pair(item) for item in chosen.column)
    options = Options(
        source=chosen.source or chosen.source_format,
        columns=columns,
        answer_type=chosen.answer_type,
        strip=chosen.strip,
        folder=chosen.folder,
        extra=_extra(chosen),
    )
    conversion = Conversion(
        chosen.source_format, chosen.target_format, options, chosen.boxes, chosen.root, chosen.ids == "row"
    )
    if chosen.boxes != "auto":
        return conversion, {"convention": chosen.boxes, "by": "given"}
    convention, boxes = find_convention(conversion, chosen.input)
    by = "documented" if FORMATS[chosen.source_format].boxes != "auto" else "found"
    return replace(conversion, convention=convention), {"convention": convention, "by": by if boxes else "no boxes"}


def _pair(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours or not theirs:
        raise VisdError(f"--column {text!r}: write OURS=THEIRS, as in question=problem")
    return ours, theirs


def _extra(chosen: argparse.Namespace) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    for name in ("spans", "paths", "durations"):
        path: Path | None = getattr(chosen, name)
        if path is None:
            continue
        if name not in FORMATS[chosen.source_format].files:
            raise VisdError(f"--{name}: {chosen.source_format} has no such file")
        extra[name] = _durations(path) if name == "durations" else load_json(path)
        if not isinstance(extra[name], dict):
            raise ManifestError(f"{path}: must hold one object")
    return extra


def _durations(path: Path) -> dict[str, float]:
    check_input(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["id"]: float(row["length"]) for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ManifestError(f"{path}: must be CSV in UTF-8 with the columns id and length ({error!r})") from error


def _finish(work: ShardedWork, report: ShardReport, chosen: argparse.Namespace, boxes: dict[str, Any]) -> int:
    out: Path = chosen.out
    listed, dropped = write_dropped(work, report, out), sum(report.dropped.values())
    if dropped > chosen.max_dropped * report.rows:
        raise VisdError(
            f"{chosen.input}: {summary(report)}; see {listed}. {out} is not written: repair the rows, or allow them "
            f"with --max-dropped {-(-dropped * 1000 // report.rows) / 1000:g}"
        )
    if not report.written:
        raise VisdError(f"{chosen.input}: holds no row that can be used; see {listed}")
    work.check_ids()
    if chosen.target_format == "manifest":
        write_manifest(out, work.lines())
    else:
        _write_rows(out, work.lines())
    about = {"rows": report.rows, "written": report.written, "dropped": report.dropped, "notes": report.notes}
    write_atomic(beside(out, "report.json"), strict_json.dumps({**about, "boxes": boxes}, indent=2) + "\n")
    print(f"{out}: {summary(report)}")
    if report.notes.get("boxes"):
        print(f"boxes: {boxes['convention']} ({boxes['by']}), written as 0-1")
    return 0


def _write_rows(out: Path, lines: Iterable[str]) -> None:
    """Rows of another format, as lines or as one list."""
    if out.suffix == ".jsonl":
        write_manifest(out, lines)
        return
    with replacing(out) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(lines):
            file.write((",\n" if number else "[\n") + line)
        file.write("\n]\n")
