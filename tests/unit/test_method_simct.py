"""SimCT by its oracles C1-C5 (arXiv 2605.07711), and O6 of its comparison with TRL's GOLD and ULD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tests.runs import groups_with_advantages, small_run
from tests.unit.method_data import batch_of, gather, gradient, group_of, random_logits
from visd.config import ConfigError, RunConfig, TeacherSection
from visd.methods.base import Scores, StepView
from visd.methods.simct import SimCT
from visd.objective.divergence import reverse_kl
from visd.objective.units import unit_divergence
from visd.policy.head import make_scoring, score_names, score_positions
from visd.rollout.sampling import token_pieces
from visd.teacher.crossing import Crossing, Unit, align, merged_with_following
from visd.train.teach import teacher_scores
from visd.types import Rollout, ScoreNeeds, TokenScores, UnitNeeds

P, Q = (0.7, 0.2, 0.1), (0.5, 0.4, 0.1)


@dataclass
class Pieces:
    """A tokenizer with a fixed vocabulary that takes the longest piece that fits."""

    vocabulary: list[str]

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.vocabulary)}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        ids: list[int] = []
        while text:
            piece = max((p for p in self.vocabulary if p and text.startswith(p)), key=len)
            ids.append(self.vocabulary.index(piece))
            text = text[len(piece) :]
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(self.vocabulary[i] for i in ids)


def rollout_of(tokenizer: Pieces, ids: Sequence[int], ended: bool = False) -> Rollout:
    pieces = [tokenizer.vocabulary[i] for i in ids]
    if ended:
        pieces[-1] = ""
    text = "".join(pieces)
    return Rollout(tuple(ids), (0.0,) * len(ids), text, tuple(pieces), "eos" if ended else "length", 0, 0)


def crossing_of(student: Pieces, teacher: Pieces) -> Crossing:
    """Both end a turn with their first id, called by different names."""
    none = (torch.zeros(len(student.vocabulary)).bool(), torch.zeros(len(teacher.vocabulary)).bool())
    return Crossing.of(student, teacher, (0, 0), *none)


def read(logits: Tensor, ids: Sequence[int], needs: ScoreNeeds) -> TokenScores:
    """[T, V] logits through the policy's own head."""
    asked = replace(needs, units=None)
    same = torch.nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype).requires_grad_(False)
    torch.nn.init.eye_(same.weight)
    found = score_positions(
        make_scoring(same), logits, torch.tensor(ids), temperature=1.0, banned_V=torch.zeros(logits.shape[-1]).bool(), needs=asked,
    )  # fmt: skip
    assert list(found) == [n for n in (*score_names(replace(asked, log_z=False), None), *["log_z"] * needs.log_z)]
    return TokenScores(**found)


def term(
    method: SimCT, crossing: Crossing, rollout: Rollout, student: Tensor, teacher: Tensor
) -> tuple[Tensor, TokenScores]:
    """The method's term at each token, [T], and the teacher's scores, from logits of both models at their own tokens."""
    needs = method.needs(0)
    assert needs is not None and needs.units is not None
    ids = crossing.response(rollout)
    assert ids is not None
    mine = read(student, rollout.token_ids, replace(needs, entropy=True))
    theirs = crossing.in_students_terms(read(teacher, ids, needs), rollout, ids, needs.units)
    batched = [TokenScores(**{n: None if v is None else v[None] for n, v in vars(s).items()}) for s in (mine, theirs)]
    batch = batch_of(torch.tensor([rollout.token_ids]), [0.0])
    found = method.terms(batch, Scores(*batched), 0)["distillation"]
    return (found.value * found.mask)[0], theirs


