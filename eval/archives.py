"""Archives of videos as benchmarks publish them: zip and tar, whole or in parts. They are unpacked beside themselves.

What an archive names is not trusted: one with a path that leads out of its folder, a link or a device is refused before anything
is written. Files get their names when they are whole, so that a restart finds what is done.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from data_tools.io.manifests import replacing
from visd.types import VisdError

_WHOLE = re.compile(r".+\.(?:zip|tar|tar\.gz|tgz)")
_PART = re.compile(r"(?P<whole>.+\.(?:zip|tar|tar\.gz|tgz))(?:[._-]part)?[._-]?(?P<part>\d{2,4}|[a-z]{2})")
_LITTER = ("__MACOSX", ".DS_Store")


@dataclass(frozen=True)
class Archive:
    """One archive, in one file or in parts."""

    path: Path  # of the whole, which need not be there
    parts: tuple[Path, ...]  # in order

    @property
    def is_zip(self) -> bool:
        return self.path.suffix == ".zip"


@dataclass(frozen=True)
class _Member:
    """One file of an archive."""

    name: str
    size: int  # bytes
    open: Callable[[], IO[bytes]]


def archives_below(root: Path) -> list[Archive]:
    """Every archive below a folder, hidden folders left out."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(root).parts) or not path.is_file():
            continue
        if _WHOLE.fullmatch(path.name):
            found.setdefault(path, []).append(path)
        elif match := _PART.fullmatch(path.name):
            found.setdefault(path.with_name(match["whole"]), []).append(path)
    # A whole file and its parts, both there: the whole has been put together from them.
    return [
        Archive(path, (path,) if path in parts else tuple(sorted(parts, key=_order)))
        for path, parts in sorted(found.items())
    ]


def _order(part: Path) -> tuple[int, str]:
    return len(part.name), part.name  # .99 before .100


def unpack(archive: Archive) -> int:
    """Unpack an archive into the folder that it lies in; files that are there whole are left. Returns how many it holds.

    Raises:
        VisdError: it is damaged or cut off, a part is missing, it names a file outside its folder or something that is no
            file, or the disk has no room for it.
    """
    folder, count = archive.path.parent, 0
    try:
        _check_order(archive)
        with _opened(archive) as stream, _members(archive, stream) as members:
            targets = [(member, _target(archive, member.name)) for member in members]
            waiting = [(m, t) for m, t in targets if not (t.is_file() and t.stat().st_size == m.size)]
            needed, free = sum(member.size for member, _ in waiting), shutil.disk_usage(folder).free
            if needed > free:
                raise VisdError(
                    f"{archive.path}: needs {needed >> 20} MiB, {folder} has {free >> 20} MiB left; make room"
                )
            for member, target in waiting:
                with replacing(target) as part, member.open() as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                    if file.tell() != member.size:
                        raise VisdError(f"{archive.path}: {member.name!r} is cut off; download the archive again")
            count = len(targets)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        parts = f" (parts: {', '.join(p.name for p in archive.parts)})" if len(archive.parts) > 1 else ""
        raise VisdError(f"{archive.path}{parts}: cannot be unpacked ({error}); download it again, all parts") from error
    return count


def _check_order(archive: Archive) -> None:
    """Refuse parts with a gap: without some of its files a tar is still a tar.

    Raises:
        ReadError: the first part is missing, or one between two.
    """
    matches = [_PART.fullmatch(part.name) for part in archive.parts if part != archive.path]
    names = [match["part"] for match in matches if match]
    # 000 or 001, 002, ...; or aa, ab, ..., as `split` names them.
    numbers = [int(n) if n.isdigit() else (ord(n[0]) - ord("a")) * 26 + ord(n[1]) - ord("a") for n in names]
    if numbers and (numbers[0] > names[0].isdigit() or numbers != list(range(numbers[0], numbers[0] + len(numbers)))):
        raise tarfile.ReadError("a part is missing")


def _target(archive: Archive, name: str) -> Path:
    """Where a member goes.

    Raises:
        VisdError: its name leads out of the archive's folder.
    """
    folder, path = archive.path.parent, PurePosixPath(name)
    outside = path.is_absolute() or PureWindowsPath(name).anchor or ".." in PurePosixPath(name.replace("\\", "/")).parts
    if outside or "\0" in name or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise VisdError(f"{archive.path}: holds {name!r}, which leads out of its folder; nothing of it is unpacked")
    return folder / path


@contextmanager
def _opened(archive: Archive) -> Iterator[IO[bytes]]:
    if len(archive.parts) == 1:
        with archive.parts[0].open("rb") as file:
            yield file
        return
    with io.BufferedReader(_Joined(archive.parts), 1 << 20) as joined:
        yield joined


@contextmanager
def _members(archive: Archive, stream: IO[bytes]) -> Iterator[list[_Member]]:
    """The files of an archive, in order.

    Raises:
        VisdError: a member is a link or a device.
        BadZipFile, ReadError: something is missing; Python's own readers are content with some of this.
    """
    found: list[_Member] = []
    if archive.is_zip:
        with zipfile.ZipFile(stream) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir() or _litter(info.filename):
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise _no_file(archive, info.filename)
                if info.header_offset < 0:
                    raise zipfile.BadZipFile("its start is missing")
                found.append(_Member(info.filename, info.file_size, _opener(opened.open, info)))
            yield found
        return
    with tarfile.open(fileobj=stream) as tar:
        for member in tar:
            if member.isdir() or _litter(member.name):
                continue
            if not member.isreg():
                raise _no_file(archive, member.name)
            found.append(_Member(member.name, member.size, _opener(tar.extractfile, member)))
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise tarfile.ReadError("it does not end as a tar does")
        yield found


def _opener(function: Callable[[Any], Any], member: Any) -> Callable[[], IO[bytes]]:
    return lambda: function(member)


def _litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and (parts[0] in _LITTER or parts[-1] in _LITTER or parts[-1].startswith("._"))


def _no_file(archive: Archive, name: str) -> VisdError:
    return VisdError(f"{archive.path}: {name!r} is a link or a device, no file; nothing of it is unpacked")


class _Joined(io.RawIOBase):
    """Several files as one, without a copy of them."""

    def __init__(self, parts: Sequence[Path]):
        self._parts, self._at = parts, 0
        self._sizes = [part.stat().st_size for part in parts]
        self._open: tuple[int, IO[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: sum(self._sizes)}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        begin = 0
        for index, size in enumerate(self._sizes):
            if self._at < begin + size:
                file = self._file(index)
                file.seek(self._at - begin)
                data = file.read(min(len(buffer), begin + size - self._at))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            begin += size
        return 0

    def _file(self, index: int) -> IO[bytes]:
        if self._open is None or self._open[0] != index:
            if self._open is not None:
                self._open[1].close()
            self._open = index, self._parts[index].open("rb")
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
        super().close()
