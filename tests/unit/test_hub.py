"""Benchmarks by hub id: a commit is fetched and pinned, archives are unpacked safely, and every reader reads what came.

The hub is a server on the loopback that answers the library's own calls (`tests/hub_server.py`); its data sets are fixture
rows in the layout of the real ones, videos in archives as they are published.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import bench, benchmarks, hub
from eval.archives import archives_below, unpack
from eval.bench import load_items
from tests.bench_files import WRITERS, parquet, put
from tests.hub_server import Hub, hub_server
from visd.types import VisdError

VIDEO = b"not a video, but whole"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(monkeypatch) as found:
        yield found


def zipped(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, VIDEO)


def tarred(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(VIDEO)
            archive.addfile(info, io.BytesIO(VIDEO))


def parts_of(path: Path, names: Callable[[int], str], size: int = 100) -> None:
    data = path.read_bytes()
    for number, start in enumerate(range(0, len(data), size)):
        path.with_name(names(number)).write_bytes(data[start : start + size])
    path.unlink()


def videomme(root: Path) -> None:
    WRITERS["videomme"](root)
    zipped(root / "videos_chunked_01.zip", "data/other.mp4")
    zipped(root / "videos_chunked_02.zip", "data/fFjv93ACGo8.mp4", "data/", "__MACOSX/data/._fFjv93ACGo8.mp4")
    zipped(root / "subtitle.zip", "subtitle/fFjv93ACGo8.srt")


def mvbench(root: Path) -> None:
    WRITERS["mvbench"](root)
    zipped(root / "video/star.zip", "star/Charades_v1_480/v.mp4")
    zipped(
        root / "video/data0613.zip", "data0613/perception/videos/v.mp4"
    )  # a folder above that the reader does not expect


def tempcompass(root: Path) -> None:
    asked = "What does the ball do?\nA. rolls left\nB. rolls right"
    row = {"video_id": "1", "dim": "action", "question": asked, "answer": "B. rolls right"}
    parquet(root / "multi-choice/test-00000-of-00001.parquet", [row, row])
    parquet(root / "yes_no/test-00000-of-00001.parquet", [{**row, "question": "Is it fast?", "answer": "no"}])
    match = {"question": "Which?\nCaption A: It rolls.\nCaption B: It rests.", "answer": "Caption A: It rolls."}
    parquet(root / "caption_matching/test-00000-of-00001.parquet", [{**row, **match}])
    zipped(root / "tempcompass_videos.zip", "videos/1.mp4")


def vsibench(root: Path) -> None:
    WRITERS["vsibench"](root)
    for name in ("arkitscenes", "scannet", "scannetpp"):
        zipped(root / f"{name}.zip", f"{name}/scene0.mp4")


def videommmu(root: Path) -> None:
    choice = {"question": "Which?", "options": ["3", "4"], "answer": "B", "question_type": "perception"}
    parquet(root / "Perception/test-00000-of-00001.parquet", [{**choice, "id": "new_Computer_Science_1"}])
    choice["question_type"] = "multiple-choice"
    parquet(root / "Comprehension/test-00000-of-00001.parquet", [{**choice, "id": "validation_Art_Theory_2"}])
    asked = {"id": "dev_Math_3", "question": "How much?", "options": [], "answer": "2.50", "question_type": "open"}
    parquet(root / "Adaptation/test-00000-of-00001.parquet", [asked])
    zipped(root / "Engineering.zip", "Engineering/new_Computer_Science_1.mp4")
    zipped(root / "Art.zip", "Art/validation_Art_Theory_2.mp4")
    zipped(root / "Science.zip", "videos/Science/dev_Math_3.mp4")


def mmvu(root: Path) -> None:
    WRITERS["mmvu"](root)
    put(root / "videos/Art/0.mp4", VIDEO.decode())


def longvideobench(root: Path) -> None:
    WRITERS["longvideobench"](root)
    tarred(root / "videos.tar", "videos/v.mp4", "videos/w.mp4")
    parts_of(root / "videos.tar", lambda n: f"videos.tar.part.a{chr(ord('a') + n)}", 4000)


def lvbench(root: Path) -> None:
    WRITERS["lvbench"](root)


def lvbench_videos(root: Path) -> None:
    zipped(root / "all_videos_split.zip", "all_videos/k.mp4", "all_videos/l.mp4")
    parts_of(root / "all_videos_split.zip", lambda n: f"all_videos_split.zip.{n + 1:03d}")


def mlvu(root: Path) -> None:
    WRITERS["mlvu"](root / "MLVU")
    put(root / "MLVU/video/1_plotQA/a.mp4", VIDEO.decode())


def charades_sta(root: Path) -> None:
    rows = [{"video": "3MSZA.mp4", "caption": "person turn a light on.", "timestamp": [24.3, 30.4]}]
    parquet(root / "data/test-00000-of-00001.parquet", rows)
    zipped(root / "Charades_v1_480_part_1.zip", "Charades_v1_480/3MSZA.mp4")


def vstar(root: Path) -> None:
    WRITERS["vstar"](root)
    zipped(root / "V_STaR_videos.zip", "some folder/v.mp4")


def gsm8k(root: Path) -> None:
    parquet(root / "main/test-00000-of-00001.parquet", [{"question": "2+2?", "answer": "#### 4"}])
    parquet(root / "main/train-00000-of-00001.parquet", [{"question": "3+3?", "answer": "#### 6"}])


def math500(root: Path) -> None:
    WRITERS["math500"](root)


PUBLISHED: dict[str, tuple[Callable[[Path], None], int]] = {
    "videomme": (videomme, 3), "mvbench": (mvbench, 3), "tempcompass": (tempcompass, 4), "vsibench": (vsibench, 4),
    "videommmu": (videommmu, 3), "mmvu": (mmvu, 1), "longvideobench": (longvideobench, 1), "lvbench": (lvbench, 2),
    "mlvu": (mlvu, 2), "charades_sta": (charades_sta, 1), "vstar": (vstar, 5), "gsm8k": (gsm8k, 1), "math500": (math500, 1),
}  # fmt: skip
"""Every benchmark of the hub, and how many questions its fixture has."""


def publish(server: Hub, name: str, folder: Path) -> str:
    """Put a benchmark's data sets on the hub; the commit of the first."""
    first, *more = benchmarks.load(name).on_hub
    PUBLISHED[name][0](folder / "first")
    put(folder / "first/README.md", "of no use here")
    for other in more:
        lvbench_videos(folder / "more")
        server.put(other, folder / "more")
    return server.put(first, folder / "first")


