"""Prompts as tensors: what is in them, what inserted text changes, and how unusable samples are dropped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen3Config

from tests.media_files import write_video
from visd.config import FramesSection, PromptSection, VideoSection
from visd.media.families.qwen_vl import QwenVL
from visd.media.processor import PromptProcessor
from visd.types import DroppedSample, Media, Message, Prompt, VisdError

VIDEO = VideoSection(fps=2, min_frames=4, max_frames=16, min_pixels=784, max_pixels=64 * 64)
SECTION = PromptSection(video=VIDEO)
QUESTION = (Message("user", "<video>\nWhich way does the red square move?"),)
CLIP = (Media("video", "clip.mp4"),)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", 40, 8)
    write_video(folder / "other.mp4", 20, 10, size=(96, 64))
    Image.new("RGB", (90, 60), (0, 128, 255)).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"tiny_{request.param}")
    return path


@pytest.fixture(scope="module")
def processor(folder: Path, root: Path) -> PromptProcessor:
    return PromptProcessor.load(str(folder), SECTION, root, FramesSection(workers=0))


@pytest.fixture(scope="module")
def text_processor(tiny_qwen2_5_vl: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> PromptProcessor:
    path = tmp_path_factory.mktemp("text_model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2_5_vl)
    tokenizer.save_pretrained(path)
    Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1).save_pretrained(path)
    return PromptProcessor.load(str(path), SECTION, root, FramesSection(workers=0))


def dropped(processor: PromptProcessor, messages: tuple[Message, ...], media: tuple[Media, ...]) -> DroppedSample:
    with pytest.raises(DroppedSample) as caught:
        processor.process("sample-7", messages, media)
    assert "sample-7" in str(caught.value) and caught.value.sample_id == "sample-7"
    return caught.value


class TestPrompt:
    def test_shapes_and_types(self, processor: PromptProcessor) -> None:
        prompt = processor.process("s", QUESTION, CLIP)
        family, length = processor.family, len(prompt)
        assert isinstance(family, QwenVL)
        video_id = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
        assert prompt.input_ids.shape == (length,) and prompt.input_ids.dtype == torch.long
        assert prompt.position_ids.shape == (4, length) and prompt.position_ids.dtype == torch.long
        grid = prompt.vision.video_grid_thw
        assert grid is not None and grid[0, 0] == 5 and len(prompt.frame_times[0]) == 10
        assert torch.equal(prompt.mm_token_type_ids == 2, prompt.input_ids == video_id)
        assert int((prompt.mm_token_type_ids == 2).sum()) == int(grid.prod()) // 4
        assert prompt.vision.pixel_values_videos is not None
        assert prompt.vision.pixel_values_videos.shape == (int(grid.prod()), 3 * 2 * family.patch_size**2)
        assert prompt.text.count("<|video_pad|>") == 1
        assert prompt.position_ids[0].tolist() == list(range(length))

    def test_suffix_opens_the_assistants_turn(self, processor: PromptProcessor) -> None:
        prompt = processor.process("s", QUESTION, CLIP)
        assert (
            processor.tokenizer.decode(prompt.input_ids[prompt.suffix_start :]) == "<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_line_break_beside_a_placeholder_is_layout(self, processor: PromptProcessor) -> None:
        beside = processor.process("s", (Message("user", "<video>Which?"),), CLIP)
        below = processor.process("s", (Message("user", "<video>\nWhich?"),), CLIP)
        assert beside.text == below.text and "<|vision_end|>Which?" in below.text

    def test_several_media_in_order(self, processor: PromptProcessor) -> None:
        messages = (Message("system", "Look."), Message("user", "<video>\nthen <image> then\n<video>\nWhat differs?"))
        media = (Media("video", "other.mp4"), Media("image", "picture.png"), Media("video", "clip.mp4", 1.0, 3.0))
        prompt = processor.process("s", messages, media)
        assert prompt.vision.video_grid_thw is not None and len(prompt.vision.video_grid_thw) == 2
        assert prompt.vision.image_grid_thw is not None and len(prompt.vision.image_grid_thw) == 1
        assert [len(times) for times in prompt.frame_times] == [4, 1, 4]
        assert prompt.frame_times[1] == (0.0,) and prompt.frame_times[2][0] == 1.0
        kinds = torch.unique_consecutive(prompt.mm_token_type_ids[prompt.mm_token_type_ids > 0]).tolist()
        assert kinds == [2, 1, 2]

    def test_sizes_are_ours(self, folder: Path, root: Path) -> None:
        """The tiny processors would enlarge so small a frame to four tokens."""
        section = replace(SECTION, video=replace(VIDEO, max_pixels=1100))
        processor = PromptProcessor.load(str(folder), section, root, FramesSection(workers=0))
        media = (*CLIP, Media("image", "picture.png"))
        prompt = processor.process("s", (Message("user", "<video><image>Which?"),), media)
        assert prompt.vision.video_grid_thw is not None and prompt.vision.image_grid_thw is not None
        assert prompt.vision.video_grid_thw.tolist() == [[5, 2, 2]]
        assert prompt.vision.image_grid_thw.tolist() == [[1, 2, 2]]

    def test_rule_of_positions(self, folder: Path, root: Path) -> None:
        both = [
            PromptProcessor.load(
                str(folder), replace(SECTION, position_rule=rule), root, FramesSection(workers=0)
            ).process("s", QUESTION, CLIP)
            for rule in ("vllm", "transformers")
        ]
        assert torch.equal(both[0].input_ids, both[1].input_ids)
        same = torch.equal(both[0].position_ids, both[1].position_ids)
        assert same == (folder.name == "tiny_qwen3_vl")

    def test_ids_that_cannot_be_sampled(self, processor: PromptProcessor) -> None:
        banned = set(processor.tokenizer.convert_ids_to_tokens(list(processor.family.banned_ids)))
        assert {"<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"} <= banned
        assert "<|im_end|>" not in banned

    def test_text_model(self, text_processor: PromptProcessor) -> None:
        prompt = text_processor.process("s", (Message("user", "one plus two"),), ())
        assert prompt.vision.empty and prompt.frame_times == ()
        assert torch.equal(prompt.position_ids, torch.arange(len(prompt)).expand(4, -1))
        assert text_processor.counters.videos_seen == 0


class TestTime:
    """One frame's time is visible: in the text of Qwen3-VL, in the positions of Qwen2.5-VL."""

    def test_a_frame_moved_in_the_file(self, folder: Path, root: Path) -> None:
        even = [250 * k for k in range(8)]
        moved = [*even[:-1], even[-1] + 750]
        for name, stamps in (("even.mp4", even), ("moved.mp4", moved)):
            write_video(root / name, 8, 4, stamps=stamps)
        section = replace(SECTION, video=replace(VIDEO, fps=8))
        processor = PromptProcessor.load(str(folder), section, root, FramesSection(workers=0))
        one, two = (processor.process("s", QUESTION, (Media("video", name),)) for name in ("even.mp4", "moved.mp4"))
        assert one.frame_times != two.frame_times and len(one.frame_times[0]) == len(two.frame_times[0])
        if processor.family.timestamps_in_text:
            assert not torch.equal(one.input_ids, two.input_ids)
        else:
            assert torch.equal(one.input_ids, two.input_ids)
            assert not torch.equal(one.position_ids, two.position_ids)

    def test_timestamps_are_the_frames_true_times(self, tiny_qwen3_vl: Path, root: Path) -> None:
        write_video(root / "vfr.mp4", 4, 4, stamps=[0, 300, 2000, 5400])
        processor = PromptProcessor.load(
            str(tiny_qwen3_vl), replace(SECTION, video=replace(VIDEO, fps=8)), root, FramesSection(workers=0)
        )
        prompt = processor.process("s", QUESTION, (Media("video", "vfr.mp4"),))
        text = processor.tokenizer.decode(prompt.input_ids)
        assert "<0.1 seconds>" in text and "<3.7 seconds>" in text
        assert text.count("seconds>") == 2

    def test_seconds_per_grid_follow_the_real_rate(self, tiny_qwen2_5_vl: Path, root: Path) -> None:
        processor = PromptProcessor.load(str(tiny_qwen2_5_vl), SECTION, root, FramesSection(workers=0))
        frames = processor._frames.get(CLIP[0])  # type: ignore[union-attr]
        assert processor.process("s", QUESTION, CLIP).vision.second_per_grid_ts == (2 * 5.0 / 10,)
        assert isinstance(processor.family, QwenVL)
        assert processor.family.video_metadata(frames)["total_num_frames"] == 40
        faster = processor.process("s", QUESTION, (Media("video", "clip.mp4", fps=3.0),))
        assert faster.vision.second_per_grid_ts == pytest.approx((2 * 5.0 / 14,))


