"""A byte-level BPE tokenizer for the small world: one token a word, number, time, cell or tag; any text by its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens of the Qwen vision-language families."""
INTERNVL_TOKENS: dict[str, str] = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""What InternVL adds, by the names that its processor asks its tokenizer for."""
TAGS = tuple(f"<{end}{name}>" for name in ("think", "answer", "obj", "box", "t") for end in ("", "/"))
"""Tags of responses: single tokens that are part of the decoded text."""
LARGEST_VOCABULARY = 8192
PIECES = "|".join(
    (
        r" ?\[?\d+\.\d+[,\]]?",  # 1.0 and parts of boxes: [0.05, 0.35, 0.65]
        r" ?\d+s(?![A-Za-z0-9])",  # 3s
        r" ?[a-c][1-3](?![A-Za-z0-9])",  # cells
        r" ?\d+",
        r" ?[A-Za-z]+",
        r"\n",
        r" ?[^\sA-Za-z0-9]+",
        r"\s",
    )
)
"""What may become one token."""


def train_tokenizer(
    texts: Iterable[str], named: Mapping[str, str] | None = None, vocabulary: int = LARGEST_VOCABULARY
) -> PreTrainedTokenizerFast:
    """A tokenizer in which every piece that occurs in `texts` is one token, if `vocabulary` tokens are enough for that.

    `named` special tokens come last.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    plain = [AddedToken(tag, normalized=False, special=False) for tag in TAGS]
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL]
    core.add_tokens(plain)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_without_tags(texts), trainer)
    core.add_tokens(plain)
    core.add_special_tokens(special)
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (named or {}).values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL if token not in (END_OF_TURN, END_OF_TEXT)],
        model_specific_special_tokens=dict(named or {}),
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def _without_tags(texts: Iterable[str]) -> Iterable[str]:
    """Tags cut a text before its pieces are found."""
    for text in texts:
        for token in (*TAGS, *SPECIAL):
            text = text.replace(token, "\0")
        yield from (part for part in text.split("\0") if part)
