"""A teacher that is another model: loaded like the policy, frozen, whole on every rank.

It scores the rollouts' own token ids, so its tokenizer must give every token of the student's the same id; only for a
method that aligns two tokenizers it is another, see `crossing`. Prompts are
made by its own processor from the same question, so that a teacher of another family sees media in its own form; where
it wants frames of the student's size, they are the student's and are not decoded again. It is never sharded, whatever
`parallel.mode`: each process holds all its parameters in the dtype of activations (14 GiB for 7 billion in bfloat16).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visd.config import ConfigError, LoraSection, RunConfig
from visd.data.prompts import PromptBuilder
from visd.media.processor import PromptProcessor
from visd.policy.batch import Row
from visd.policy.policy import Policy
from visd.teacher.crossing import Crossing
from visd.types import DroppedSample, Message, Prompt, Rollout, Sample, ScoreNeeds, TokenScores, VisdError

PROBE = (Message("system", "A system message."), Message("user", "A question.\nIts second line."))
"""The chat by which two templates are compared."""


@dataclass
class ExternalTeacher:
    """A second model and how it is asked."""

    policy: Policy
    builder: PromptBuilder
    vocabulary: int  # ids of the student's output; scores are over these
    crossing: Crossing | None = None  # to a teacher with another tokenizer

    @property
    def processor(self) -> PromptProcessor:
        return self.builder.processor

    @property
    def nbytes(self) -> int:
        """Of its weights, on every rank."""
        modules = [self.policy.model, *([self.policy.tower] if self.policy.tower is not None else [])]
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())

    def prompt(self, sample: Sample) -> Prompt:
        """The sample's question as this model is asked it.

        Raises:
            DroppedSample: as for the student's prompt, with `teacher_` before the reason.
        """
        try:
            return self.builder.build(sample.question())
        except DroppedSample as error:
            said = str(error).removeprefix(f"sample {sample.id!r}: ")
            raise DroppedSample(sample.id, f"teacher_{error.reason}", f"the external teacher: {said}") from error

    def row(self, prompt: Prompt, text: str, rollout: Rollout) -> Row:
        """A rollout's own ids after the prompt with privileged text at the end of the user's turn, if any.

        A teacher with another tokenizer is given the rollout's text in its own ids.

        Raises:
            VisdError: an id that this model knows as another token or not at all.
            DroppedSample: a text that the other tokenizer cannot write.
        """
        ids: Sequence[int] | None = rollout.token_ids
        if self.crossing is not None:
            ids = self.crossing.response(rollout)
        else:
            self._check_ids(prompt.sample_id, rollout.of_own(rollout.token_ids))
        if ids is None:
            raise DroppedSample(
                prompt.sample_id,
                "teacher_text",
                "the teacher's tokenizer does not give a rollout's text back as it is.",
            )
        features = self.policy.encode([prompt])[0]
        shown = self.policy.shown(prompt.sample_id, rollout)
        return Row(self.processor.insert_text(prompt, text) if text else prompt, ids, features, shown)

    def _check_ids(self, sample_id: str, ids: Sequence[int]) -> None:
        unknown = self.policy.model.banned[torch.as_tensor(ids, device=self.policy.device)]
        if bool(unknown.any()):
            found = int(torch.as_tensor(ids)[unknown.cpu()][0])
            raise VisdError(
                f"sample {sample_id!r}: a rollout holds the id {found}, which is no token of the student's tokenizer and "
                "which teacher.path takes for a token of its own; the student's output has untrained rows."
            )

    def fitted(self, scores: TokenScores, rollout: Rollout, row: Row, needs: ScoreNeeds) -> TokenScores:
        """Scores of a row in the student's terms: over its ids alone (those beyond them are banned), or over its units."""
        if self.crossing is not None:
            assert needs.units is not None, "a method that crosses tokenizers asks for units"
            return self.crossing.in_students_terms(scores, rollout, row.response_ids, needs.units)
        full = scores.full_logp
        return scores if full is None else dataclasses.replace(scores, full_logp=full[..., : self.vocabulary])


