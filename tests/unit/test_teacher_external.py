"""An external teacher: another model, asked in its own words, scoring the rollouts' own ids over the student's vocabulary."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from data_tools.tiny.model import TinySettings, make_tiny_model
from tests.runs import assert_bit_equal, groups_with_advantages, small_config, small_run
from visd.config import ConfigError, ModelSection
from visd.policy import attention
from visd.policy.batch import Row
from visd.policy.policy import Policy
from visd.teacher.external import check_ends, common_ids
from visd.train.check import forecast
from visd.train.run import Run
from visd.train.teach import RowScores, targets_of, teacher_scores
from visd.train.update import update_policy
from visd.types import RolloutGroup, ScoreNeeds, VisdError

MIXED = "data.train=[train.jsonl,text_train.jsonl]"
RLSD = ("method=rlsd", "teacher.weights=external", "teacher.context=[answer]", MIXED)


@pytest.fixture
def taught(
    small_world: Path, tiny_qwen2_5_vl: Path, tiny_teacher: Path, tmp_path: Path
) -> Callable[..., tuple[Run, list[RolloutGroup]]]:
    """A run with an external teacher, and its groups."""

    def make(*overrides: str, teacher: Path | None = None) -> tuple[Run, list[RolloutGroup]]:
        path = f"teacher.path={teacher or tiny_teacher}"
        run = small_run(small_world, tiny_qwen2_5_vl, tmp_path / "run", *RLSD, path, *overrides)
        return run, groups_with_advantages(run)

    return make


def asked_alone(run: Run, groups: list[RolloutGroup], folder: Path, needs: ScoreNeeds) -> RowScores:
    """The teacher's scores row by row, by a policy loaded from its folder and prompts of its own processor."""
    assert run.external is not None
    other = Policy.load(ModelSection(path=str(folder)), torch.device("cpu"))
    other.model.banned = run.external.policy.model.banned
    processor, found = run.external.processor, {}
    for target in targets_of(run, groups):
        sample = target.item.group.sample
        prompt = run.external.builder.build(sample.question())
        features = other.encode([prompt])[0]
        row = Row(processor.insert_text(prompt, target.text), target.item.response_ids, features)
        scores = other.score([row], temperature=run.config.rollout.temperature, needs=needs)
        found[target.item.key] = scores.row(0, len(row.response_ids)).detach()
    return found


@pytest.mark.parametrize("sharing", ["false", "auto"])
def test_it_scores_the_rollouts_own_ids(
    sharing: str, taught: Callable[..., tuple[Run, list[RolloutGroup]]], tiny_teacher: Path
) -> None:
    run, groups = taught("rollout.temperature=0.8", "train.prompts_per_step=6", f"train.shared_prefix={sharing}")
    found = teacher_scores(run, groups, 0)
    assert run.external is not None and run.external.policy.sharing_confirmed == (sharing == "auto")
    expected = asked_alone(run, groups, tiny_teacher, ScoreNeeds())
    assert found.keys() == expected.keys() and len(found) == sum(len(g.rollouts) for g in groups)
    assert {bool(group.sample.media) for group in groups} == {True, False}
    for key, scores in found.items():
        torch.testing.assert_close(scores.logp, expected[key].logp, atol=1e-4, rtol=1e-4)
    assert run.teacher is None and run.external is not None
    assert run.external.processor.frame_cache is run.processor.frame_cache, "frames of one size are decoded once"