def logits(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log().requires_grad_()


def close(value: object, expected: object) -> bool:
    return value == pytest.approx(expected, abs=1e-5)


FINE = Pieces(["<end>", "a", "b", "4", "2", " a"])
COARSE = Pieces(["</s>", "42", "b", "a", " a"])


@pytest.mark.parametrize("alignment", ["minimal", "following"])
@pytest.mark.parametrize("unit_score", ["logp", "logits"])
def test_c1_equal_tokenizers_give_the_reverse_kl(alignment: str, unit_score: str) -> None:
    words = Pieces(["<end>", "x", "y"])
    crossing = crossing_of(words, words)
    assert crossing.student_ids.tolist() == crossing.teacher_ids.tolist() == [0, 1, 2]
    student = logits(P, P)
    rollout = rollout_of(words, [1, 0], ended=True)
    value, theirs = term(SimCT(alignment=alignment, unit_score=unit_score), crossing, rollout, student, logits(Q, Q))
    assert theirs.units is not None and theirs.units.tolist() == [1, 2]
    assert close(value.tolist(), [0.096901] * 2)
    expected = reverse_kl(student.log_softmax(-1), logits(Q, Q).detach().log_softmax(-1))
    torch.testing.assert_close(gradient(value.sum(), student), gradient(expected.sum(), student))


def forty_two() -> tuple[Tensor, Tensor]:
    """The oracle's models: nothing but a, b and 4 at the first token of the student."""
    student = logits([1e-300, 0.3, 0.2, 0.5, 1e-300, 1e-300], [0.02, 0.2, 0.2, 0.3, 0.08, 0.2])
    return student, logits([1e-300, 0.6, 0.1, 0.3, 1e-300])


def test_c2_the_score_of_a_unit() -> None:
    student, teacher = forty_two()
    rollout = rollout_of(FINE, [3, 4])
    value, theirs = term(SimCT(), crossing_of(FINE, COARSE), rollout, student, teacher)
    assert theirs.units is not None and theirs.units.tolist() == [-1, -1]
    assert close(value.tolist(), [0.240828, 0.0])
    p = torch.tensor([[0.3, 0.2]], dtype=torch.float64).log()
    unit = torch.tensor([0.5 * math.log(0.5 * 0.08)], dtype=torch.float64)
    closed = torch.cat([p, unit[:, None]], -1).softmax(-1)
    assert close(closed[0].tolist(), [0.428571, 0.285714, 0.285714])
    strict, _ = term(SimCT(several=False), crossing_of(FINE, COARSE), rollout, student, teacher)
    assert strict.tolist() == [0.0, 0.0]


def test_c3_merging_outcomes_can_only_lose() -> None:
    p, q = (torch.tensor([x], dtype=torch.float64) for x in ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5)))
    merged = [torch.stack([x[:, 0], x[:, 1:].sum(-1)], -1).log() for x in (p, q)]
    nothing, none = torch.zeros(1, dtype=torch.float64), torch.zeros(1).bool()
    fine = unit_divergence(p.log(), q.log(), (nothing, nothing), none).item()
    coarse = unit_divergence(merged[0], merged[1], (nothing, nothing), none).item()
    inside = reverse_kl((p[:, 1:] / 0.5).log(), (q[:, 1:] / 0.8).log()).item()
    assert close([fine, coarse, fine - coarse, 0.5 * inside], [0.274887, 0.223144, 0.051744, 0.051744])
    unit = [x[:, 1:].sum(-1).log() for x in (p, q)]
    as_unit = unit_divergence(p[:, :1].log(), q[:, :1].log(), (unit[0], unit[1]), ~none).item()
    assert close(as_unit, coarse)


def test_c4_minimal_units_and_those_of_the_code() -> None:
    units = align(["4", "2", " a"], ["42", " a"])
    assert units == [Unit(0, 2, 0, 1), Unit(2, 3, 1, 2)]
    assert merged_with_following(units, [False, True]) == [Unit(0, 3, 0, 2)]
    assert merged_with_following(units, [True, False]) == [units[0]]
    rollout = rollout_of(FINE, [3, 4, 5])
    for alignment, expected in (("minimal", [-1, -1, 2]), ("following", [-1, -1, -1])):
        _, theirs = term(SimCT(alignment=alignment), crossing_of(FINE, COARSE), rollout, *random_models(3, 2))
        assert theirs.units is not None and theirs.units.tolist() == expected


def random_models(mine: int, theirs: int) -> tuple[Tensor, Tensor]:
    student, _ = random_logits(1, (mine, len(FINE.vocabulary)))
    _, teacher = random_logits(2, (theirs, len(COARSE.vocabulary)))
    return student, teacher