def test_all_but_one_are_on_the_hub(tmp_path: Path) -> None:
    assert set(PUBLISHED) == {name for name in benchmarks.names() if benchmarks.load(name).on_hub}
    with pytest.raises(VisdError, match=r"nextgqa is not on the hub. Get doc-doc/NExT-GQA by hand: test.csv"):
        hub.fetch(benchmarks.load("nextgqa"), tmp_path)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_benchmark_is_fetched_and_read(name: str, server: Hub, tmp_path: Path) -> None:
    commit, root, benchmark = publish(server, name, tmp_path / "hub"), tmp_path / "root", benchmarks.load(name)
    hub.fetch(benchmark, root)
    items = load_items(benchmark, root)
    assert len(items) == PUBLISHED[name][1]
    assert not [m.path for item in items for m in item.media if (root / m.path).read_bytes() != VIDEO]
    assert not (root / "README.md").exists() and not list(root.rglob("*.part"))
    assert (hub.provenance(root) or {})[next(iter(benchmark.on_hub))] == commit
    server.asked.clear()
    hub.fetch(benchmark, root, revision=commit)
    assert not server.asked  # a copy needs no network


def test_a_copy_keeps_its_commit(server: Hub, tmp_path: Path) -> None:
    first, root, benchmark = (
        publish(server, "videomme", tmp_path / "hub"),
        tmp_path / "root",
        benchmarks.load("videomme"),
    )
    hub.fetch(benchmark, root, revision="main")
    second = server.put("lmms-lab/Video-MME", tmp_path / "hub/first", "2")
    hub.fetch(benchmark, root)
    assert hub.provenance(root) == {"lmms-lab/Video-MME": first} and first != second
    with pytest.raises(VisdError, match=f"holds commit {first}, not '{second}'; name another root"):
        hub.fetch(benchmark, root, revision=second)
    with pytest.raises(VisdError, match="holds lmms-lab/Video-MME, not me/other; name another root"):
        hub.fetch(benchmark, root, "me/other")
    assert hub.provenance(tmp_path) is None