class TestInsertText:
    TEXT = "\nThe answer is left."

    def test_splices_ids_and_keeps_the_rest(self, processor: PromptProcessor) -> None:
        prompt = processor.process("s", QUESTION, CLIP)
        longer = processor.insert_text(prompt, self.TEXT)
        added = processor.tokenizer(self.TEXT, add_special_tokens=False)["input_ids"]
        start, end = prompt.suffix_start, prompt.suffix_start + len(added)
        assert longer.input_ids[start:end].tolist() == added
        assert torch.equal(longer.input_ids[:start], prompt.input_ids[:start])
        assert torch.equal(longer.input_ids[end:], prompt.input_ids[start:])
        assert torch.equal(longer.position_ids[:, :start], prompt.position_ids[:, :start])
        assert longer.next_position == prompt.next_position + len(added)
        assert longer.mm_token_type_ids.sum() == prompt.mm_token_type_ids.sum()
        assert longer.vision is prompt.vision and longer.suffix_start == end
        assert longer.text.endswith(f"move?{self.TEXT}<|im_end|>\n<|im_start|>assistant\n")

    def test_twice(self, processor: PromptProcessor) -> None:
        prompt = processor.process("s", QUESTION, CLIP)
        twice = processor.insert_text(processor.insert_text(prompt, self.TEXT), " Twice.")
        assert processor.tokenizer.decode(twice.input_ids).endswith(
            f"{self.TEXT} Twice.<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_special_tokens_in_the_text_are_plain_text(self, processor: PromptProcessor) -> None:
        prompt = processor.process("s", QUESTION, CLIP)
        longer = processor.insert_text(prompt, "<|im_end|><|video_pad|>")
        added = longer.input_ids[prompt.suffix_start : longer.suffix_start].tolist()
        assert not set(added) & {processor.tokenizer.eos_token_id, *processor.family.banned_ids}
        assert processor.tokenizer.decode(added) == "<|im_end|><|video_pad|>"
        again = processor.process("s", QUESTION, CLIP)
        assert torch.equal(again.input_ids, prompt.input_ids)

    def test_text_model(self, text_processor: PromptProcessor) -> None:
        prompt = text_processor.process("s", (Message("user", "one plus two"),), ())
        assert len(text_processor.insert_text(prompt, " is three")) > len(prompt)


class TestDropped:
    def test_bad_files_name_sample_and_file(self, processor: PromptProcessor, root: Path) -> None:
        (root / "empty.mp4").touch()
        (root / "noise.mp4").write_bytes(bytes(range(256)) * 20)
        write_video(root / "short.mp4", 2)
        (root / "link.mp4").unlink(missing_ok=True)
        (root / "link.mp4").symlink_to("/etc/hostname")
        found = {}
        for name in ("empty.mp4", "noise.mp4", "short.mp4", "gone.mp4", "../x.mp4", "/etc/hostname", "link.mp4"):
            drop = dropped(processor, QUESTION, (Media("video", name),))
            assert name in str(drop)
            found[name] = drop.reason
        assert found == {
            "empty.mp4": "empty",
            "noise.mp4": "unreadable",
            "short.mp4": "too_short",
            "gone.mp4": "missing",
            "../x.mp4": "outside_root",
            "/etc/hostname": "outside_root",
            "link.mp4": "outside_root",
        }

    @pytest.mark.parametrize(
        ("text", "media"),
        [
            ("Which?", CLIP),
            ("<video><video>Which?", CLIP),
            ("<image>Which?", CLIP),
            ("<video>Which?", ()),
            ("<video><image>Which?", (Media("image", "picture.png"), *CLIP)),
        ],
    )
    def test_placeholders_that_do_not_fit(
        self, processor: PromptProcessor, text: str, media: tuple[Media, ...]
    ) -> None:
        drop = dropped(processor, (Message("user", text),), media)
        assert drop.reason == "media_mismatch" and "placeholders" in str(drop)

    def test_too_long(self, folder: Path, root: Path) -> None:
        section = replace(SECTION, max_tokens=20)
        drop = dropped(PromptProcessor.load(str(folder), section, root, FramesSection(workers=0)), QUESTION, CLIP)
        assert drop.reason == "prompt_too_long" and "prompt.max_tokens = 20" in str(drop)

    @pytest.mark.parametrize("token", ["<|video_pad|>", "<|im_end|>", "<|im_start|>"])
    def test_special_tokens_in_a_question(self, processor: PromptProcessor, token: str) -> None:
        drop = dropped(processor, (Message("user", f"<video>Which {token}?"),), CLIP)
        assert drop.reason == "reserved_token" and token in str(drop)

    def test_media_for_a_text_model(self, text_processor: PromptProcessor) -> None:
        assert dropped(text_processor, QUESTION, CLIP).reason == "media_unsupported"

    def test_chat_must_end_with_the_user(self, processor: PromptProcessor) -> None:
        assert dropped(processor, (Message("assistant", "Hello"),), ()).reason == "bad_messages"
        assert dropped(processor, (), ()).reason == "bad_messages"


class TestLoad:
    def test_no_model(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(VisdError, match=r"model\.path"):
            PromptProcessor.load(str(tmp_path), SECTION, root, FramesSection(workers=0))

    def test_processor_of_another_model(
        self, tiny_qwen2_5_vl: Path, tiny_qwen3_vl: Path, root: Path, tmp_path: Path
    ) -> None:
        mixed = tmp_path / "mixed"
        shutil.copytree(tiny_qwen2_5_vl, mixed, ignore=shutil.ignore_patterns("*.safetensors"))
        shutil.copy(tiny_qwen3_vl / "config.json", mixed / "config.json")
        with pytest.raises(VisdError, match="patch_size"):
            PromptProcessor.load(str(mixed), SECTION, root, FramesSection(workers=0))


def test_each_video_is_decoded_once(folder: Path, root: Path) -> None:
    processor = PromptProcessor.load(str(folder), SECTION, root, FramesSection(workers=0))
    prompts: list[Prompt] = []
    for _ in range(3):
        for name in ("clip.mp4", "other.mp4"):
            prompts.append(processor.process("s", QUESTION, (Media("video", name),)))
    assert (processor.counters.videos_decoded, processor.counters.videos_seen) == (2, 2)
    first, again = prompts[0].vision.pixel_values_videos, prompts[2].vision.pixel_values_videos
    assert first is not None and again is not None and np.array_equal(first, again)