def load_external(
    config: RunConfig, student: Policy, processor: PromptProcessor, crosses: bool = False
) -> ExternalTeacher:
    """The model of `teacher.path`, checked against the student.

    Args:
        crosses: the method aligns two tokenizers, so the vocabulary may be another.

    Raises:
        ConfigError: no path, no such model, another vocabulary, another chat (with `teacher.chat=same`) or another end
            of a turn.
    """
    path = config.teacher.path
    if not path:
        raise ConfigError("teacher.path: teacher.weights=external needs the folder or hub id of the teacher's model.")
    section = dataclasses.replace(
        config.model, path=path, freeze=["vision", "language"], gradient_checkpointing=False, lora=LoraSection()
    )
    try:
        policy = Policy.load(section, student.device)
        own = PromptProcessor.load(
            path, config.prompt, Path(config.data.root), config.data.frames, processor.frame_cache
        )
    except VisdError as error:
        raise ConfigError(f"teacher.path: {str(error).removeprefix('model.path: ')}") from error
    builder, size = PromptBuilder(own, config.prompt), student.model.vocab_size
    if crosses:
        check_chat(processor, own, config.teacher.chat)
        ends, banned = (student.eos_ids[0], policy.eos_ids[0]), (student.model.banned, policy.model.banned)
        crossing = Crossing.of(processor.tokenizer, own.tokenizer, ends, *banned)
        return ExternalTeacher(policy, builder, size, crossing)
    unknown = check_vocabulary(processor.tokenizer, own.tokenizer)
    check_chat(processor, own, config.teacher.chat)
    check_ends(student.eos_ids, policy.eos_ids)
    policy.model.banned = common_ids(student.model.banned, policy.model.vocab_size, unknown)
    return ExternalTeacher(policy, builder, size)


def check_media(teacher: ExternalTeacher, samples: Sequence[Sample], student: Policy | None = None) -> None:
    """Refuse a text-only teacher where there are media.

    Args:
        student: whose answers may hold media, which a teacher must read as the student does.

    Raises:
        ConfigError: names the first sample, or the two families.
    """
    if student is not None and (teacher.crossing is not None or teacher.policy.family != student.family):
        raise ConfigError(
            f"teacher.path: frames in an answer are pixels and ids of the student's {student.family.name}, which "
            f"{teacher.policy.source!r} reads otherwise; take a teacher of the same family, or no tool that shows frames."
        )
    if teacher.policy.family.has_media:
        return
    for sample in samples:
        if sample.media:
            raise ConfigError(
                f"teacher.path: {teacher.policy.source!r} is a text-only model and sample {sample.id!r} has media; "
                "take a teacher that sees them."
            )


def check_vocabulary(student: Any, teacher: Any) -> list[int]:
    """Compare two tokenizers.

    Returns:
        The ids of tokens that only the teacher knows.

    Raises:
        ConfigError: a token of the student's has another id at the teacher, or none.
    """
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    different = sorted((id_, token) for token, id_ in mine.items() if theirs.get(token) != id_)
    if different:
        id_, token = different[0]
        found = f"the id {theirs[token]}" if token in theirs else "no id"
        raise ConfigError(
            f"teacher.path: the teacher has another vocabulary: {len(different)} of the student's {len(mine)} tokens "
            f"differ, first {token!r}, id {id_}, which has {found} there. Take a teacher with the student's tokenizer, or "
            "a method that aligns two tokenizers (method=simct)."
        )
    return sorted(id_ for token, id_ in theirs.items() if token not in mine)


def check_chat(student: PromptProcessor, teacher: PromptProcessor, chat: str) -> None:
    """Refuse two chat templates that write the same messages differently, unless `chat` is `own`.

    Raises:
        ConfigError: shows both.
    """
    mine, theirs = student.render(PROBE), teacher.render(PROBE)
    if chat == "same" and mine != theirs:
        raise ConfigError(
            f"teacher.chat: same, but the teacher's template writes {theirs!r} where the student's writes {mine!r}; "
            "give both folders one chat template, or set teacher.chat=own to ask each model in its own words."
        )


def check_ends(student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuse a teacher that would go on where the student's answer ends.

    Raises:
        ConfigError: names the ids.
    """
    if not set(student) <= set(teacher):
        raise ConfigError(
            f"teacher.path: the student's answers end with the ids {sorted(student)}, the teacher's with {sorted(teacher)}; "
            "make eos_token_id in the teacher's generation_config.json name the student's as well, or take another teacher."
        )


def common_ids(student_banned: Tensor, vocabulary: int, unknown: Sequence[int]) -> Tensor:
    """[vocabulary] bool: ids that the teacher must leave out, so that both models distribute over the same ids.

    Args:
        student_banned: [V] bool, ids that the student cannot sample.
        vocabulary: of the teacher.
        unknown: ids that only the teacher's tokenizer knows.

    Raises:
        ConfigError: the teacher's output has fewer ids than the student's.
    """
    if vocabulary < len(student_banned):
        raise ConfigError(
            f"teacher.path: the teacher's output has {vocabulary} ids and the student's {len(student_banned)}; take a "
            "teacher with as many or more, since it has to score whatever the student may sample."
        )
    banned = torch.ones(vocabulary, dtype=torch.bool, device=student_banned.device)
    banned[: len(student_banned)] = student_banned
    banned[list(unknown)] = True
    return banned
