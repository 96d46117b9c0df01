"""Nothing downstream is imported upstream, and reading a configuration loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import relative, with_suffix

LAYERS = (
    ["types", "strict_json", "config_train", "config", "seeding", "observe", "media", "data", "policy", "parallel", "rollout", "reward", "judge"]
    + ["teacher", "objective", "methods", "train", "cli"]
)  # fmt: skip
OUTSIDE = ("data_tools", "eval", "scripts", "tests")


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute names of all imported modules, those inside functions and `if TYPE_CHECKING` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def wrong_imports(name: str, source: str) -> list[str]:
    """Imports of the file `name` (relative to the root) that go against the order."""
    parts = Path(name).with_suffix("").parts
    modules = imported_modules(source, ".".join(parts[:-1]))
    if parts[0] != "visd":
        later = OUTSIDE[OUTSIDE.index(parts[0]) + 1 :] if parts[0] in ("data_tools", "eval") else ()
        return sorted(module for module in modules if module.split(".")[0] in later)
    wrong = [module for module in modules if module.split(".")[0] in OUTSIDE]
    if parts[1] == "__init__":
        return wrong
    own = LAYERS.index(parts[1])
    for module in modules:
        path = module.split(".")
        if path[0] == "visd" and len(path) > 1 and path[1] in LAYERS and LAYERS.index(path[1]) > own:
            wrong.append(module)
    return sorted(wrong)


def test_every_part_of_visd_has_a_layer() -> None:
    found = {
        Path(relative(path)).with_suffix("").parts[1]
        for path in with_suffix(".py")
        if relative(path).startswith("visd/")
    }
    assert found - {"__init__"} <= set(LAYERS)


def test_imports_go_one_way() -> None:
    problems = {
        name: wrong
        for path in with_suffix(".py")
        if (name := relative(path)).split("/")[0] in ("visd", *OUTSIDE)
        and (wrong := wrong_imports(name, path.read_text(encoding="utf-8")))
    }
    assert not problems


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("visd/reward/rules.py", "from visd.judge.base import Judge"),
        ("visd/media/video.py", "def f():\n    from visd.data import manifest"),
        ("visd/types.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import visd.policy.batch"),
        ("visd/judge/rule.py", "from ..methods import grpo"),
        ("visd/observe/report.py", "import eval.run"),
        ("data_tools/synth/make.py", "from eval import runner"),
    ],
)
def test_a_wrong_import_is_seen(name: str, source: str) -> None:
    assert wrong_imports(name, source)


def test_a_right_import_is_left_alone() -> None:
    assert not wrong_imports("visd/train/loop.py", "from visd.types import Prompt\nfrom .step import one\nimport torch")


@pytest.mark.parametrize("module", ["visd.types", "visd.config", "visd.seeding", "visd.judge.base"])
def test_no_torch_for_types_and_configuration(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_package_has_an_init() -> None:
    folders = {
        path.parent
        for path in with_suffix(".py")
        if relative(path).split("/")[0] in ("visd", "data_tools", "eval", "tests")
    }
    assert not {relative(folder) for folder in folders if not (folder / "__init__.py").exists()}
