from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from data_tools.synth.corpus import samples
from data_tools.tiny.model import TinySettings, make_tiny_model
from data_tools.tiny.tokenizer import SPECIAL, TAGS
from visd.data.targets import sft_target
from visd.types import VisdError


@pytest.fixture(scope="module", params=["tiny_qwen2_5_vl", "tiny_qwen3_vl"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2_5_vl: Path):  # type: ignore[no-untyped-def]
    return AutoProcessor.from_pretrained(tiny_qwen2_5_vl).tokenizer


def test_the_folder_loads_whole(folder: Path) -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 2e6
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_config_and_tokenizer_agree(folder: Path) -> None:
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder).tokenizer
    text = config.get_text_config()
    named = {
        "<|image_pad|>": config.image_token_id,
        "<|video_pad|>": config.video_token_id,
        "<|vision_start|>": config.vision_start_token_id,
        "<|vision_end|>": config.vision_end_token_id,
        "<|im_end|>": text.eos_token_id,
        "<|endoftext|>": text.pad_token_id,
    }
    for token, number in named.items():
        assert tokenizer.convert_tokens_to_ids(token) == number
    assert text.vocab_size == len(tokenizer)
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [named["<|im_end|>"], named["<|endoftext|>"]]
    assert generation.pad_token_id == tokenizer.pad_token_id


def test_a_video_goes_through_processor_and_model(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which way does it move?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    pad = "<|vision_start|><|video_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{pad}Which way does it move?<|im_end|>\n<|im_start|>assistant\n"
    side = processor.video_processor.patch_size * 4
    video = torch.randint(0, 255, (8, 3, side, side), dtype=torch.uint8)
    metadata = [{"fps": 2.0, "duration": 4.0, "total_num_frames": 8, "frames_indices": list(range(8))}]
    inputs = processor(
        text=[text], videos=[video], video_metadata=metadata, do_sample_frames=False, return_tensors="pt"
    )
    assert inputs["video_grid_thw"].tolist() == [[4, 4, 4]]
    assert int((inputs["input_ids"] == processor.video_token_id).sum()) == 16
    logits = model(**inputs).logits
    other = dict(inputs) | {"pixel_values_videos": -inputs["pixel_values_videos"]}
    assert torch.isfinite(logits).all() and not torch.allclose(logits[:, -1], model(**other).logits[:, -1])


def test_the_two_families_differ_where_they_should(tiny_qwen2_5_vl: Path, tiny_qwen3_vl: Path) -> None:
    old, new = (AutoConfig.from_pretrained(path).vision_config for path in (tiny_qwen2_5_vl, tiny_qwen3_vl))
    assert (old.patch_size, new.patch_size) == (14, 16)
    assert old.fullatt_block_indexes == [1] and old.window_size == 56
    assert new.deepstack_visual_indexes == [0]


def test_pieces_of_the_world_are_single_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    pieces = [" 0s", " a1", " c3", "0.5", "[0.05,", "0.35,", "0.95]", "3.0", " 7", "red", " red", " triangle", *TAGS]
    for piece in pieces:
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece


def test_traces_are_short_and_come_back_whole(tokenizer) -> None:  # type: ignore[no-untyped-def]
    lengths = []
    for sample in samples():
        target = sft_target(sample)
        ids = tokenizer.encode(target, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == target
        assert "".join(tokenizer.decode([i]) for i in ids) == target
        lengths.append(len(ids))
    assert sum(lengths) / len(lengths) < 65 and max(lengths) < 120


def test_special_tokens_go_and_tags_stay(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer.encode("<think>x</think><|im_end|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think>"
    assert len({tokenizer.convert_tokens_to_ids(token) for token in (*SPECIAL, *TAGS)}) == len(SPECIAL) + len(TAGS)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = _cached_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def _cached_tokenizer():  # type: ignore[no-untyped-def]
    if not _CACHE:
        from data_tools.synth.corpus import texts
        from data_tools.tiny.tokenizer import train_tokenizer

        _CACHE.append(train_tokenizer(texts()))
    return _CACHE[0]


_CACHE: list = []  # type: ignore[type-arg]


def test_the_seed_decides_the_weights(tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "same", TinySettings())
    make_tiny_model(tmp_path / "other", TinySettings(seed=1))
    read = [
        (path / "model.safetensors").read_bytes() for path in (tiny_qwen2_5_vl, tmp_path / "same", tmp_path / "other")
    ]
    assert read[0] == read[1] != read[2]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"family": "gpt"}, "family"), ({"text_width": 130}, "text_width"), ({"text_kv_heads": 3}, "text_heads")],
)
def test_settings_that_make_no_model_are_refused(tmp_path: Path, wrong: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(VisdError, match=words):
        make_tiny_model(tmp_path / "m", TinySettings(**wrong))


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(VisdError, match="exists"):
        make_tiny_model(tmp_path, TinySettings())