def test_what_is_cut_short_goes_on(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, "videomme", tmp_path / "hub")
    root, benchmark, unpacked = tmp_path / "root", benchmarks.load("videomme"), []
    monkeypatch.setattr(hub, "unpack", lambda archive: unpacked.append(archive.path.name) or 1 // (2 - len(unpacked)))
    with pytest.raises(ZeroDivisionError):
        hub.fetch(benchmark, root)
    monkeypatch.setattr(hub, "unpack", lambda archive: unpacked.append(archive.path.name) or unpack(archive))
    hub.fetch(benchmark, root)
    assert unpacked == ["videos_chunked_01.zip", "videos_chunked_02.zip", "videos_chunked_02.zip"]


def test_what_the_hub_does_not_have(server: Hub, tmp_path: Path) -> None:
    benchmark = benchmarks.load("videomme")
    with pytest.raises(VisdError, match=r"hub: lmms-lab/Video-MME cannot be had .* HF_TOKEN"):
        hub.fetch(benchmark, tmp_path / "a")
    publish(server, "videomme", tmp_path / "hub")
    with pytest.raises(VisdError, match="hub: lmms-lab/Video-MME at other cannot be had"):
        hub.fetch(benchmark, tmp_path / "b", revision="other")
    server.lost.add("videos_chunked_02.zip")
    with pytest.raises(VisdError, match="cannot be had"):
        hub.fetch(benchmark, tmp_path / "c")
    server.lost.clear()
    hub.fetch(benchmark, tmp_path / "c")
    server.extra = ["videomme/test-/../../../x.parquet"]
    with pytest.raises(VisdError, match="leads out of the root"):
        hub.fetch(benchmark, tmp_path / "d")
    (tmp_path / "hub/first/videomme/test-00000-of-00001.parquet").unlink()
    server.extra = []
    with pytest.raises(VisdError, match=r"has no videomme/test-\*.parquet: it is not laid out as this reader knows it"):
        hub.fetch(benchmark, tmp_path / "e")
    assert not (tmp_path / "x.parquet").exists()


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(VisdError, match=r"gsm8k cannot be had .* Check the network"):
        hub.fetch(benchmarks.load("gsm8k"), tmp_path / "root")


def linked(path: Path, kind: str) -> None:
    """An archive with a symbolic link that leads out, and then a file through it."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.mp4", VIDEO)
            info = zipfile.ZipInfo("out")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/tmp")
        return
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("out")
        info.type, info.linkname = tarfile.SYMTYPE, "/tmp"
        tar.addfile(info)


HOSTILE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "above": ("a.zip", lambda path: zipped(path, "ok.mp4", "../evil.mp4"), "leads out of its folder"),
    "absolute": ("a.zip", lambda path: zipped(path, "ok.mp4", "/evil.mp4"), "leads out of its folder"),
    "windows": ("a.zip", lambda path: zipped(path, "ok.mp4", "..\\evil.mp4"), "leads out of its folder"),
    "tar above": ("a.tar", lambda path: tarred(path, "ok.mp4", "x/../../evil.mp4"), "leads out of its folder"),
    "zip link": ("a.zip", lambda path: linked(path, "zip"), "is a link or a device"),
    "tar link": ("a.tar", lambda path: linked(path, "tar"), "is a link or a device"),
    "no zip": ("a.zip", lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "cannot be unpacked"),
    "no tar": ("a.tar.gz", lambda path: path.write_bytes(b"nothing at all"), "cannot be unpacked"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_is_not_trusted(kind: str, tmp_path: Path) -> None:
    name, make, said = HOSTILE[kind]
    folder = tmp_path / "root"
    folder.mkdir()
    make(folder / name)
    [archive] = archives_below(folder)
    with pytest.raises(VisdError, match=said) as error:
        unpack(archive)
    assert str(folder / name) in str(error.value)
    assert [path.name for path in folder.iterdir()] == [name] and not (tmp_path / "evil.mp4").exists()


def test_damaged_and_missing_parts(tmp_path: Path) -> None:
    path = tmp_path / "v.zip"
    zipped(path, "a.mp4", "b.mp4")
    whole = path.read_bytes()
    at = whole.index(b"a.mp4") + 8
    path.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
    with pytest.raises(VisdError, match=r"v.zip: cannot be unpacked"):
        unpack(archives_below(tmp_path)[0])
    assert not (tmp_path / "a.mp4").exists() and not list(tmp_path.glob(".*"))
    path.write_bytes(whole)
    parts_of(path, lambda n: f"v.zip.{n + 1:03d}")
    [archive] = archives_below(tmp_path)
    assert unpack(archive) == 2 and (tmp_path / "b.mp4").read_bytes() == VIDEO
    (tmp_path / "v.zip.001").unlink()
    with pytest.raises(VisdError, match=r"v.zip.*cannot be unpacked .* all parts"):
        unpack(archives_below(tmp_path)[0])


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_missing_part_is_noticed_wherever_it_is(lost: int, suffix: str, tmp_path: Path) -> None:
    """A tar without some of its files is a tar, and one that is cut off behind a file is read without complaint."""
    path = tmp_path / f"v.{suffix}"
    (zipped if suffix == "zip" else tarred)(path, *(f"{n}.mp4" for n in range(40)))
    size = 1024 * -(-path.stat().st_size // 1024 // 3)  # a third, and whole files of the tar
    parts_of(path, lambda n: f"{path.name}.{n + 1:03d}", size)
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / f"{path.name}.{lost + 1:03d}").unlink()
    with pytest.raises(VisdError, match=r"cannot be unpacked .* all parts"):
        unpack(archives_below(tmp_path)[0])
    assert not list(tmp_path.glob("*.mp4"))


def test_a_link_that_is_there_does_not_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    zipped(folder / "v.zip", "data/a.mp4")
    (tmp_path / "elsewhere").mkdir()
    (folder / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VisdError, match="leads out of its folder"):
        unpack(archives_below(folder)[0])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_archive_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "v.zip", "a.mp4")
    usage = type("usage", (), {"free": 3})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(VisdError, match="make room"):
        unpack(archives_below(tmp_path)[0])


def test_videos_elsewhere_are_found_by_their_end(tmp_path: Path) -> None:
    """Folder and name where names repeat, the name alone where it tells the video; two candidates are none."""
    WRITERS["mvbench"](tmp_path)
    put(tmp_path / "video/more/star/Charades_v1_480/v.mp4", "x")
    put(tmp_path / "elsewhere/v.mp4", "x")
    found = {item.id: item.media[0].path for item in load_items(benchmarks.load("mvbench"), tmp_path)}
    assert found["action_sequence_0"] == "video/more/star/Charades_v1_480/v.mp4"
    assert found["object_shuffle_0"] == "video/perception/videos/v.mp4"
    put(tmp_path / "again/Charades_v1_480/v.mp4", "x")
    found = {item.id: item.media[0].path for item in load_items(benchmarks.load("mvbench"), tmp_path)}
    assert found["action_sequence_0"] == "video/more/star/Charades_v1_480/v.mp4"  # three parts of its path against two
    put(tmp_path / "third/star/Charades_v1_480/v.mp4", "x")
    found = {item.id: item.media[0].path for item in load_items(benchmarks.load("mvbench"), tmp_path)}
    assert found["action_sequence_0"] == "video/star/Charades_v1_480/v.mp4"


def test_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["model=m", "benchmark=videomme", f"root={tmp_path}", f"out={tmp_path / 'out'}"]
    with pytest.raises(VisdError, match="revision: is of hub"):
        bench.parse([*given, "revision=main"])
    one, two = bench.parse(given), bench.parse([*given, "hub=auto", "revision=main"])
    assert bench.fingerprint(one, "x") == bench.fingerprint(two, "x")
    with pytest.raises(VisdError, match=r"root: .*nowhere is no folder; give .* hub=auto"):
        load_items(benchmarks.load("videomme"), tmp_path / "nowhere")
    WRITERS["videomme"](tmp_path)
    bench.warn_of_missing(load_items(benchmarks.load("videomme"), tmp_path), tmp_path)
    assert "files of 3 of 3 questions are not below" in capsys.readouterr().err