def test_a_teacher_whose_shared_rows_differ_stops_the_run(
    taught: Callable[..., tuple[Run, list[RolloutGroup]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, groups = taught()
    exact = attention._join
    monkeypatch.setattr(attention, "_join", lambda output, lse, other, sums: exact(output, lse, other, sums + 0.5))
    with pytest.raises(VisdError, match=rf"(?s)disagree.*{groups[0].sample.id}"):
        teacher_scores(run, groups, 0)


def test_the_students_own_folder_gives_the_students_scores(
    taught: Callable[..., tuple[Run, list[RolloutGroup]]], tiny_qwen2_5_vl: Path
) -> None:
    run, groups = taught("teacher.context=[]", teacher=tiny_qwen2_5_vl)
    for key, scores in teacher_scores(run, groups, 0).items():
        group = next(g for g in groups if g.sample.id == key[0])
        rollout = group.rollouts[key[1]]
        torch.testing.assert_close(scores.logp, torch.tensor(rollout.logp), atol=2e-4, rtol=1e-3)


def test_privileged_text_reaches_it(taught: Callable[..., tuple[Run, list[RolloutGroup]]]) -> None:
    told, groups = taught()
    untold, _ = taught("teacher.context=[]")
    with_text, without = teacher_scores(told, groups, 0), teacher_scores(untold, groups, 0)
    assert with_text.keys() == without.keys()
    assert all((with_text[key].logp - without[key].logp).abs().max() > 1e-4 for key in with_text)


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_teacher_of_another_family_is_asked_in_its_own_form(
    family: str, taught: Callable[..., tuple[Run, list[RolloutGroup]]], tmp_path: Path
) -> None:
    """InternVL's tokenizer has four tokens more; they take no part, so that both models have the same ids."""
    folder = tmp_path / family
    make_tiny_model(folder, TinySettings(family=family, seed=2, text_layers=2, text_width=64))
    run, groups = taught("data.train=[train.jsonl]", teacher=folder)
    assert run.external is not None
    needs = ScoreNeeds(full=True)
    run.method.needs = lambda step: needs  # type: ignore[method-assign]
    found = teacher_scores(run, groups, 0)
    expected = asked_alone(run, groups, folder, needs)
    banned = run.policy.model.banned
    for key, scores in found.items():
        assert scores.full_logp is not None and scores.full_logp.shape[-1] == len(banned)
        torch.testing.assert_close(scores.logp, expected[key].logp, atol=1e-4, rtol=1e-4)
        assert torch.equal(scores.full_logp == -torch.inf, banned.expand_as(scores.full_logp))
        torch.testing.assert_close(scores.full_logp.exp().sum(-1), torch.ones_like(scores.logp))
    own = run.external.prompt(groups[0].sample)
    assert own.input_ids.tolist() != groups[0].prompt.input_ids.tolist() and not own.vision.empty
    twice = run.external.processor.frame_cache is not run.processor.frame_cache
    assert run.videos_decoded == run.processor.counters.videos_decoded * (2 if twice else 1) > 0


def test_it_is_frozen_and_counted_in_memory(taught: Callable[..., tuple[Run, list[RolloutGroup]]]) -> None:
    run, groups = taught()
    teacher = run.external
    assert teacher is not None
    before = {name: p.clone() for name, p in teacher.policy.model.named_parameters()}
    assert not any(p.requires_grad for p in teacher.policy.model.parameters())
    update_policy(run, groups, teacher_scores(run, groups, 0), {}, 0)
    assert_bit_equal(before, dict(teacher.policy.model.named_parameters()))
    counted = sum(row.trained + row.frozen for row in teacher.policy.parameter_table())
    assert forecast(run).teacher == 4 * counted


def test_agreement_is_logged_and_changes_nothing(taught: Callable[..., tuple[Run, list[RolloutGroup]]]) -> None:
    found = []
    for k in (0, 64):
        run, groups = taught(f"teacher.overlap_k={k}")
        found.append(update_policy(run, groups, teacher_scores(run, groups, 0), {}, 0).metrics.values())
    plain, watched = found
    names = {f"overlap/{name}" for name in ("ratio", "student_mass", "teacher_mass", "advantage", "entropy_gap")}
    assert watched.keys() - plain.keys() == names and all(plain[n] == watched[n] for n in plain)
    assert 0 < watched["overlap/ratio"] < 1 and watched["overlap/advantage"] < 0 < watched["overlap/entropy_gap"]


def test_a_prompt_that_the_teacher_cannot_take_is_a_counted_drop(
    taught: Callable[..., tuple[Run, list[RolloutGroup]]],
) -> None:
    run, groups = taught("data.max_dropped=1", "data.train=[train.jsonl]")
    assert run.external is not None
    builder = run.external.builder
    builder.processor.section = replace(builder.processor.section, max_tokens=30)
    assert teacher_scores(run, groups, 0) == {}
    assert set(run.drops.by_id) == {g.sample.id for g in groups}
    assert set(run.drops.reasons) == {"teacher_prompt_too_long"}


def refused(expected: str, world: Path, model: Path, out: Path, *overrides: str) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        small_run(world, model, out, *RLSD, *overrides)
    assert "\n" not in str(error.value).split("writes")[0]


def test_what_does_not_fit_is_refused_at_the_start(
    small_world: Path, tiny_qwen2_5_vl: Path, tiny_teacher: Path, tiny_other_tokenizer: Path, tmp_path: Path
) -> None:
    where = small_world, tiny_qwen2_5_vl, tmp_path / "run"
    refused("teacher.path: .*needs the folder", *where)
    refused("teacher.path: '.*nowhere'", *where, f"teacher.path={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"teacher\.path: is read by"):
        small_config(*where, "teacher.weights=ema", f"teacher.path={tiny_teacher}")

    refused("another vocabulary: .* differ, first .*simct", *where, f"teacher.path={tiny_other_tokenizer}")


def test_another_chat_is_refused_unless_asked_for(
    small_world: Path, tiny_qwen2_5_vl: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other_chat"
    shutil.copytree(tiny_teacher, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\\n", "<|im_end|>"))
    where = small_world, tiny_qwen2_5_vl, tmp_path / "run"
    refused("teacher.chat: same, but", *where, f"teacher.path={folder}")
    run = small_run(*where, *RLSD, f"teacher.path={folder}", "teacher.chat=own")
    groups = groups_with_advantages(run)
    assert len(teacher_scores(run, groups, 0)) == sum(len(g.rollouts) for g in groups)


def test_a_text_only_teacher_takes_text_alone(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2_5_vl)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    where = small_world, tiny_qwen2_5_vl, tmp_path / "run"
    refused(r"text-only model and sample '.*' has media", *where, f"teacher.path={tmp_path / 'text'}")
    run = small_run(*where, *RLSD, f"teacher.path={tmp_path / 'text'}", "data.train=[text_train.jsonl]")
    assert teacher_scores(run, groups_with_advantages(run), 0)


def test_ids_are_those_of_the_student() -> None:
    student = torch.tensor([False, True, False, False])
    assert common_ids(student, 6, [3, 5]).tolist() == [False, True, False, True, True, True]
    with pytest.raises(ConfigError, match="has 3 ids and the student's 4"):
        common_ids(student, 3, [])
    with pytest.raises(ConfigError, match=r"end with the ids \[2, 7\]"):
        check_ends((7, 2), (7,))
    check_ends((7,), (7, 2))


def test_an_id_without_a_token_stops_the_run(taught: Callable[..., tuple[Run, list[RolloutGroup]]]) -> None:
    run, groups = taught()
    assert run.external is not None
    run.external.policy.model.banned[groups[0].rollouts[0].token_ids[0]] = True
    with pytest.raises(VisdError, match="holds the id"):
        teacher_scores(run, groups, 0)
