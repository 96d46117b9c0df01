"""One optimiser step: invariances, off means off, and parity with an independent loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import selective_log_softmax

from tests.runs import (
    assert_bit_equal,
    assert_same_gradients,
    capture_gradients,
    groups_with_advantages,
    small_run,
    weights,
)
from visd.methods.base import Scores
from visd.train.run import Run
from visd.train.teach import reference_scores, teacher_scores
from visd.train.update import Update, update_policy
from visd.types import RolloutGroup, Term, TokenBatch


def step(run: Run, groups: list[RolloutGroup]) -> Update:
    return update_policy(run, groups, teacher_scores(run, groups, 0), reference_scores(run, groups), 0)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("method", ["visd", "rlsd", "visd_release"])
def test_any_split_into_micro_batches_gives_the_same_gradients(
    method: str, aggregation: str, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    found = []
    for budget in (100_000, 600, 400):
        run = small_run(
            small_world, tiny_qwen2_5_vl, tmp_path, f"method={method}", f"objective.aggregation={aggregation}",
            f"train.micro_batch_tokens={budget}", "data.train=[train.jsonl,text_train.jsonl]",
            "objective.kl_weight=0.1",
        )  # fmt: skip
        groups = groups_with_advantages(run)
        grads = capture_gradients(run)
        update = step(run, groups)
        found.append((grads, update.metrics.values()["loss"]))
    for grads, loss in found[1:]:
        assert_same_gradients(found[0][0], grads, relative=1e-5)
        assert loss == pytest.approx(found[0][1], abs=1e-6)


@pytest.mark.parametrize(
    "off",
    [
        ["method=visd", "method.lam=0"],
        ["method=rlsd", "method.lam=0"],
        ["method=visd", "teacher.weights=live", "teacher.context=[]", "method.dimension_strength=0"],
        ["method=sdpo", "method.grpo_share=1", "objective.aggregation=token"],
        ["method=srpo", "method.is_clip=0"],
        ["method=rlrt", "method.lam=0"],
        ["method=antisd", "method.lam=0"],
        ["method=dasd", "method.beta=0"],
    ],
    ids=[
        "visd lam 0",
        "rlsd lam 0",
        "teacher equal to student",
        "sdpo share 1",
        "srpo without success",
        "rlrt lam 0",
        "antisd lam 0",
        "dasd beta 0",
    ],
)
def test_off_is_grpo_bit_for_bit(off: list[str], small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    plain = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    other = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *off)
    groups = groups_with_advantages(plain)
    before = weights(plain)
    step(plain, groups)
    scores = teacher_scores(other, groups, 0)
    assert scores == {}, "the teacher was asked although it cannot matter"
    step(other, groups)
    assert_bit_equal(weights(plain), weights(other))
    assert any(not torch.equal(before[n], w) for n, w in weights(plain).items())


def test_visd_differs_from_grpo_when_on(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    plain = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    visd = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=visd", "method.lam=0.5", "method.eps=0.2")
    groups = groups_with_advantages(plain)
    found = []
    for run in (plain, visd):
        grads = capture_gradients(run)
        update = step(run, groups)
        found.append(grads)
        if run is visd:
            metrics = update.metrics.values()
            assert metrics["weight/teacher_share"] == 1.0 and 0.89 < metrics["weight/mean"] < 1.11
            traces = update.traces.values()
            assert all(0.9 - 1e-6 <= w <= 1.1 + 1e-6 for trace in traces for w in trace.weight)
    with pytest.raises(AssertionError):
        assert_same_gradients(*found, relative=1e-4)


@pytest.mark.parametrize("family", ["tiny_qwen2_5_vl", "tiny_qwen3_vl"])
@pytest.mark.parametrize("manifest", ["train.jsonl", "text_train.jsonl"])
def test_grpo_loss_and_gradients_equal_an_independent_implementation(
    family: str, manifest: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Plain autograd over transformers' own forward, its own positions and TRL's log-softmax, one rollout at a time."""
    model = request.getfixturevalue(family)
    run = small_run(
        small_world, model, tmp_path, "method=grpo", f"data.train=[{manifest}]", "prompt.position_rule=transformers"
    )
    groups = groups_with_advantages(run)
    grads = capture_gradients(run)
    loss = step(run, groups).metrics.values()["loss"]

    hf = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    tokens = sum(len(r.token_ids) for g in groups for r in g.rollouts)
    total = torch.zeros(())
    for group in groups:
        prompt = group.prompt
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
            response = torch.tensor(rollout.token_ids)
            ids = torch.cat([prompt.input_ids, response])[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if not prompt.vision.empty:
                types = torch.cat([prompt.mm_token_type_ids, torch.zeros(len(response), dtype=torch.int)])[None]
                inputs |= {
                    "mm_token_type_ids": types,
                    "pixel_values_videos": prompt.vision.pixel_values_videos,
                    "video_grid_thw": prompt.vision.video_grid_thw,
                }
                if run.policy.family.name == "qwen2_5_vl":
                    inputs["second_per_grid_ts"] = torch.tensor(prompt.vision.second_per_grid_ts)
            logits = hf(**inputs).logits[0, len(prompt) - 1 : -1].clone()
            logits[:, list(run.policy.family.banned_ids)] = float("-inf")
            logp = selective_log_softmax(logits, response)
            ratio = (logp - logp.detach()).exp()
            total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum() / tokens
    total.backward()
    assert loss == pytest.approx(total.item(), abs=1e-6)
    independent = {f"hf.{n}": p.grad for n, p in hf.named_parameters() if p.grad is not None and ".visual." not in n}
    assert_same_gradients(independent, grads, relative=1e-5)


def test_rollouts_without_advantage_are_left_out_exactly(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """Skipping them changes neither denominators nor gradients."""
    found = []
    for everything in (False, True):
        run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
        groups = groups_with_advantages(run)
        groups[0] = replace(groups[0], advantages=(0.0,) * 4)
        run.method.learns_without_advantage = True  # type: ignore[misc]
        run.method.active = lambda step, on=everything: on  # type: ignore[method-assign,misc]
        grads = capture_gradients(run)
        update = step(run, groups)
        found.append(grads)
        assert len(update.traces) == (8 if everything else 4)
    assert_same_gradients(*found, relative=1e-6)


def test_a_loss_that_is_not_a_number_names_the_samples(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    groups = groups_with_advantages(run)
    groups[0] = replace(groups[0], advantages=(float("nan"), 1.0, -1.0, 0.0))
    with pytest.raises(Exception, match=groups[0].sample.id):
        step(run, groups)


def test_measures_of_a_term_are_logged_as_means_over_its_tokens(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=opsd", "method.reference=answer")
    terms, groups = run.method.terms, groups_with_advantages(run)

    def measured(batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        digits = (batch.token_ids % 7).double()
        return {name: replace(t, measures={"digit": digits}) for name, t in terms(batch, scores, step).items()}

    run.method.terms = measured  # type: ignore[method-assign]
    metrics = update_policy(run, groups, teacher_scores(run, groups, 0), {}, 0).metrics.values()
    digits = [token % 7 for group in groups for rollout in group.rollouts for token in rollout.token_ids]
    assert metrics["term/distillation_digit"] == pytest.approx(sum(digits) / len(digits))
