"""The model class `visd` of lmms-eval: a checkpoint, with visd's own frames, prompts and engines.

    lmms-eval --model visd --model_args model=MODEL,engine=vllm,video.max_frames=64 --tasks videomme ...

Tasks that `eval.bridges.tasks` wrote are asked exactly as by `eval.run`: frames, pixels, prompt and decoding are the task's,
and the model arguments about them have no say. Any other task is asked with these arguments, and given the final answer
alone: lmms-eval takes reasoning off, but not `<answer>` tags, and reads a letter out of reasoning that was cut off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from eval.asking import Reply
from eval.bridges.answerer import ANYWHERE, Answerer, question_of, settings_from
from eval.bridges.sources import open_source
from eval.bridges.tasks import with_trailer
from visd.config import ConfigError
from visd.rollout.base import Sampling
from visd.seeding import derive_seed
from visd.types import Media, Question, VisdError


class VisdModel(lmms):
    """Arguments are the fields of `BridgeSettings`; `device` may only be what torch uses by itself."""

    is_simple = False

    def __init__(self, *, batch_size: Any = None, max_batch_size: Any = None, device: Any = None, **arguments: Any):
        super().__init__()
        given = {**arguments, **({} if batch_size in (None, "auto") else {"batch_size": int(batch_size)})}
        self.answerer = Answerer(settings_from(given))
        self.dropped: dict[str, int] = {}  # questions that could not be asked, by reason
        local, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1 and self.answerer.settings.engine == "vllm":
            raise ConfigError(
                "engine: vllm answers in one process of lmms-eval; start one, or take engine=transformers."
            )
        self._device = torch.device("cpu")
        if torch.cuda.is_available():
            self._device = torch.device("cuda", local)
            torch.cuda.set_device(self._device)
        if device is not None and torch.device(device).type != self._device.type:
            raise ConfigError(f"device: visd answers on {self._device.type} here, not on {device}.")

    @property
    def device(self) -> torch.device:
        """Where lmms-eval gathers from."""
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """One response a request, in order. Requests of one setting are answered together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            _, _, wanted, doc_id, task, split = request.args
            groups.setdefault(self._doc(task, split, doc_id).get("visd_source") or f"{task} {wanted}", []).append(
                number
            )
        found: dict[int, GenerationResult] = {}
        for numbers in groups.values():
            some = [requests[number] for number in numbers]
            _, _, _, doc_id, task, split = some[0].args
            own = "visd_source" in self._doc(task, split, doc_id)
            found |= zip(numbers, self._own(some) if own else self._others(some))
        return [found[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refused: a checkpoint that reasons is asked for its answer."""
        raise VisdError("visd answers by generation; take a task whose output_type is generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refused: see `loglikelihood`."""
        raise VisdError("visd answers in one round; take a task whose output_type is generate_until.")

    def _doc(self, task: str, split: str, doc_id: int) -> Mapping[str, Any]:
        doc: Mapping[str, Any] = self.task_dict[task][split][doc_id]
        return doc

    def _own(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Questions of visd's own tasks. Their scoring is told what was cut off and how large the frames were."""
        docs = [self._doc(r.args[4], r.args[5], r.args[3]) for r in requests]
        source = open_source(docs[0]["visd_source"])
        questions, seeds = [source.question(doc["id"]) for doc in docs], [source.seed(doc["id"]) for doc in docs]
        found = self.answerer.ask(questions, source.section, source.root, source.sampling, seeds)
        return [self._result(reply, self._whole(reply)) for reply in found]

    def _others(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        questions = [self._question(request) for request in requests]
        sampling: Sampling = self.answerer.sampling(requests[0].args[2])
        seeds = [derive_seed("lmms-eval", question.id) for question in questions]
        found = self.answerer.ask(questions, self.answerer.section, ANYWHERE, sampling, seeds)
        return [self._result(reply, self.answerer.shown(reply)) for reply in found]

    def _question(self, request: Instance) -> Question:
        _, to_messages, _, doc_id, task, split = request.args
        name = f"{task}_{split}_{doc_id}"
        turns = []
        for turn in to_messages(self._doc(task, split, doc_id)):
            parts = [self._part(part, f"{name}_{i}") for i, part in enumerate(turn["content"])]
            turns.append((turn["role"], parts))
        return question_of(name, turns)

    def _part(self, part: Mapping[str, Any], number: str) -> Media | str:
        kind = part["type"]
        if kind == "text":
            return str(part["text"])
        if kind not in ("image", "video"):
            raise VisdError(f"{number}: the task shows {kind}, and visd's models take text, images and videos.")
        url = part["url"]
        clip = {**part, **url} if isinstance(url, dict) else dict(part)
        path = clip.get("path") or clip.get("url")
        if kind == "image" and not isinstance(path, str):
            path = self.answerer.image_file(path, number)
        if not isinstance(path, str):
            raise VisdError(f"{number}: its {kind} is no path of a file but {type(path).__name__}.")
        start, end = (clip.get(f"{name}_time", clip.get(f"video_{name}")) for name in ("start", "end"))
        return Media(kind, path.removeprefix("file://"), start, end)

    def _whole(self, reply: Reply) -> str:
        if not reply.rollouts:
            return with_trailer("", False, None)
        rollout = reply.rollouts[0]
        return with_trailer(rollout.own_text, rollout.stop_reason == "length", reply.frame_size)

    def _result(self, reply: Reply, text: str) -> GenerationResult:
        if reply.drop is not None:
            self.dropped[reply.drop.reason] = self.dropped.get(reply.drop.reason, 0) + 1
            return GenerationResult(text, TokenCounts(output_tokens=0))
        return GenerationResult(text, TokenCounts(output_tokens=reply.rollouts[0].length))

    def clean(self) -> None:
        """Called by lmms-eval when every answer is there."""
        if self.dropped:
            listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.dropped.items()))
            print(f"visd: questions that could not be asked and count as unanswered: {listed}")
