"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import sys
import types
from typing import Any

import pytest
import torch

from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import build, load
from visd.data.manifest import sample_from_record
from visd.methods.base import Method, Scores
from visd.types import TokenBatch, TokenScores

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def blame(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The README's method, importable under the name that its config gives."""
    module = types.ModuleType("visd.methods.blame")
    monkeypatch.setitem(sys.modules, "visd.methods.blame", module)
    exec(compile(block("python"), "README.md", "exec"), module.__dict__)
    return build({"_target_": "visd.methods.blame.Blame", "extra": 0.5}, "method")


def batch_of(advantages: list[float], tokens: int) -> TokenBatch:
    rows = len(advantages)
    return TokenBatch(
        token_ids=torch.zeros(rows, tokens, dtype=torch.long),
        mask=torch.ones(rows, tokens, dtype=torch.bool),
        advantages=torch.tensor(advantages),
        engine_logp=torch.zeros(rows, tokens),
        groups=(),
        indices=(),
        has_teacher=torch.ones(rows, dtype=torch.bool),
        dimensions=torch.zeros(rows, tokens, dtype=torch.long),
        dimension_scores=torch.full((rows, 4), torch.nan),
    )


def test_the_method_blames_what_the_teacher_doubts(blame: Any) -> None:
    student = TokenScores(torch.zeros(2, 3))
    teacher = TokenScores(torch.tensor([[-2.0, 0.0, 2.0], [-2.0, 0.0, 2.0]]))
    credit = blame.advantages(batch_of([-1.0, 1.0], 3), Scores(student, teacher), step=0)
    assert credit.advantages.tolist() == [[-1.5, -1.0, -1.0], [1.0, 1.0, 1.0]]
    assert isinstance(blame, Method) and blame.uses_teacher and blame.needs(0) is not None


def test_without_a_teacher_the_method_is_grpo(blame: Any) -> None:
    student = TokenScores(torch.zeros(1, 3))
    credit = blame.advantages(batch_of([-1.0], 3), Scores(student, None), step=0)
    assert credit.advantages.tolist() == [[-1.0, -1.0, -1.0]]


def test_every_member_of_a_method_is_in_the_table() -> None:
    members = {name for name in vars(Method) if not name.startswith("_")}
    documented = set(re.findall(r"`(\w+)(?:\([^)]*\))?`", README[README.index("| member | answers |") :]))
    assert members <= documented


def test_the_record_is_valid() -> None:
    sample = sample_from_record(json.loads(block("json")), "README.md")
    assert sample.answer.type == "window" and sample.evidence.boxes


@pytest.mark.parametrize("line", re.findall(r"scripts/train\.py (.*?)(?: +#.*)?$", README, re.M))
def test_the_commands_compose(line: str) -> None:
    arguments = [part for part in line.split() if part not in ("--cfg", "job", "method=blame")]
    load(compose_config(arguments))


def test_every_linked_file_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    made_by_runs = {"docs/results.md"}
    assert links and not [link for link in links if link not in made_by_runs and not (ROOT / link).exists()]


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/environment.md"])
def test_every_named_file_exists(page: str) -> None:
    names = set(re.findall(r"`([\w/]+\.(?:py|md|sh|txt|toml))`", (ROOT / page).read_text(encoding="utf-8")))
    assert not [name for name in names if not any((ROOT / base / name).exists() for base in ("", "visd"))]


def test_every_part_in_the_file_tree_exists() -> None:
    tree = README[README.index("    visd/            the library") : README.index("[docs/architecture.md](docs/arch")]
    names = re.findall(r"^      (\S+)", tree, re.M)
    assert len(names) > 10 and all((ROOT / "visd" / name).exists() for name in names)
    assert {path.name for path in (ROOT / "visd").iterdir() if not path.name.startswith("__")} <= {
        name.rstrip("/") for name in names
    }
