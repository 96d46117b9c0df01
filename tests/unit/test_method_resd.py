"""RESD (arXiv 2605.12741): oracles R1 to R7, and a step's writing with a scripted writer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.runs import small_config
from tests.unit.method_data import batch_of, gather, gradient, group_of, logits_of, random_logits, scores_of
from visd.cli import compose_config
from visd.config import ConfigError, build, load
from visd.methods.base import Services, StepView
from visd.methods.resd import RESD, success_weights
from visd.methods.sdpo import SDPO
from visd.objective.divergence import ratio_clamped
from visd.objective.loss import Denominators, token_weights
from visd.seeding import derive_seed, generator
from visd.teacher.playbook import Playbook
from visd.types import JudgeReport, PrivilegedContext, Prompt, Rollout, RolloutGroup, TokenScores

P, Q = (0.7, 0.2, 0.1), (0.5, 0.4, 0.1)
"""The specification's shared pair."""
FAR = (0.05, 0.85, 0.1)
IDS = torch.zeros(1, 1, dtype=torch.long)


def value(method: RESD, student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor = IDS) -> torch.Tensor:
    scores = scores_of(student, teacher, ids, method.needs(0))
    rows = ids.shape[0]
    return method.terms(batch_of(ids, [0.0] * rows, engine_logp=scores.student.logp.detach()), scores, 0)[
        "distillation"
    ].value


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.2, 5.0), (1.0, 1.0)])
def test_r1_a_teacher_equal_to_the_student_teaches_nothing(alpha: float, low: float, high: float) -> None:
    student, _ = random_logits(0, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    found = value(RESD(alpha=alpha, top_k=4, ratio_min=low, ratio_max=high), student, student, ids)
    assert found.abs().max() < 1e-9 and gradient(found.sum(), student).abs().max() < 1e-9


def test_r2_the_ratio_is_clamped() -> None:
    clamped, mass = ratio_clamped(*(torch.tensor(x, dtype=torch.float64).log() for x in (P, FAR)), 0.2, 5.0)
    assert clamped.exp().tolist() == pytest.approx([0.14, 0.85, 0.10]) and mass.item() == pytest.approx(0.7)
    for low, high, expected in ((0.2, 5.0, 0.837223), (0.0, 0.0, 1.557956)):
        method = RESD(alpha=1.0, support="full", ratio_min=low, ratio_max=high)
        assert value(method, logits_of(P), logits_of(FAR)).item() == pytest.approx(expected, abs=1e-5)
    upper, _ = ratio_clamped(*(torch.tensor(x, dtype=torch.float64).log() for x in (P, FAR)), 0.0, 2.0)
    assert upper.exp().tolist() == pytest.approx([0.05, 0.4, 0.1])


def test_r2_the_clamp_covers_the_tail_and_is_reported() -> None:
    method = RESD(alpha=1.0, support="student", top_k=1, ratio_min=0.2, ratio_max=2.0)
    scores = scores_of(logits_of(P), logits_of(FAR), IDS, method.needs(0))
    term = method.terms(batch_of(IDS, [0.0], engine_logp=scores.student.logp.detach()), scores, 0)["distillation"]
    p, q = (0.7, 0.3), (0.14, 0.6)  # the tail's ratio 0.95 / 0.3 exceeds 2
    assert term.value.item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-5)
    assert term.clipped is not None and term.clipped.item() == pytest.approx(1.0)


def test_r3_rare_outcomes_count_more() -> None:
    assert success_weights([True, False, False, False], 1, 1) == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3], abs=1e-5)
    for same in (True, False):
        assert success_weights([same] * 4, 1, 1) == pytest.approx([1.0] * 4)
    assert success_weights([True, False, False, False], 0, 0) == [1.0] * 4 and success_weights([True], 1, 1) == [1.0]


def test_r3_the_weights_reach_the_loss() -> None:
    student, teacher = random_logits(1, (4, 3, 9))
    ids = torch.arange(12).reshape(4, 3) % 9
    method = RESD(top_k=4, writer="rules")
    plain = value(method, student, teacher, ids)
    group = group_of([1.0, 0.0, 0.0, 0.0], length=3)
    method.prepare([group], Scripted(lambda purpose: ""))
    weighted = value(method, student, teacher, ids)
    torch.testing.assert_close(weighted, plain * torch.tensor([2, 2 / 3, 2 / 3, 2 / 3])[:, None].double())


def test_r4_the_published_form_of_jsd_is_the_codes() -> None:
    found = value(RESD(alpha=0.5, support="full", ratio_min=0.0), logits_of(P), logits_of(Q)).item()
    ratios = [q / p for p, q in zip(P, Q, strict=True)]
    published = sum(
        p * (t / 2 * math.log(t) - (t + 1) / 2 * math.log((t + 1) / 2)) for p, t in zip(P, ratios, strict=True)
    )
    assert found == pytest.approx(published, abs=1e-9) and found == pytest.approx(0.025362, abs=1e-5)


