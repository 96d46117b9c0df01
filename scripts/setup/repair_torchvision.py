"""Lets torchvision's Python transforms work beside a torch that its compiled library was not built for.

    python scripts/setup/repair_torchvision.py install | remove | status

Run it with the interpreter of the environment in question. `install` writes two files into its site-packages: the
import hook (`torchvision_hook.py`) and a `.pth` line that enables it in every process, child processes included. It
writes nothing where torchvision imports by itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK = Path(__file__).with_name("torchvision_hook.py")
MODULE = "_visd_torchvision_hook"


def targets() -> tuple[Path, Path]:
    """The hook module and its `.pth` file in the running interpreter's site-packages."""
    site = Path(sysconfig.get_paths()["purelib"])
    return site / f"{MODULE}.py", site / f"{MODULE}.pth"


def installed() -> bool:
    return all(path.exists() for path in targets())


def imports() -> subprocess.CompletedProcess[str]:
    """Import torchvision in a fresh process."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)


def install() -> int:
    """Put the hook in place if torchvision needs it and check that it helped."""
    before = imports()
    if before.returncode == 0:
        print("torchvision: imports" + (" with the hook" if installed() else ", nothing to repair"))
        return 0
    if "operator torchvision::" not in before.stderr:
        print(f"torchvision: cannot be imported, and not for want of its operators:\n{before.stderr}", file=sys.stderr)
        return 1
    module, pth = targets()
    shutil.copyfile(HOOK, module)
    # A half-written .pth would break every start of this interpreter: put it there in one piece.
    part = pth.with_suffix(".part")
    part.write_text(f"import {MODULE}; {MODULE}.enable()\n")
    os.replace(part, pth)
    after = imports()
    if after.returncode != 0:
        remove()
        print(f"torchvision: the hook did not help and was taken out again:\n{after.stderr}", file=sys.stderr)
        return 1
    print(f"torchvision: operator schemas are registered by {module}")
    return 0


def remove() -> int:
    """Take both files out; the `.pth` line first, since it needs the module."""
    for path in reversed(targets()):
        path.unlink(missing_ok=True)
    return 0


def status() -> int:
    """Print whether the hook is installed and torchvision imports; 0 if it imports."""
    works = imports().returncode == 0
    print(f"hook: {'installed' if installed() else 'not installed'}; torchvision: {'imports' if works else 'fails'}")
    return 0 if works else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("install", "remove", "status"))
    return {"install": install, "remove": remove, "status": status}[parser.parse_args().action]()


if __name__ == "__main__":
    sys.exit(main())
