"""The hook registers torchvision's operators where its library cannot load, and keeps away where it can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT

# What the real package does when it is imported: it attaches to an operator that must exist by then.
PACKAGE = 'import torch\ntorch.library.register_fake("torchvision::nms")(lambda *args: None)\n'
ENABLE = "import torchvision_hook; torchvision_hook.enable(); torchvision_hook.enable()"


def run(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    paths = [str(package), str(ROOT / "scripts/setup")]
    # The environment's own hook, if it has one, is taken out first: the one under test is to do the work.
    prelude = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'torchvision' not in type(f).__module__]"
    )
    return subprocess.run([sys.executable, "-c", f"{prelude}\n{code}"], capture_output=True, text=True, timeout=120)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(PACKAGE)
    return tmp_path


def test_without_the_hook_the_package_fails(package: Path) -> None:
    done = run(package, "import torchvision")
    assert done.returncode != 0 and "operator torchvision::nms does not exist" in done.stderr


def test_a_library_that_cannot_load_is_repaired(package: Path) -> None:
    (package / "torchvision" / "_C.so").write_bytes(b"built for something else")
    code = f"""{ENABLE}
import torchvision, importlib.machinery, torch
assert isinstance(torchvision.__loader__, importlib.machinery.SourceFileLoader)
assert torchvision.__spec__.loader is torchvision.__loader__
torch.ops.torchvision.nms, torch.ops.torchvision.qnms
assert sum('torchvision' in type(f).__module__ for f in sys.meta_path) == 1
"""
    done = run(package, code)
    assert done.returncode == 0, done.stderr


def test_a_library_that_loads_is_left_alone(package: Path) -> None:
    import numpy._core._multiarray_umath as some_library

    (package / "torchvision" / "_C.so").write_bytes(Path(some_library.__file__).read_bytes())
    done = run(package, f"import numpy\n{ENABLE}\nimport torchvision")
    assert done.returncode != 0 and "operator torchvision::nms does not exist" in done.stderr


def test_looking_for_the_package_imports_nothing(package: Path) -> None:
    code = f"{ENABLE}\nimport importlib.util\nassert importlib.util.find_spec('torchvision')\nassert 'torch' not in sys.modules"
    done = run(package, code)
    assert done.returncode == 0, done.stderr


def test_torchvision_imports_in_child_processes_of_this_environment() -> None:
    code = "import torchvision.transforms.v2"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"run `make env`\n{done.stderr}"
