"""The formats, by name."""

from __future__ import annotations

from data_tools.convert import (
    charades_sta,
    columns,
    easyr1,
    llava,
    manifest,
    ms_swift,
    nextgqa,
    stgr,
    tinyllava,
    trl,
    verl,
    video_r1,
    vlm_r1,
)
from data_tools.convert.base import Format

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        *(llava, video_r1, stgr, ms_swift, trl, verl, easyr1, vlm_r1, tinyllava, nextgqa, charades_sta, columns),
        manifest,
    )
}
