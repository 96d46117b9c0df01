"""NExT-GQA (arXiv 2309.01327, `doc-doc/NExT-GQA`): CSV, with spans and paths in JSON files beside it.

    video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
    spans  gsub_val.json      {video: {"duration", "fps", "location": {qid: [[start, end], ..]}}}
    paths  map_vid_vidorID.json  {video: "folder/name"}

`answer` is the text of an option, or its number (from 0) as in NExT-QA. The spans' `duration` is rounded to seconds and
some spans pass it, so the duration is frame_count / fps where both are there; spans are cut back to it, counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.text import read_answer, read_options, with_options, with_placeholders
from visd.data.manifest import LETTERS
from visd.types import Evidence, Media, Message, Sample, Window

OPTIONS = ("a0", "a1", "a2", "a3", "a4")
OVERHANG = 2.0
"""s by which a span may pass the end."""


def read(row: Row, context: Context) -> Iterator[Sample]:
    video, qid = row.text("video_id"), row.text("qid")
    paths = context.options.extra.get("paths", {})
    name = paths.get(video, video)
    media = [Media("video", context.path(name if name.endswith((".mp4", ".mkv", ".webm")) else f"{name}.mp4"))]
    spans = context.options.extra.get("spans", {}).get(video)
    duration = _duration(row, spans)
    options = read_options([row.text(column) for column in OPTIONS])
    said = row.text("answer")
    if said.isdecimal() and said not in options:
        said = LETTERS[int(said)] if int(said) < len(options) else said
    answer = read_answer(said, "letter", options, context)
    question = with_options(row.text("question"), options)
    yield sample(
        row,
        context,
        id=f"{video}_{qid}",
        family=row.any_text("type") or "nextgqa",
        media=media,
        messages=[Message("user", with_placeholders([question], media)[0])],
        answer=answer,
        evidence=Evidence(windows=tuple(_windows(spans, qid, duration, context))),
        meta={"duration": duration},
    )


def _duration(row: Row, spans: Any) -> float | None:
    if spans is None:
        return None
    frames, fps = row.peek("frame_count"), spans.get("fps")
    if frames and fps:
        return max(round(int(frames) / float(fps), 3), float(spans["duration"]) - 1)
    return float(spans["duration"])


def _windows(spans: Any, qid: str, duration: float | None, context: Context) -> list[Window]:
    windows = []
    for start, end in (spans or {}).get("location", {}).get(qid, []):
        if duration is not None and end > duration:
            if end > duration + OVERHANG or start >= duration:
                raise Unusable("window", f"the span {start}-{end} s does not lie in the video, {duration} s")
            context.note("window_cut_to_duration")
            end = duration
        windows.append((float(start), float(end)))
    if spans is not None and not windows:
        context.note("without_span")
    return windows


FORMAT = Format(
    "nextgqa", "NExT-GQA: CSV, --spans gsub_*.json, --paths map_vid_vidorID.json", read, files=("spans", "paths")
)
