from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.observe_data import make_batch, make_group
from visd.observe.plots import Curve, Series, draw, smooth
from visd.observe.records import RolloutRecord, rollout_records, token_traces
from visd.observe.report import (
    FrameView,
    GroupView,
    HeadlineRow,
    MarkedBox,
    Report,
    RolloutView,
    token_views,
    write_report,
)

EVIL = "</div><script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }}"


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.tags if name in (a.get("class") or "").split()]


def record_of(text: str) -> RolloutRecord:
    group = make_group("a", [1.0, 0.0], lengths=[3, 7])
    record = rollout_records(1, [group], token_traces(*make_batch([group])))[0]
    return replace(record, text=text, pieces=[text, "", "b"], question=text, sample_id=text)


def page_of(path: Path, report: Report) -> Page:
    write_report(path, report)
    return Page(path.read_text(encoding="utf-8"))


def frames(n: int = 4) -> list[FrameView]:
    return [FrameView(0.5 * i, np.full((20, 40, 3), 60 * i, dtype=np.uint8)) for i in range(n)]


def test_untrusted_text_is_shown_and_never_interpreted(tmp_path: Path) -> None:
    record = record_of(EVIL)
    assert record.report is not None
    record = replace(record, report={**record.report, "feedback": EVIL}, parts={EVIL: 1.0})
    box = MarkedBox(EVIL, (0.1, 0.1, 0.5, 0.5), 0.4, gold=False)
    group = GroupView(frames(), [RolloutView(record, [box])])
    page = page_of(
        tmp_path / "r.html", Report(EVIL, {EVIL: EVIL}, [HeadlineRow(EVIL, EVIL, EVIL, EVIL, 1)], (), [group])
    )
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    curve = Curve("accuracy", "step", [Series("visd", [1, 2], [0.1, 0.4])])
    path = tmp_path / "r.html"
    page = page_of(path, Report("t", {}, (), [curve], [GroupView(frames(), [RolloutView(record_of("x"))])]))
    for _, attrs in page.tags:
        assert "href" not in attrs
        assert (attrs.get("src") or "data:").startswith("data:")
    assert all(url.startswith("data:image/") for url in re.findall(r"url\((.*?)\)", path.read_text()))
    assert "http://" not in path.read_text() and "https://" not in path.read_text()


def test_frames_are_small_pictures_with_their_times(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    page = page_of(path, Report("t", {}, groups=[GroupView(frames(3), [RolloutView(record_of("x"))])]))
    urls = re.findall(r"url\(data:image/jpeg;base64,(.*?)\)", path.read_text())
    assert [Image.open(io.BytesIO(base64.b64decode(url))).size for url in urls] == [(168, 84)] * 3
    assert "0.00 s" in page.text and "1.00 s" in page.text


def test_boxes_lie_on_the_nearest_frame_and_windows_mark_theirs(tmp_path: Path) -> None:
    gold = MarkedBox("red square", (0.25, 0.5, 0.75, 1.0), 0.6, gold=True)
    claim = MarkedBox("red square", (0.2, 0.5, 0.7, 1.0), 1.4, gold=False, iou=0.8)
    view = RolloutView(record_of("x"), [claim], [(0.9, 1.1)])
    page = page_of(tmp_path / "r.html", Report("t", {}, groups=[GroupView(frames(), [view], [gold], [(0.4, 1.1)])]))
    kinds = [attrs.get("class") or "" for _, attrs in page.tags]
    # The group's strip has all frames with gold evidence alone, the rollout's only the claimed ones.
    assert [kind for kind in kinds if "frame " in kind or kind.startswith("box")] == [
        "frame g0f0",
        "frame g0f1 in-gold",
        "box gold",
        "frame g0f2 in-gold",
        "frame g0f3",
        "frame g0f2 in-gold",
        "frame g0f3",
        "box",
    ]
    assert page.of_class("box")[0]["style"] == "left: 25.00%; top: 50.00%; width: 50.00%; height: 50.00%"
    assert page.of_class("box")[1]["title"] == "claimed: red square at 1.40 s, IoU 0.80"
    assert "claimed window: 0.90 s to 1.10 s" in page.text


def test_tokens_are_coloured_by_their_advantage() -> None:
    record = record_of("x")
    assert record.tokens is not None
    trace = replace(
        record.tokens, advantage=[0.5, -1.0, 0.0], logp=[-1.0, -2.0, -3.0], gap=[0.25, 0.0, 0.0], clipped=[True] * 3
    )
    views = token_views(replace(record, tokens=trace), largest=1.0)
    assert views[0]["style"] == "background: rgba(46, 160, 67, 0.375)"
    assert views[1]["style"] == "background: rgba(218, 54, 51, 0.750)"
    assert views[2]["style"].endswith("0.000)")
    assert "teacher log-prob -0.7500" in views[0]["title"] and "weight clipped" in views[0]["title"]
    assert token_views(replace(record, tokens=None), 1.0)[0] == {"text": "x", "style": "", "title": ""}


def test_curves_draw_to_a_png_and_smoothing_looks_back_only() -> None:
    png = draw(
        [
            Curve(str(i), "step", [Series("a", [1, 2], [0, 1], [0, 0.5], [0.5, 1]), Series("b", [1], [1])])
            for i in range(3)
        ]
    )
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert smooth([0.0, 1.0, 2.0, 6.0], 3) == [0.0, 0.5, 1.0, 3.0]
