"""Charades-STA (arXiv 1705.02101, `jiyanggao/TALL`): lines of text.

    AO8RW 0.0 6.9##a person is putting a book on a shelf.

`--durations Charades_v1_train.csv` (columns id and length) gives the lengths: moments that pass the end by less than
two seconds are cut back, counted, and the others refused, as are reversed ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from visd.types import Answer, Evidence, Media, Message, Sample

LINE = re.compile(r"(\S+)\s+(-?[\d.]+)\s+(-?[\d.]+)\s*##\s*(.+)")
QUESTION = "<video>When does this happen: {}"
OVERHANG = 2.0
"""s by which a moment may pass the end."""


def read(row: Row, context: Context) -> Iterator[Sample]:
    match = LINE.fullmatch(row.text("line").strip())
    if match is None:
        raise Unusable("line", "a line must be VIDEO START END##SENTENCE")
    video, start, end = match[1], float(match[2]), float(match[3])
    duration = context.options.extra.get("durations", {}).get(video)
    if not 0 <= start < end:
        raise Unusable("window", f"{start}-{end} s is reversed, empty or begins before 0")
    if duration is not None and end > duration:
        if end > duration + OVERHANG or start >= duration:
            raise Unusable("window", f"{start}-{end} s does not lie in the video, {duration} s")
        context.note("window_cut_to_duration")
        end = duration
    yield sample(
        row,
        context,
        id="",
        family="temporal grounding",
        media=[Media("video", context.path(f"{video}.mp4"))],
        messages=[Message("user", QUESTION.format(match[4].strip()))],
        answer=Answer("window", (start, end)),
        evidence=Evidence(windows=((start, end),)),
        meta={"duration": duration, "query": match[4].strip()},
    )


FORMAT = Format("charades_sta", "Charades-STA: VIDEO START END##SENTENCE, --durations CSV", read, files=("durations",))
