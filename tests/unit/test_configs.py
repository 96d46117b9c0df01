"""Every configuration that ships composes, passes the schema, arrives where it belongs and builds what it names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import make_docs
from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import ConfigError, RunConfig, build, load

CONFIGS = ROOT / "configs"
GROUPS = tuple(
    group
    for entry in yaml.safe_load((CONFIGS / "config.yaml").read_text())["defaults"]
    if isinstance(entry, dict)
    for group in entry
)
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
METHODS = [option for group, option in OPTIONS if group == "method"]
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {key: value for name, child in node.items() for key, value in leaves(child, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): node}


def lookup(config: RunConfig, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def own_fields(path: Path) -> dict[str, Any]:
    """What a file sets itself, by its place in the whole configuration."""
    text = path.read_text()
    content = yaml.safe_load(text) or {}
    content.pop("defaults", None)
    return leaves(content, "" if "@package _global_" in text else f"{path.parent.name}.")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_arrives(group: str, option: str) -> None:
    config = load(compose_config([f"{group}={option}"]))
    for name, value in own_fields(CONFIGS / group / f"{option}.yaml").items():
        if isinstance(value, str) and value.startswith("${"):
            value = lookup(config, value[2:-1])
        assert lookup(config, name) == value, f"{group}={option} sets {name}, and something sets it again"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_every_experiment(experiment: str, method: str) -> None:
    config = load(compose_config([f"experiment={experiment}", f"method={method}"]))
    expected = own_fields(CONFIGS / "method" / f"{method}.yaml")
    assert config.method["_target_"] == expected["method._target_"]
    build(config.method, "method")


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "judge"])
def test_judges_build(option: str) -> None:
    node = load(compose_config([f"judge={option}"])).judge
    if node["_target_"] is not None:
        build(node, "judge")


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "rollout"])
def test_engines_exist_and_have_the_fields(option: str) -> None:
    engine = load(compose_config([f"rollout={option}"])).rollout.engine
    known = {field.name for field in make_docs.target_fields(engine["_target_"])}
    assert set(engine) - {"_target_"} <= known


def test_there_are_groups_for_all_that_design_names() -> None:
    names = "model data prompt rollout reward judge teacher method objective optim parallel experiment"
    assert set(names.split()) <= set(GROUPS)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.learning_rate=1", "optim.learning_rate"),
        ("+optim.learning_rate=1", "optim.learning_rate"),
        ("optim.lr=fast", "optim.lr"),
        ("train.steps=0", "train.steps"),
        ("teacher.rate=1.5", "teacher.rate"),
        ("parallel.mode=zero9", "parallel.mode"),
        ("model.freeze=[eyes]", "model.freeze"),
        ("method=unheard_of", "unheard_of"),
        ("data.train=train.jsonl", "data.train"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_sentence(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(compose_config([override]))
    message = str(error.value)
    assert expected in message and "\n" not in message


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.path|data\.root"):
        load({})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"_target_": "visd.methods.visd.VISD", "lamb": 0.5}, "method.lamb"),
        ({"_target_": "visd.methods.visd.VISD", "lam": "much"}, "method.lam"),
        ({"_target_": "visd.methods.visd.VISDD"}, "method._target_"),
        ({"_target_": "visd.methods.nothing.X"}, "method._target_"),
        ({"_target_": "VISD"}, "method._target_"),
        ({"lam": 0.5}, "method._target_"),
    ],
)
def test_a_wrong_target_is_refused(node: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(node, "method")
    assert expected in str(error.value)


def test_every_field_says_what_it_does() -> None:
    classes = make_docs.schema_classes()
    assert len(classes) > 10
    silent = [
        f"{cls}.{doc.name}"
        for cls, docs in classes.items()
        for doc in docs
        if doc.type not in classes and not doc.comment
    ]
    assert not silent


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_says_what_it_does(method: str) -> None:
    target = load(compose_config([f"method={method}"])).method["_target_"]
    assert not [doc.name for doc in make_docs.target_fields(target) if not doc.comment]


def test_generated_pages_are_up_to_date() -> None:
    assert not make_docs.outdated(), "run `make docs`"


def test_documented_defaults_are_the_real_ones() -> None:
    """The page is made from source text: what it says must be what Python does."""
    page = make_docs.configuration_page()
    assert f"| `optim.lr` | `float` | `{RunConfig().optim.lr!r}` |" in page
    assert "| `model.path` | `str` | `required` |" in page
    assert "| `model.freeze` | `list[str]` | `['vision']` |" in page
    assert all(f"`{field.name}" in page for field in dataclasses.fields(RunConfig))
