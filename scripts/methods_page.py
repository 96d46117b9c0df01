"""The page of all methods, from their configs, docstrings and oracle tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
NUMBERED = re.compile(r"(?:^|_)(\d)_(\d)(?:_(\d))?(?:_to_(\d))?((?:_and_\d)*)")
LETTERED = re.compile(r"^test_([a-z]\d)_")

INTRODUCTION = """# Methods

One file in `visd/methods/` and one or more configs in `configs/method/` each; `method=<config>` takes one. A specification's
oracles are numbers worked out by hand from the published equations; each that is listed here is a test of
`tests/unit/` that carries its number. What a paper leaves open is decided by the field that the method's own text names.
"""


def methods_page() -> str:
    """docs/methods.md without its first line."""
    configs = {path.stem: _target(path) for path in sorted((ROOT / "configs/method").glob("*.yaml"))}
    rows = ["| config | class | source | oracles |", "| --- | --- | --- | --- |"]
    sections = []
    for target in dict.fromkeys(configs.values()):
        module, _, name = target.rpartition(".")
        names = ", ".join(f"`{config}`" for config, other in configs.items() if other == target)
        text = inspect.getdoc(importlib.import_module(module)) or ""
        source = ARXIV.search(text)
        link = f"[{source[1]}](https://arxiv.org/abs/{source[1]})" if source else ""
        rows.append(f"| {names} | `{name}` | {link} | {', '.join(oracles(module.rpartition('.')[2]))} |")
        sections.append(f"## {names}\n\n`{target}`\n\n{text.strip()}")
    return "\n\n".join([INTRODUCTION.strip(), "\n".join(rows), *sections]) + "\n"


def oracles(method: str) -> list[str]:
    """Numbers of the specification that a test of the method is named after."""
    found: set[str] = set()
    for file, prefix in ((f"test_method_{method}.py", ""), ("test_divergence.py", method)):
        path = ROOT / "tests/unit" / file
        if path.is_file():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and prefix in node.name:
                    found |= _numbers(node.name[node.name.index(prefix) :] if prefix else node.name)
    return sorted(found)


def _numbers(test: str) -> set[str]:
    if letter := LETTERED.match(test):
        return {letter[1].upper()}
    number = NUMBERED.search(test)
    if number is None:
        return set()
    section, first, last = f"{number[1]}.{number[2]}", number[3], number[4]
    if first is None:
        return {section}
    items = {*range(int(first), int(last or first) + 1), *map(int, re.findall(r"\d", number[5]))}
    return {f"{section}.{item}" for item in items}


def _target(path: Path) -> str:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return str(content.get("method", content)["_target_"])
