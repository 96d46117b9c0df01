"""A step that holds text, a video, an image and prompts of several media, and what it gives on one split among ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.runs import small_config
from visd.judge.rule import RuleJudge
from visd.observe.accumulate import reduce
from visd.train.loop import sample_rollouts, with_reports, with_rewards
from visd.train.run import Run, set_up
from visd.train.teach import teacher_scores
from visd.train.update import update_policy
from visd.types import Sample

TEXT, MEDIA = ("text 0", "text 1"), ("video", "image", "image, video", "video, image, clip")
SPLITS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "text beside media": (TEXT, MEDIA),
    "media beside text": (MEDIA, TEXT),
    "nothing beside all": ((), (*MEDIA, *TEXT)),
    "an image beside the rest": (("image",), (*TEXT, "video", "image, video", "video, image, clip")),
}
"""Which samples each of two ranks gets of the same step."""

TOWERS = {"frozen": "qwen2_5_vl", "trained": "qwen3_vl"}
"""Whether the vision tower is trained, and the family it is tried with: deepstack is the harder of the two to train."""


@dataclass(frozen=True)
class Outcome:
    """What must not depend on the split."""

    tokens: list[list[int]]  # of all answers, by sample
    loss: float
    grad_norm: float


def write_world(root: Path, videos: Path) -> None:
    """The manifest `mixed.jsonl` with a JPEG and a PNG of its own and two given videos."""
    first, second = sorted(videos.glob("*.mp4"))[:2]
    for video in (first, second):
        (root / video.name).write_bytes(video.read_bytes())
    noise = np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)
    Image.fromarray(noise).save(root / "photo.jpg")
    Image.fromarray(noise[:, :56]).save(root / "drawing.png")
    image, drawing = {"kind": "image", "path": "photo.jpg"}, {"kind": "image", "path": "drawing.png"}
    video, clip = ({"kind": "video", "path": path.name} for path in (first, second))
    records = [
        record("text 0", [], "A cat and a dog. Who barks?"),
        record("text 1", [], "Red, green and blue are seen. Which of them comes first of all?"),
        record("video", [video], "<video>What moves?"),
        record("image", [image], "<image>What is shown?"),
        record("image, video", [drawing, video], "<image>Is it in <video>?"),
        record("video, image, clip", [clip, image, video | {"end": 1.0}], "<video>then <image>then <video>Which?"),
    ]
    (root / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))


def record(name: str, media: list[dict[str, Any]], question: str) -> dict[str, Any]:
    return {
        "id": name,
        "source": "test",
        "family": "mixed",
        "media": media,
        "messages": [{"role": "user", "content": question}],
        "answer": {"type": "word", "value": "red"},
    }


def made_run(tower: str, mode: str, root: Path, models: Path, *overrides: str) -> Run:
    """A run whose weights stay, since its learning rate is as good as 0; its micro-batches hold one or two rows."""
    return set_up(
        small_config(
            root, models / TOWERS[tower], root / "run", f"parallel={mode}", "data.train=[mixed.jsonl]", "optim.lr=1e-30",
            "rollout.n=2", "rollout.max_new_tokens=6", "train.micro_batch_tokens=400", "parallel.timeout_minutes=1.0",
            *(["model.freeze=[]"] if tower == "trained" else []), *overrides,
        )
    )  # fmt: skip


def take_step(run: Run, names: Sequence[str]) -> Outcome:
    """Sampling, teacher and update over this rank's samples; the first answer of each is wanted, the second is not."""
    by_name: dict[str, Sample] = {sample.id: sample for sample in run.sampler.samples}
    groups = sample_rollouts(run, run.prompts([by_name[name] for name in names]), 0)
    groups = with_reports(RuleJudge(), [with_rewards(run, group, 0) for group in groups])
    groups = [replace(group, advantages=(1.0, -0.5)) for group in groups]
    update = update_policy(run, groups, teacher_scores(run, groups, 0), {}, 0)
    run.policy.forget_features()
    assert not run.drops.by_id
    metrics = reduce(update.metrics, run.backend.all_gather_object)
    own = {group.sample.id: [list(rollout.token_ids) for rollout in group.rollouts] for group in groups}
    answers: dict[str, list[list[int]]] = {}
    for part in run.backend.all_gather_object(own):
        answers |= part
    assert answers.keys() == by_name.keys()
    tokens = [ids for name in sorted(answers) for ids in answers[name]]
    return Outcome(tokens, metrics["loss"], metrics["optim/grad_norm"])