def test_c5_units_give_the_text_back() -> None:
    tokens = 0
    numbers = torch.Generator().manual_seed(0)
    for _ in range(200):
        cuts = [sorted({0, 12, *torch.randint(1, 12, (n,), generator=numbers).tolist()}) for n in (4, 6)]
        text = "abcdefghijkl"
        mine, theirs = ([text[a:b] for a, b in pairwise(cut)] for cut in cuts)
        units = align(mine, theirs)
        pieces = [("".join(mine[u.s0 : u.s1]), "".join(theirs[u.t0 : u.t1])) for u in units]
        assert all(a == b for a, b in pieces) and "".join(a for a, _ in pieces) == text
        assert len(units) == len({*cuts[0]} & {*cuts[1]}) - 1, "a unit ends wherever both tokenizers cut"
        tokens += len(units)
    assert tokens > 200


def test_c5_characters_of_several_tokens_stay_whole() -> None:
    assert align(["", "é", "x"], ["", "é", "x"]) == [Unit(0, 2, 0, 2), Unit(2, 3, 2, 3)]
    assert align(["", "", "é", "x"], ["éx"]) == [Unit(0, 4, 0, 1)]
    assert align(["a", ""], ["a"]) == [Unit(0, 1, 0, 1)], "an unfinished character at the end is left out"


@pytest.mark.parametrize("unit_score", ["logp", "logits"])
def test_c5_constants_added_to_logits(unit_score: str) -> None:
    """A constant for all positions changes nothing. One for each position changes the code's units of several tokens alone."""
    method, rollout, crossing = SimCT(unit_score=unit_score), rollout_of(COARSE, [1, 3]), crossing_of(COARSE, FINE)
    _, student = random_logits(3, (2, len(COARSE.vocabulary)))
    _, teacher = random_logits(4, (3, len(FINE.vocabulary)))
    plain, theirs = term(method, crossing, rollout, student, teacher)
    assert theirs.units is not None and theirs.units.tolist() == [-1, 2]
    shifted, _ = term(method, crossing, rollout, student, teacher + 3.0)
    torch.testing.assert_close(shifted, plain)
    moved, _ = term(method, crossing, rollout, student, teacher + torch.tensor([[0.0], [2.0], [5.0]]))
    assert close(moved[1].item(), plain[1].item())
    assert close(moved[0].item(), plain[0].item()) == (unit_score == "logp")


def test_o6_sorted_difference_does_not_know_the_tokens() -> None:
    words = Pieces(["<end>", "x", "y"])
    crossing, rollout = crossing_of(words, words), rollout_of(words, [1])
    method = SimCT(loss="uld")
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        value, _ = term(method, crossing, rollout, logits(P), logits([Q[i] for i in order]))
        assert close(value.item(), 0.4)
    same, _ = term(method, crossing, rollout, logits(P), logits([P[i] for i in (1, 2, 0)]))
    assert close(same.item(), 0.0), "zero does not mean equal distributions"


def test_o6_a_merged_row_has_the_probability_of_its_later_tokens() -> None:
    student, teacher = forty_two()
    crossing = crossing_of(FINE, COARSE)
    value, theirs = term(SimCT(loss="uld"), crossing, rollout_of(FINE, [3, 4]), student, teacher)
    assert theirs.logp_rest is not None and theirs.logp_rest[0].item() == 0  # one token of the teacher
    row = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) * 0.08
    assert close(row[0].item(), 0.04) and close(row.sum().item(), 0.08)
    expected = (row - torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)).abs().sum().item()
    assert close(value.tolist(), [expected, 0.0])


def test_o6_gold_matches_what_both_know() -> None:
    """Equal tokenizers have nothing to sort: GOLD is the generalised JSD there, and ULD where nothing is matched."""
    words = Pieces(["<end>", "x", "y"])
    equal = crossing_of(words, words)
    value, _ = term(SimCT(loss="gold"), equal, rollout_of(words, [1]), logits(P), logits(Q))
    assert close(value.item(), 0.025362)
    student, teacher = random_models(1, 1)
    crossing, rollout = crossing_of(FINE, COARSE), rollout_of(FINE, [2])
    p, q = student.softmax(-1)[0], teacher.softmax(-1)[0]
    value, _ = term(SimCT(loss="gold", beta=1.0), crossing, rollout, student, teacher)
    pairs = [(0, 0), (1, 3), (2, 2), (5, 4)]  # the ends of a turn, a, b and " a"
    matched = sum(p[i] * (p[i] / q[j]).log() for i, j in pairs)
    rest = (p[[3, 4]].sort(descending=True).values - torch.stack([q[1], q[1] * 0])).abs().sum()
    assert close(value.item(), (0.8 * matched + 0.2 * rest).item())
    free, _ = term(SimCT(loss="gold", beta=1.0, matched_weight=0.0), crossing, rollout, student, teacher)
    assert close(free.item(), rest.item())