def test_r5_a_rollout_without_context_adds_neither_loss_nor_tokens() -> None:
    """Two rollouts of 4 and 2 tokens, the second without a teacher: the mean over the first one's tokens."""
    student, teacher = random_logits(3, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    method = RESD(top_k=4, is_clip=0)
    group = group_of([0.0, 0.0])
    rollouts = (group.rollouts[0], replace(group.rollouts[1], token_ids=(0, 0), logp=(0.0, 0.0)))
    seen = StepView([replace(group, rollouts=rollouts)], {("s", 0): TokenScores(torch.zeros(4))}, gather)
    plain = value(replace(method, is_clip=0), student, teacher, ids)[0]
    assert method.observe(seen, 0)["context_share"] == 0.5
    tokens = batch_of(ids, [0.0, 0.0], mask=mask, has_teacher=[True, False])
    term = method.terms(tokens, scores_of(student, teacher, ids, method.needs(0)), 0)["distillation"]
    loss = (term.value * token_weights(mask, "token", Denominators(6, 2, longest=1)) * term.mask).sum()
    assert loss.item() == pytest.approx(plain.mean().item(), abs=1e-6)  # shares are float32
    assert (gradient(loss, student)[1] == 0).all()
    unseen = group_of([0.0])
    assert RESD().context(unseen, 0) is None, "neither solution nor feedback nor reflection"


def test_r6_without_clamp_and_tail_it_is_on_policy_distillation() -> None:
    method = RESD(alpha=1.0, top_k=3, tail=False, ratio_min=0.0)
    logits = logits_of(P)
    found = value(method, logits, logits_of(Q))
    assert found.item() == pytest.approx(0.096901, abs=1e-5)
    assert gradient(found.sum(), logits)[0, 0].tolist() == pytest.approx([0.167700, -0.158010, -0.009690], abs=1e-5)


def test_r6_without_playbook_and_reflection_it_is_feedback_distillation() -> None:
    bare = RESD(playbook=False, reflections=False, ratio_min=0.0, top_k=4)
    group = group_of([0.0], feedback="Too late.")
    bare.prepare([group], Scripted(lambda purpose: pytest.fail("nothing is written")))
    found = bare.context(group, 0)
    assert found is not None and found == PrivilegedContext(trial="<think>why 0</think>answer 0", feedback="Too late.")
    published = SDPO(feedback="always", top_k=4).context(group, 0)
    assert published is not None and published.feedback == found.feedback
    student, teacher = random_logits(4, (1, 4, 9))
    ids = torch.arange(4)[None]
    scores = scores_of(student, teacher, ids, bare.needs(0))
    batch = batch_of(ids, [0.0], engine_logp=scores.student.logp.detach())
    theirs = SDPO(top_k=4).terms(batch, scores, 0)["distillation"].value
    torch.testing.assert_close(value(bare, student, teacher, ids), theirs)


def filled(*counts: tuple[int, int]) -> Playbook:
    book = Playbook()
    for number, (helpful, harmful) in enumerate(counts):
        entry = book.add("others", f"lesson {number}")
        assert entry is not None
        entry.helpful, entry.harmful = helpful, harmful
    return book


def ids(book: Playbook) -> list[str]:
    return [entry.id for entry in book.entries]


def test_r7_what_is_harmful_and_what_is_unused() -> None:
    even, new, good = filled((2, 2), (0, 0), (2, 1)).entries
    assert even.is_harmful and not even.unused
    assert new.unused and not new.is_harmful
    assert not good.is_harmful and not good.unused


def test_r7_prioritized_keeps_helpful_entries_up_to_the_limit() -> None:
    book = filled((1, 0), (2, 0), (2, 2), (0, 0))
    assert book.due(every=0, most=3) and book.clean("prioritized", 1, generator("t")) == 3
    assert len(book) == 1 and ids(book)[0] in ("p00001", "p00002")
    survivors = set()
    for seed in range(20):
        book = filled((1, 0), (2, 0), (2, 2))
        book.clean("prioritized", 1, generator("t", seed))
        survivors |= set(ids(book))
    assert survivors == {"p00001", "p00002"}, "which one stays is drawn"
    unforced = filled((1, 0), (2, 0), (2, 2))
    unforced.clean("prioritized", 3, generator("t"))
    assert ids(unforced) == ["p00001", "p00002"], "below the limit nothing helpful goes"


def test_r7_staleness_drops_what_was_not_used_for_longest() -> None:
    book = Playbook()
    for update in range(4):
        book.updates = update
        book.add("others", f"lesson {update}")
    assert book.tag("p00001", helpful=True) and not book.tag("p99999", helpful=True)
    assert book.find("p00001").used == 3  # type: ignore[union-attr]
    book.clean("staleness", 120, generator("t"))
    assert ids(book) == ["p00001", "p00003", "p00004"], "unused for more than one update"
    book.updates = 4
    book.tag("p00003", helpful=True)
    book.tag("p00004", helpful=False)
    assert book.clean("staleness", 1, generator("t")) == 2 and ids(book) == ["p00003"]
    assert book.clean("reset", 1, generator("t")) == 1 and not book.entries
    entry = book.add("others", "again")
    assert entry is not None and entry.id == "p00005", "an id is never given twice"


def test_r7_cleaning_is_due_by_updates_or_by_length() -> None:
    book = filled((0, 0), (0, 0))
    assert not book.due(every=4, most=2) and book.due(every=4, most=1)
    book.updates = 4
    assert book.due(every=4, most=2) and not book.due(every=0, most=2)
    book.clean("staleness", 2, generator("t"))
    assert not book.due(every=4, most=2)


class Scripted(Services):
    """Services whose writer answers by a function of what it is asked: reflection, tags or curation."""

    step, is_main = 0, True

    def score(self, prompts, texts):  # type: ignore[no-untyped-def]
        raise AssertionError("resd has no text scored")

    def answers(self, prompts, texts):  # type: ignore[no-untyped-def]
        raise AssertionError("resd takes no answers of the data")

    def __init__(self, answer: Callable[[str], str], folder: Path = Path("outputs/none")):
        self.answer, self.folder, self.asked = answer, folder, list[str]()

    def write(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        max_new_tokens: int,
        weights: Literal["student", "teacher"] = "student",
    ) -> list[Rollout]:
        assert weights == "student" and len(seeds) == len(prompts) and max_new_tokens == 1024
        return [Rollout((0,), (0.0,), said, (said,), "eos", 0, 0) for said in (self._said(p.text) for p in prompts)]

    def _said(self, text: str) -> str:
        kind = "curation" if "Reflections:" in text else "reflection" if "failed" in text else "tags"
        self.asked.append(text)
        return self.answer(kind)

    def chat(self, name: str, text: str) -> Prompt:
        return replace(group_of([1.0]).prompt, sample_id=name, text=text)

    def insert(self, prompt: Prompt, text: str) -> Prompt:
        return replace(prompt, text=prompt.text + text)

    def teacher_view(self, prompt: Prompt, context: PrivilegedContext) -> Prompt:
        raise AssertionError("the teacher writes nothing")

    def seed(self, *parts: int | str) -> int:
        return derive_seed(*parts)

    def gather(self, value: Any) -> list[Any]:
        return [value]


REFLECTION = {
    "reasoning": "r",
    "error": "It looked right.",
    "root_cause": "haste",
    "correct_approach": "look twice",
    "key_insight": "Look at all frames.",
    "tags": [{"id": "p00001", "tag": "harmful"}, {"id": "p77777", "tag": "helpful"}],
}
LESSON = {"example": "s/0", "section": "common mistakes", "text": "Look at  all frames."}


def scripted(kind: str) -> str:
    answers: dict[str, Any] = {
        "reflection": REFLECTION,
        "tags": {"tags": [{"id": "p00001", "tag": "helpful"}]},
        "curation": {"add": [LESSON, {**LESSON, "text": "twice"}, {**LESSON, "example": "nobody"}, "no lesson"]},
    }
    return f"<think>{{}}</think> Here it is: {json.dumps(answers[kind])} That is all."


def group_with_ids(correct: Sequence[float]) -> RolloutGroup:
    return group_of(correct, feedback="The window starts too late.", text="left")


def test_a_step_reflects_curates_and_remembers(tmp_path: Path) -> None:
    method, services = RESD(), Scripted(scripted, tmp_path)
    failed, right = group_with_ids([0.0]), group_with_ids([1.0])
    method.prepare([failed], services)
    assert [entry.text for entry in method._playbook.entries] == ["Look at all frames."]
    assert "<think>why 0</think>left 0" in services.asked[0] and "The window starts too late." in services.asked[0]
    assert "Playbook:\nnone" in services.asked[0] and "### s/0\nError: It looked right." in services.asked[1]
    shown = method.context(failed, 0)
    assert shown is not None and shown.reflection is not None and "Key insight: Look at all frames." in shown.reflection
    assert shown.playbook == "## common mistakes\n[p00001] helpful=0 harmful=0 :: Look at all frames."
    assert shown.trial == "<think>why 0</think>left 0" and not shown.peers
    found = json.loads((tmp_path / "playbook.json").read_text())
    assert found["entries"][0]["text"] == "Look at all frames." and found["updates"] == 1

    method.prepare([right], services)  # only tags: nothing failed, so nothing is curated
    assert method._playbook.entries[0].helpful == 1 and len(services.asked) == 3
    own = method.context(right, 0)
    assert own is not None and own.peers == ("left 0",) and own.trial is None and own.feedback is None
    again = RESD()
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert again._playbook == method._playbook and again._solutions == {"s": "left 0"}

    again.prepare([failed], services)
    assert again._playbook.entries[0].harmful == 1 and len(again._playbook) == 1, "a lesson stands once"
    later = again.context(failed, 0)
    assert later is not None and later.peers == ("left 0",) and later.trial is not None
    counts = again.observe(StepView([failed], {}, gather), 2)
    assert counts["texts_written"] == 2 and counts["texts_unreadable"] == 0 and counts["playbook_harmful"] == 1


@pytest.mark.parametrize("said", ["", "no", '{"error": "x"', '{"error": "x"}', "[1]", '{"add": 3}', "{" * 10_000])
def test_what_is_unreadable_is_counted_and_nothing_else(said: str, tmp_path: Path) -> None:
    method = RESD()
    group = group_with_ids([0.0])
    method.prepare([group], Scripted(lambda kind: said, tmp_path))
    counts = method.observe(StepView([group], {}, gather), 0)
    assert counts["texts_unreadable"] == counts["texts_written"] == 1 and counts["reflected"] == 0
    context = method.context(group, 0)
    assert context is not None and context.reflection is None and context.feedback and not method._playbook.entries


def test_fixed_rules_write_from_the_scores(tmp_path: Path) -> None:
    method = RESD(writer="rules")
    group = replace(
        group_with_ids([0.0]),
        reports=(JudgeReport("ok", answer=0.2, logic=0.9, temporal=0.1, feedback="The window starts too late."),),
    )
    silent = Scripted(lambda kind: pytest.fail("rules ask no model"), tmp_path)
    method.prepare([group], silent)
    (entry,) = method._playbook.entries
    assert entry.text == "Look at the whole video before a time is given." and entry.section == "common mistakes"
    method.prepare([group], silent)
    assert (entry.helpful, len(method._playbook)) == (1, 1)
    context = method.context(group, 0)
    assert context is not None and context.reflection is not None and entry.text in context.reflection


@pytest.mark.parametrize("part", ["feedback", "solutions", "reflections", "playbook"])
def test_each_part_can_be_left_out(part: str, tmp_path: Path) -> None:
    off = {part: False} | ({"playbook": False} if part == "reflections" else {})
    method = RESD(**off)  # type: ignore[arg-type]
    failed, right = group_with_ids([0.0]), group_with_ids([1.0])
    for group in (failed, right, failed):
        method.prepare([group], Scripted(scripted, tmp_path))
    context = method.context(failed, 0)
    assert context is not None
    present = {
        "feedback": context.feedback is not None,
        "solutions": bool(context.peers),
        "reflections": context.reflection is not None,
        "playbook": context.playbook is not None,
    }
    assert present == {name: name not in off for name in present}
    assert method.wants_judge(0) is (part != "feedback") and (tmp_path / "playbook.json").exists() is (
        "playbook" not in off
    )


def test_a_full_playbook_is_cut(tmp_path: Path) -> None:
    lessons = iter(range(10))
    method = RESD(most_entries=2, clean_every=0)

    def answer(kind: str) -> str:
        return json.dumps(
            {"add": [{**LESSON, "text": f"lesson {next(lessons)}"}]} if kind == "curation" else REFLECTION
        )

    for _ in range(4):
        method.prepare([group_with_ids([0.0])], Scripted(answer, tmp_path))
        assert len(method._playbook) <= 2
    assert method._counts["playbook_dropped"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["objective.aggregation=sequence"], r"objective\.aggregation"),
        (["judge=none"], r"^judge: "),
        (["objective.mini_batches=2", "objective.old_logp=start"], r"objective\.mini_batches"),
        (["teacher.context=[trial,feedback,reflection,peers]"], r"teacher\.context"),
        (["method.reflections=false"], r"method\.playbook"),
        (["method.writer=poet"], r"method\.writer"),
        (["method.clean_rule=never"], r"method\.clean_rule"),
        (["method.ratio_min=2"], r"method\.ratio_min"),
        (["method.ratio_max=0.5"], r"method\.ratio_max"),
        (["method.support=sampled"], r"method\.alpha"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(settings: list[str], said: str) -> None:
    config = small_config(Path("world"), Path("model"), Path("run"), "method=resd", *settings)
    with pytest.raises(ConfigError, match=said):
        build(config.method, "method").check([], config)


def test_one_rollout_a_prompt_is_the_default() -> None:
    assert load(compose_config(["method=resd"])).rollout.n == 1
