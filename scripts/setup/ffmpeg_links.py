"""Lends PyAV's own FFmpeg to torchcodec, on a machine that has no FFmpeg libraries.

    export LD_LIBRARY_PATH="$(python scripts/setup/ffmpeg_links.py .venv/ffmpeg)"

PyAV's wheel brings FFmpeg under names with a hash in them. This makes a folder of symbolic links with the usual names and
prints the value for LD_LIBRARY_PATH, which has to be set before a process starts. What was set before stays, behind it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

LIBRARY = re.compile(r"(libav(?:util|codec|format|device|filter)|libsw(?:scale|resample))-[0-9a-f]+(\.so\.\d+)[.\d]*")


def library_path(folder: Path) -> str:
    """Make the links in `folder`; the value for LD_LIBRARY_PATH.

    Raises:
        FileNotFoundError: PyAV is not installed from a wheel that brings FFmpeg.
    """
    spec = importlib.util.find_spec("av")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("PyAV (the package av) is not installed.")
    bundled = Path(spec.origin).resolve().parent.parent / "av.libs"
    found = {file: match for file in bundled.glob("*") if (match := LIBRARY.fullmatch(file.name))}
    if not found:
        raise FileNotFoundError(f"PyAV brings no FFmpeg in {bundled}; install FFmpeg itself.")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for file, match in found.items():
        link = folder / (match[1] + match[2])
        if not link.is_symlink() or link.readlink() != file:
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    return os.pathsep.join(filter(None, [str(folder), str(bundled), os.environ.get("LD_LIBRARY_PATH")]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to put the links")
    try:
        print(library_path(parser.parse_args().folder))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
