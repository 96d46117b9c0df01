"""A benchmark's data from the Hugging Face hub: one commit of its repository, laid out as it is published, archives unpacked.

`hub.json` in the root says which repositories and commits the data is of. What is there is not asked for again, so that an
evaluation of a fetched copy needs no network, and its results name the commit.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from eval.archives import archives_below, unpack
from eval.benchmarks.base import Benchmark
from visd import strict_json
from visd.observe.files import read_json, write_atomic
from visd.types import VisdError

NOTE = "hub.json"


def fetch(benchmark: Benchmark, root: Path, repository: str = "auto", revision: str = "") -> None:
    """Have a benchmark's data below `root`, from the hub as far as it is not there.

    Args:
        repository: of the data set; `auto` is the benchmark's own.
        revision: commit, tag or branch; empty is the commit that `root` holds, or else the newest one, which then stays.

    Raises:
        VisdError: the benchmark is not on the hub, `root` holds another repository or commit, the hub cannot be reached or
            has no such thing, or an archive cannot be unpacked.
    """
    sources = _sources(benchmark, repository)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(str(root / ".hub.lock")):
        note = _note_of(root, sources, revision)
        for number, (name, patterns) in enumerate(sources):
            entry = note["repositories"].setdefault(name, {"revision": revision if not number else ""})
            if "commit" not in entry:
                entry["commit"] = _commit(name, entry["revision"])
                _write(root, note)
            if not entry.get("complete"):
                _download(name, entry["commit"], patterns, root)
                entry["complete"] = True
                _write(root, note)
        for archive in archives_below(root):
            where = archive.path.relative_to(root).as_posix()
            if where not in note["unpacked"]:
                note["unpacked"][where] = unpack(archive)
                _write(root, note)


def provenance(root: Path) -> dict[str, str] | None:
    """Commits by repository of a fetched copy; None for data that was put there by hand."""
    path = root / NOTE
    if not path.is_file():
        return None
    return {name: str(entry.get("commit")) for name, entry in read_json(path)["repositories"].items()}


def _sources(benchmark: Benchmark, repository: str) -> list[tuple[str, tuple[str, ...]]]:
    """Repositories and the files of each."""
    if repository != "auto":
        return [(repository, tuple(pattern for files in benchmark.on_hub.values() for pattern in files) or ("*",))]
    if not benchmark.on_hub:
        raise VisdError(f"hub: {benchmark.name} is not on the hub. Get {benchmark.hub} by hand: {benchmark.needs}")
    return list(benchmark.on_hub.items())


def _note_of(root: Path, sources: list[tuple[str, Any]], revision: str) -> dict[str, Any]:
    """What is known of `root`.

    Raises:
        VisdError: it is of another repository or revision.
    """
    if not (root / NOTE).exists():
        return {"repositories": {}, "unpacked": {}}
    note = read_json(root / NOTE)
    held, wanted = note["repositories"], [name for name, _ in sources]
    if not held.keys() <= set(wanted):
        raise VisdError(f"hub: {root} holds {', '.join(held)}, not {wanted[0]}; name another root.")
    first = held.get(wanted[0], {})
    if revision and "commit" in first and revision not in (first["commit"], first["revision"]):
        raise VisdError(f"revision: {root} holds commit {first['commit']}, not {revision!r}; name another root.")
    return note


def _write(root: Path, note: dict[str, Any]) -> None:
    write_atomic(root / NOTE, strict_json.dumps(note, indent=1) + "\n")


def _commit(repository: str, revision: str) -> str:
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=_endpoint()).dataset_info(repository, revision=revision or None)
    except Exception as error:  # the library's own errors, and those of the HTTP client that it uses
        raise _failed(repository, revision, error) from error
    if not info.sha:
        raise VisdError(f"hub: {repository} names no commit of {revision or 'its newest state'}; give revision=COMMIT")
    return str(info.sha)


def _download(repository: str, commit: str, patterns: tuple[str, ...], root: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = HfApi(endpoint=_endpoint()).list_repo_files(repository, repo_type="dataset", revision=commit)
    except Exception as error:  # as above
        raise _failed(repository, commit, error) from error
    wanted = _wanted(repository, commit, patterns, names)
    try:
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=commit,
            allow_patterns=list(patterns),
            local_dir=root,
            endpoint=_endpoint(),
        )
    except Exception as error:  # as above
        raise _failed(repository, commit, error) from error
    # Where the network goes away, the library is content with a folder that is there.
    if missing := [name for name in wanted if not (root / name).is_file()]:
        raise VisdError(
            f"hub: {repository} at {commit}: {len(missing)} files did not come, as {missing[0]}; start again"
        )


def _wanted(repository: str, commit: str, patterns: tuple[str, ...], names: list[str]) -> list[str]:
    """The files of a repository that are fetched.

    Raises:
        VisdError: there is none of a pattern, or one would lie outside the root.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise VisdError(
                f"hub: {repository} at {commit} has no {pattern}: it is not laid out as this reader knows it; name another "
                "revision, or put the files there by hand"
            )
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if outside := [name for name in wanted if name.startswith("/") or ".." in PurePosixPath(name).parts]:
        raise VisdError(f"hub: {repository} at {commit} names {outside[0]!r}, which leads out of the root")
    return wanted


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")  # the library reads it at its import alone


def _failed(repository: str, revision: str, error: Exception) -> VisdError:
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return VisdError(
        f"hub: {repository}{f' at {revision}' if revision else ''} cannot be had ({type(error).__name__}: {said}). "
        "Check the network, the name, and for gated sets HF_TOKEN; or download it by hand."
    )
