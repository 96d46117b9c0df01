"""Decoding: the right frames, their exact times, their sizes; and every damaged file is refused by its reason."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.media_files import frame_number, write_sound, write_trimmed, write_video
from visd.config import VideoSection
from visd.media import container as container_module
from visd.media.backends import pyav
from visd.media.errors import DecodeError
from visd.media.video import decode, decode_image
from visd.types import Frames

SETTINGS = VideoSection(fps=2, min_frames=4, max_frames=16, min_pixels=784, max_pixels=28 * 28 * 16)


def read(path: Path, settings: VideoSection = SETTINGS, **clip: float | None) -> Frames:
    arguments = {"start": None, "end": None, "fps": None, **clip}
    return decode(path, settings=settings, factor=28, **arguments)


def reason(path: Path, settings: VideoSection = SETTINGS, **clip: float | None) -> str:
    with pytest.raises(DecodeError) as caught:
        read(path, settings, **clip)
    assert path.name in str(caught.value)
    return caught.value.reason


def numbers(frames: Frames) -> list[float]:
    return [frame_number(frame) for frame in frames.pixels]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", 40, 8)


class TestFrames:
    def test_evenly_sampled_with_their_times(self, clip: Path) -> None:
        frames = read(clip)
        assert frames.indices == (0, 4, 9, 13, 17, 22, 26, 30, 35, 39)
        assert frames.times == tuple(index / 8 for index in frames.indices)
        assert numbers(frames) == pytest.approx(frames.indices, abs=0.5)
        assert (frames.source_fps, frames.duration) == (8.0, 5.0)
        assert frames.pixels.shape == (10, 56, 56, 3) and frames.pixels.dtype == np.uint8

    def test_fractional_rate(self, tmp_path: Path) -> None:
        frames = read(write_video(tmp_path / "ntsc.mp4", 48, Fraction(24000, 1001)))
        assert frames.source_fps == pytest.approx(24000 / 1001)
        assert len(frames.times) == 4
        assert frames.times == tuple(float(index * Fraction(1001, 24000)) for index in frames.indices)

    def test_variable_rate_gives_true_times(self, tmp_path: Path) -> None:
        stamps = [0, 100, 250, 900, 1000, 2000, 2100, 3500, 3600, 3900]
        path = write_video(tmp_path / "vfr.mp4", 10, 10, stamps=stamps)
        frames = read(path, replace(SETTINGS, fps=10))
        assert frames.times == tuple(stamp / 1000 for stamp in stamps)
        assert frames.source_fps == pytest.approx(10 / frames.duration)

    @pytest.mark.parametrize("options", [{"bf": "3", "g": "5"}, {"bf": "2", "g": "250"}, {"bf": "0", "g": "1"}])
    @pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
    def test_gop_and_b_frames(self, tmp_path: Path, options: dict[str, str], suffix: str) -> None:
        path = write_video(tmp_path / f"gop.{suffix}", 48, 24, options=options)
        frames = read(path, replace(SETTINGS, fps=3))
        assert numbers(frames) == pytest.approx(frames.indices, abs=0.5)
        assert frames.times == pytest.approx([index / 24 for index in frames.indices], abs=1e-3)

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_jumps_decode_fewer_frames(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
        path = write_video(tmp_path / f"long.{suffix}", 200, 25, options={"g": "25", "bf": "2", "sc_threshold": "0"})
        checks: list[int] = []
        monkeypatch.setattr(container_module.Deadline, "check", lambda self: checks.append(1))
        monkeypatch.setattr(pyav, "WORTH_A_JUMP", 10_000)
        straight = read(path, replace(SETTINGS, fps=0.5))
        without = len(checks)
        checks.clear()
        monkeypatch.setattr(pyav, "WORTH_A_JUMP", 8)
        jumping = read(path, replace(SETTINGS, fps=0.5))
        assert np.array_equal(straight.pixels, jumping.pixels) and straight.times == jumping.times
        assert len(checks) < without - 50

    @pytest.mark.parametrize("flags", ["open-gop=1:scenecut=0:keyint=25:min-keyint=25", "intra-refresh=1:keyint=25"])
    @pytest.mark.parametrize("suffix", ["mp4", "ts"])
    def test_a_jump_that_misses_is_made_good(self, tmp_path: Path, suffix: str, flags: str) -> None:
        """Seek tables of these files lead past the frame; reading on from the beginning finds it all the same."""
        path = write_video(tmp_path / f"open.{suffix}", 100, 25, options={"bf": "3", "x264-params": flags})
        frames = read(path, replace(SETTINGS, fps=1))
        whole = read(path, replace(SETTINGS, fps=25, max_frames=100))
        assert np.array_equal(frames.pixels, whole.pixels[list(frames.indices)])
        late = read(path, start=3.08)  # a jump that leads past the end
        assert np.array_equal(late.pixels, whole.pixels[list(late.indices)])

    @pytest.mark.parametrize(
        ("name", "codec"), [("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("b.webm", "libvpx-vp9"), ("a.flv", "flv1")]
    )
    def test_other_containers(self, tmp_path: Path, name: str, codec: str) -> None:
        frames = read(write_video(tmp_path / name, 24, 8, codec=codec))
        assert numbers(frames) == pytest.approx(frames.indices, abs=1.1)
        assert frames.times == pytest.approx([index / 8 for index in frames.indices])

    def test_frames_hidden_by_an_edit_list_are_left_out(self, tmp_path: Path) -> None:
        write_trimmed(tmp_path / "trimmed.mp4")
        frames = read(tmp_path / "trimmed.mp4")
        assert frames.times == pytest.approx([number / 25 for number in frames.indices])
        assert numbers(frames) == pytest.approx([(number + 10) % 58 for number in frames.indices], abs=0.5)

    def test_a_stream_without_stamps_is_refused(self, tmp_path: Path) -> None:
        assert reason(write_video(tmp_path / "raw.h264")) == "unreadable"

    def test_ten_bit_and_sound(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "deep.mp4", 16, 8, pixel_format="yuv420p10le", audio=True)
        assert numbers(read(path)) == pytest.approx(read(path).indices, abs=0.5)

    def test_name_with_spaces_and_accents(self, tmp_path: Path) -> None:
        assert len(read(write_video(tmp_path / "ein schöner: film 日.mp4")).times) == 4

    def test_wrong_extension_is_no_matter(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "right.mp4")
        assert len(read(path.rename(tmp_path / "wrong.jpg")).times) == 4


class TestRotation:
    @pytest.mark.parametrize("angle", [90, 180, 270])
    def test_upright(self, tmp_path: Path, angle: int) -> None:
        upright = read(write_video(tmp_path / "plain.mp4", size=(112, 56))).pixels[0]
        turned = read(write_video(tmp_path / "turned.mp4", size=(112, 56), rotation=angle)).pixels[0]
        expected = np.rot90(upright, angle // 90)
        assert turned.shape == expected.shape
        assert np.abs(turned.astype(int) - expected).mean() < 2


class TestSizes:
    def test_odd_size(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "odd.mp4", size=(67, 45), pixel_format="yuv444p")
        assert read(path).pixels.shape[1:3] == (56, 56)

    def test_pixel_budgets(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "wide.mp4", size=(224, 112))
        assert read(path).pixels.shape[1:3] == (56, 140)  # at most 12,544 pixels a frame
        tight = replace(SETTINGS, total_pixels=2 * 28 * 56 * 2)
        assert read(path, tight).pixels.shape[1:3] == (28, 56)
        assert read(path, replace(SETTINGS, min_pixels=10**5, max_pixels=10**6)).pixels.shape[1:3] == (224, 448)

    def test_never_less_than_one_patch(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "small.mp4", size=(64, 48))
        assert read(path, replace(SETTINGS, max_pixels=784)).pixels.shape[1:3] == (28, 28)

    def test_hopeless_aspect_ratio(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "strip.mkv", size=(808, 4), codec="ffv1")
        assert reason(path) == "bad_size"


class TestClips:
    def test_start_and_end(self, clip: Path) -> None:
        frames = read(clip, start=1.0, end=3.0)
        assert frames.indices[0] == 8 and frames.indices[-1] == 24
        assert frames.times[0] == 1.0 and frames.times[-1] == 3.0
        assert frames.duration == pytest.approx(17 / 8)
        assert numbers(frames) == pytest.approx(frames.indices, abs=0.5)

    def test_rate_of_one_item(self, clip: Path) -> None:
        assert len(read(clip, fps=3.0).times) == 14

    @pytest.mark.parametrize(
        ("start", "end"), [(6.0, None), (5.0, 8.0), (0.0, 7.0), (2.0, 2.0), (3.0, 1.0), (-1.0, 2.0), (None, 0.0)]
    )
    def test_outside_the_file(self, clip: Path, start: float | None, end: float | None) -> None:
        assert reason(clip, start=start, end=end) == "bad_clip"

    def test_end_rounded_up_is_accepted(self, clip: Path) -> None:
        assert read(clip, end=5.1).indices[-1] == 39

    def test_clip_with_too_few_frames(self, clip: Path) -> None:
        assert reason(clip, start=1.0, end=1.3) == "too_short"


class TestDamaged:
    def test_missing_empty_and_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "folder.mp4").mkdir()
        os.mkfifo(tmp_path / "pipe.mp4")
        assert reason(tmp_path / "gone.mp4") == "missing"
        assert reason(tmp_path / "empty.mp4") == "empty"
        assert reason(tmp_path / "folder.mp4") == "unreadable"
        assert reason(tmp_path / "pipe.mp4") == "unreadable"

    def test_no_media(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("this is no film\n" * 100)
        assert reason(tmp_path / "text.mp4") == "unreadable"

    def test_playlists_are_not_followed(self, tmp_path: Path) -> None:
        secret = write_video(tmp_path / "secret.ts")
        (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n")
        (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{secret.name}'\n")
        assert reason(tmp_path / "list.mp4") == "unreadable"
        assert reason(tmp_path / "concat.mp4") == "unreadable"

    def test_sound_only(self, tmp_path: Path) -> None:
        assert reason(write_sound(tmp_path / "sound.mp4")) == "no_video_stream"

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_fewer_frames_than_asked_for(self, tmp_path: Path, count: int) -> None:
        path = write_video(tmp_path / "short.mp4", count)
        assert reason(path) == "too_short"
        if count > 1:
            assert len(read(path, replace(SETTINGS, min_frames=2)).times) == 2

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
    def test_truncated_with_the_header_at_the_end(self, tmp_path: Path, share: float) -> None:
        path = truncated(write_video(tmp_path / "cut.mp4", 40), share)
        assert reason(path) == "unreadable"

    @pytest.mark.parametrize("share", [0.6, 0.8, 0.97])
    def test_truncated_with_the_header_in_front(self, tmp_path: Path, share: float) -> None:
        path = write_video(tmp_path / "cut.mp4", 40, size=(320, 240), container_options={"movflags": "faststart"})
        assert reason(truncated(path, share)) == "truncated"

    def test_truncated_after_the_clip_is_no_matter(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "cut.mp4", 40, size=(320, 240), container_options={"movflags": "faststart"})
        whole = read(path, start=0.0, end=1.0)
        part = read(truncated(path, 0.8), start=0.0, end=1.0)
        assert np.array_equal(whole.pixels, part.pixels)

    @pytest.mark.parametrize("share", [0.3, 0.6])
    def test_truncated_matroska(self, tmp_path: Path, share: float) -> None:
        path = write_video(tmp_path / "cut.mkv", 80, size=(320, 240))
        assert reason(truncated(path, share)) == "truncated"

    def test_damaged_in_the_middle(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "hole.mp4", 40, size=(320, 240), options={"g": "250"})
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle - 400 : middle + 400] = b"\xff" * 800
        path.write_bytes(data)
        assert reason(path, replace(SETTINGS, fps=8, max_frames=40)) in ("unreadable", "truncated")

    def test_lost_piece_of_a_broadcast(self, tmp_path: Path) -> None:
        """Frames that lean on the damaged one are refused up to the next keyframe; those outside its reach are not."""
        path = write_video(tmp_path / "lost.ts", 40, 8, noise=True, options={"g": "16", "bf": "0", "sc_threshold": "0"})
        with av.open(str(path)) as container:
            places = [packet.pos for packet in container.demux(video=0) if packet.size]
        data = path.read_bytes()
        cut = places[20] + 10 * 188
        path.write_bytes(data[:cut] + data[cut + 3 * 188 :])
        dense = replace(SETTINGS, fps=8, max_frames=40)
        assert reason(path, dense) == "unreadable"
        assert reason(path, dense, start=3.0, end=3.875) == "unreadable"
        assert read(path, dense, start=0.0, end=2.0).indices[-1] == 16
        assert read(path, dense, start=4.0).indices[0] == 32

    def test_cut_between_two_frames(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "cut.mp4", 40, container_options={"movflags": "faststart"})
        with av.open(str(path)) as container:
            places = [packet.pos for packet in container.demux(video=0) if packet.size]
        path.write_bytes(path.read_bytes()[: places[30]])
        assert reason(path) == "truncated"
        assert read(path, end=3.0).indices[-1] == 24

    def test_time_limit(self, clip: Path) -> None:
        assert reason(clip, replace(SETTINGS, timeout=1e-9)) == "timeout"


class TestImages:
    def test_size_transparency_and_orientation(self, tmp_path: Path) -> None:
        Image.new("RGBA", (60, 120), (0, 0, 0, 0)).save(tmp_path / "clear.png")
        frames = decode_image(tmp_path / "clear.png", settings=SETTINGS, factor=28)
        assert frames.pixels.shape == (1, 112, 56, 3) and frames.pixels.min() == 255
        turned = Image.new("RGB", (112, 56))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "turned.jpg", exif=exif)
        assert decode_image(tmp_path / "turned.jpg", settings=SETTINGS, factor=28).pixels.shape == (1, 112, 56, 3)

    def test_damaged(self, tmp_path: Path) -> None:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)).save(tmp_path / "cut.png")
        truncated(tmp_path / "cut.png", 0.5)
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "empty.png").touch()
        found = {}
        for name in ("cut.png", "text.png", "empty.png", "gone.png"):
            with pytest.raises(DecodeError, match=name) as caught:
                decode_image(tmp_path / name, settings=SETTINGS, factor=28)
            found[name] = caught.value.reason
        assert found == {
            "cut.png": "truncated",
            "text.png": "unreadable",
            "empty.png": "empty",
            "gone.png": "missing",
        }


def truncated(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
