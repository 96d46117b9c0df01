"""Registers torchvision's operator schemas when its compiled library cannot load.

A copy of this file lies in the site-packages of an environment whose torch has no CUDA beside a torchvision built for
CUDA; `repair_torchvision.py` puts it there together with a `.pth` line that runs `enable()` in every process. Nothing
happens until torchvision is imported, and nothing changes where its own library loads. The pure-Python transforms then
work; the compiled operators stay unavailable and say so when they are called.
"""

from __future__ import annotations

import importlib.machinery
import os.path
import sys

TYPE_CHECKING = False  # every process of the environment runs this file: it imports nothing it does not need
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a torch.library.Library takes its schemas with it when it is collected


def enable() -> None:
    """Watch for the first import of torchvision; calling it again changes nothing."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Hands torchvision to the ordinary import system with a loader that looks first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = _Loader(spec.loader, os.path.dirname(spec.origin))  # type: ignore[assignment]
        return spec


class _Loader:
    """Registers the schemas where they are missing, then loads the package as if it had not been there."""

    def __init__(self, loader: Any, folder: str):
        self.loader = loader
        self.folder = folder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        if not _kept and not _loads(self.folder):
            _register()
        self.loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _loads(folder: str) -> bool:
    """Whether one of the package's compiled operator libraries can be loaded beside this torch."""
    from pathlib import Path

    import torch

    for library in sorted(Path(folder).glob("_C*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _register() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)
