"""Nothing in the repository names a machine it was written on, or where its packages come from."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.tree import ROOT, project_files, relative, with_suffix
from tests.unit.test_layering import imported_modules

MAX_LINES = 400

# Spelled in parts, so that this file passes its own test.
FORBIDDEN = {
    "machine path": r"(?<![\w.}~])/(?:"
    + "|".join(["wo" + "rk", "ro" + "ot", "tmp/" + "team", "home/" + r"\w+"])
    + r")(?:/|\b)",
    "registry host": "|".join(
        [
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            "npm" + r"js\.(?:org|com)",
            "deb" + r"ian\.org",
            "download" + r"\.pytorch",
        ]
    ),
    "numbered issue": r"\bissue" + r" #?\d",
    "place of writing": r"\bwork" + r"place\b",
}


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8")


def found(text: str) -> list[str]:
    return [f"{kind}: {hit.group()}" for kind, pattern in FORBIDDEN.items() for hit in re.finditer(pattern, text, re.I)]


def test_no_file_names_a_machine_or_a_registry() -> None:
    problems = {relative(path): hits for path in project_files() if (hits := found(text_of(path)))}
    assert not problems


@pytest.mark.parametrize(
    "text",
    [
        "cd /wo" + "rk/main",
        "see /ro" + "ot/.cache",
        "'/ho" + "me/me/x'",
        "https://py" + "pi.org/simple",
        "issue" + " 12",
    ],
)
def test_the_check_sees(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text", ["frame/wo" + "rker", "/wo" + "rkspace", "{data.root}/ro" + "ot", "an issue with 2 files"]
)
def test_the_check_leaves_alone(text: str) -> None:
    assert not found(text)


def test_no_long_files() -> None:
    counts = {relative(path): text_of(path).count("\n") for path in with_suffix(".py", ".yaml", ".sh")}
    assert not {name: count for name, count in counts.items() if count > MAX_LINES}


def test_licence_is_the_one_declared() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()


def test_constraints_pin_what_the_project_asks_for() -> None:
    """Every direct dependency has one tested version, so that `make env` installs what was tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + [
        item for name in ("dev", "lora", "qlora", "deepspeed", "wandb", "eval") for item in extras[name]
    ]
    pinned = {
        normal(line.split("==")[0])
        for line in (ROOT / "requirements/constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert {normal(re.split(r"[<>=!~ \[]", item)[0]) for item in asked} <= pinned


def test_imports_are_declared() -> None:
    """What the code imports is asked for by name, not taken from somebody else's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [item for extra in project["optional-dependencies"].values() for item in extra]
    declared = {normal(re.split(r"[<>=!~ \[]", item)[0]) for item in asked}
    own = {"visd", "data_tools", "eval", "scripts", "tests", "__future__", *sys.stdlib_module_names}
    used = {
        name.split(".")[0]
        for path in with_suffix(".py")
        if relative(path).split("/")[0] in own - {"tests"}
        for name in imported_modules(path.read_text(encoding="utf-8"), "")
    }
    owners = packages_distributions()
    undeclared = {
        name
        for name in used - own - {""}
        if "." not in name and not {normal(owner) for owner in owners.get(name, [name])} & declared
    }
    assert undeclared <= {"torchvision_hook"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