@pytest.mark.parametrize("loss", ["simct", "uld", "gold"])
def test_identical_models_teach_nothing(loss: str) -> None:
    words = Pieces(["<end>", "x", "y"])
    student, _ = random_logits(5, (2, 3))
    value, _ = term(SimCT(loss=loss), crossing_of(words, words), rollout_of(words, [1, 2]), student, student.detach())
    assert value.abs().max() < 1e-6
    if loss != "uld":  # an absolute difference has no gradient to speak of at 0
        assert gradient(value.sum(), student).abs().max() < 1e-6  # logits are read in float32


def test_word_marks_and_ends_of_a_turn_are_matched() -> None:
    crossing = crossing_of(Pieces(["<end>", "Ġthe", "the"]), Pieces(["</s>", "the", "▁the"]))
    assert dict(zip(crossing.student_ids.tolist(), crossing.teacher_ids.tolist(), strict=True)) == {0: 0, 1: 2, 2: 1}
    with pytest.raises(ConfigError, match="shares no token"):
        crossing_of(Pieces(["<end>", "x"]), Pieces(["</s>", "y"]))


def test_what_is_logged() -> None:
    scores = TokenScores(torch.zeros(5), units=torch.tensor([1, -2, -2, 3, 0]))
    seen = StepView([group_of([1.0])], {("s", 0): scores}, gather)
    assert SimCT().observe(seen, 0) == {"align_ratio": 0.4, "unaligned_share": 0.2, "unit_tokens": 2.0}


def test_settings_are_checked() -> None:
    for wrong in ({"loss": "alm"}, {"alignment": "none"}, {"unit_score": "sum"}, {"beta": 2.0}, {"weight": -1.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(wrong))}"):
            SimCT(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"teacher\.weights: simct"):
        SimCT().check([], RunConfig(teacher=TeacherSection(weights="live")))
    assert SimCT(weight=0).needs(0) is None
    assert SimCT().needs(0) == ScoreNeeds(full=True, units=UnitNeeds())


def test_a_real_tokenizer_is_crossed(
    small_world: Path, tiny_qwen2_5_vl: Path, tiny_other_tokenizer: Path, tmp_path: Path
) -> None:
    """Every text of a step is cut by both tokenizers, and the teacher's tokens are scored as its own policy scores them."""
    mixed = "data.train=[train.jsonl,text_train.jsonl]"
    run = small_run(
        small_world, tiny_qwen2_5_vl, tmp_path, "method=simct", f"teacher.path={tiny_other_tokenizer}", mixed,
        "data.max_dropped=1", "train.prompts_per_step=3",
    )  # fmt: skip
    assert run.external is not None and run.external.crossing is not None
    crossing, groups = run.external.crossing, groups_with_advantages(run)
    known = [run.processor.tokenizer.convert_ids_to_tokens(int(i)) for i in crossing.student_ids]
    assert 256 < len(known) < len(AutoTokenizer.from_pretrained(tiny_other_tokenizer))
    found = teacher_scores(run, groups, 0)
    texts = [(g, i, r) for g in groups for i, r in enumerate(g.rollouts) if (g.sample.id, i) in found]
    assert len(texts) == sum(len(g.rollouts) for g in groups)
    several = 0
    for group, index, rollout in texts:
        scores, ids = found[group.sample.id, index], crossing.response(rollout)
        assert ids is not None and scores.units is not None and scores.full_logp is not None
        row = run.external.row(run.external.prompt(group.sample), "", rollout)
        alone = run.external.policy.score([row], temperature=run.config.rollout.temperature, needs=ScoreNeeds())
        units, _ = crossing.units(rollout, ids, "minimal")
        for unit in units:
            mean = alone.logp[0, unit.t0 : unit.t1].mean()
            torch.testing.assert_close(scores.logp[unit.s0], mean, atol=1e-4, rtol=1e-4)
        several += sum(not unit.single for unit in units)
        pieces = token_pieces(ids, lambda part: crossing.tokenizer.decode(part, skip_special_tokens=True))
        assert "".join(pieces) == rollout.text
    assert several > 0
