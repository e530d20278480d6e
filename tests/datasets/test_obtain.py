"""The commands that download published data sets, with tiny archives in the real layout on a server on 127.0.0.1."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from rich.console import Console
from torchvision.datasets.voc import DATASET_YEAR_DICT

from datasets import download as transfer
from datasets import http_range, read_coco, read_lvis, read_voc, releases, transfer_progress
from datasets.data_folder import DataFolder
from datasets.releases import VOC
from scripts import prepare_data
from scripts.prepare_data import main
from tests.datasets.file_server import FileServer, running

COCO = ["annotations_trainval2017.zip", "val2017.zip", "train2017.zip"]
LVIS = ["lvis_v1_train.json.zip", "lvis_v1_val.json.zip"]
VOC_TARS = ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar"]
Usage = namedtuple("Usage", "total used free")


def jpeg(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def pack_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def pack_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def coco_json(ids: list[int], split: str) -> bytes:
    images = [
        {"id": i, "file_name": f"{i:012}.jpg", "width": 40, "height": 30,
         "coco_url": f"http://images.cocodataset.org/{split}/{i:012}.jpg",
         "neg_category_ids": [2], "not_exhaustive_category_ids": []}
        for i in ids
    ]  # fmt: skip
    annotations = [
        {"id": 10 + i, "image_id": i, "category_id": 1, "bbox": [i, 2, 10, 8], "area": 80, "iscrowd": 0}
        for i in ids
    ]
    categories = [
        {"id": 1, "name": "person", "frequency": "f"},
        {"id": 2, "name": "bicycle", "frequency": "r"},
    ]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def voc_files(year: str, split: str, names: list[str]) -> dict[str, bytes]:
    xml = (
        "<annotation><size><width>40</width><height>30</height></size><object><name>dog</name><difficult>0</difficult>"
        "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox></object></annotation>"
    )
    files = {f"ImageSets/Main/{split}.txt": "".join(f"{name}\n" for name in names).encode()}
    for number, name in enumerate(names):
        files[f"Annotations/{name}.xml"] = xml.format(20 + number).encode()
        files[f"JPEGImages/{name}.jpg"] = jpeg(number)
    return {f"VOCdevkit/{year}/{name}": content for name, content in files.items()}


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    train, val = [1, 2, 3], [5, 6]
    return {
        "annotations_trainval2017.zip": pack_zip(
            {
                "annotations/instances_train2017.json": coco_json(train, "train2017"),
                "annotations/captions_train2017.json": b"{}",
                "annotations/instances_val2017.json": coco_json(val, "val2017"),
            }
        ),
        "train2017.zip": pack_zip({"train2017/": b""} | {f"train2017/{i:012}.jpg": jpeg(i) for i in train}),
        "val2017.zip": pack_zip({"val2017/": b""} | {f"val2017/{i:012}.jpg": jpeg(i) for i in val}),
        "lvis_v1_train.json.zip": pack_zip({"lvis_v1_train.json": coco_json([1, 2], "train2017")}),
        # As in the real data set, some images are in COCO's training folder.
        "lvis_v1_val.json.zip": pack_zip({"lvis_v1_val.json": coco_json([3], "train2017")}),
        "VOCtrainval_06-Nov-2007.tar": pack_tar(voc_files("VOC2007", "trainval", ["000005", "000007"])),
        "VOCtest_06-Nov-2007.tar": pack_tar(voc_files("VOC2007", "test", ["000001"])),
        "VOCtrainval_11-May-2012.tar": pack_tar(
            voc_files("VOC2012", "trainval", ["2008_000002", "2008_000003"])
        ),
    }


@pytest.fixture
def server(archives, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http_range, "PAUSE", 0.001)
    monkeypatch.setattr(transfer, "CHUNK", 600)
    with running(FileServer(files=dict(archives))) as server:
        yield server


@functools.cache
def composed(overrides: tuple[str, ...]):
    return compose_dataset(list(overrides))


compose_dataset = prepare_data._dataset


@pytest.fixture
def prepare(server, tmp_path, monkeypatch):
    """Run a command in an empty folder with the server; ``verify`` requires the sizes and checksums of the publisher."""
    monkeypatch.chdir(tmp_path)
    # Composing takes longer than the rest of most tests, so the result is cached by overrides.
    monkeypatch.setattr(prepare_data, "_dataset", lambda overrides: copy.deepcopy(composed(tuple(overrides))))

    def run(name: str, *arguments: str, verify: bool = False) -> int:
        options = [f"mirror={server.url}/", "paths.cache=cache"] + ([] if verify else ["verify=false"])
        return main([name, *options, *arguments])

    return run


@pytest.fixture
def published(archives, monkeypatch):
    """Replace the real sizes, checksums and counts with those of the tiny archives."""
    counts = {"train2017": 3, "val2017": 2, "VOC2007/Annotations": 3, "VOC2007/JPEGImages": 3}

    def tiny(part):
        own = tuple(
            dataclasses.replace(
                archive,
                size=len(archives[archive.name]),
                sha256=hashlib.sha256(archives[archive.name]).hexdigest(),
            )
            for archive in part.archives
        )
        return dataclasses.replace(
            part, archives=own, counts={path: counts.get(path, 2) for path in part.counts}
        )

    table = {
        name: {entry: tuple(map(tiny, parts)) for entry, parts in entries.items()}
        for name, entries in releases.PUBLISHED.items()
    }
    monkeypatch.setattr(releases, "PUBLISHED", table)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


COCO_LAYOUT = {
    "annotations/instances_train2017.json", "annotations/instances_val2017.json", "downloads.json",
    "train2017/000000000001.jpg", "train2017/000000000002.jpg", "train2017/000000000003.jpg",
    "val2017/000000000005.jpg", "val2017/000000000006.jpg",
}  # fmt: skip


def asked(server: FileServer) -> set[str]:
    return {path for path, _ in server.requests}


def test_coco_has_a_readable_index_and_the_second_run_sends_no_request(
    prepare, server, archives, tmp_path, capsys
):
    assert prepare("coco") == 0
    root = tmp_path / "data" / "coco"
    assert files(root) == COCO_LAYOUT and not (root / "archives").exists()
    index = read_coco(root / "annotations" / "instances_train2017.json", root / "train2017")
    assert index.boxes.tolist() == [[i, 2, i + 10, 10] for i in (1, 2, 3)]
    assert (root / "val2017" / "000000000005.jpg").read_bytes() == jpeg(5)
    printed = capsys.readouterr().out
    assert "coco is complete in data/coco" in printed and "3 images, 3 objects, 2 classes" in printed
    manifest = json.loads((root / "downloads.json").read_bytes())
    assert manifest["sha256"] == {name: hashlib.sha256(archives[name]).hexdigest() for name in COCO}
    assert manifest["files"] == {"train2017": 3, "val2017": 2}
    server.requests.clear()
    assert prepare("coco") == 0
    assert not server.requests and capsys.readouterr().out == "coco is complete in data/coco\n"


def test_voc_merges_both_archives_of_2007(prepare, tmp_path):
    assert prepare("voc") == 0
    root = tmp_path / "data" / "VOCdevkit"
    assert {path.name for path in root.iterdir()} == {"VOC2007", "VOC2012", "downloads.json"}
    train = read_voc(root, ["VOC2007/trainval", "VOC2012/trainval"])
    test = read_voc(root, ["VOC2007/test"])
    assert [Path(name).stem for name in train.file_names] == [
        "000005",
        "000007",
        "2008_000002",
        "2008_000003",
    ]
    assert test.file_names == ["VOC2007/JPEGImages/000001.jpg"] and test.boxes.tolist() == [[0, 1, 20, 20]]


def test_lvis_uses_the_images_of_coco(prepare, server, tmp_path, capsys):
    assert prepare("coco") == 0
    server.requests.clear()
    assert prepare("lvis") == 0
    assert asked(server) == set(LVIS)
    root = tmp_path / "data" / "lvis"
    assert files(root) == {"annotations/lvis_v1_train.json", "annotations/lvis_v1_val.json", "downloads.json"}
    val = read_lvis(root / "annotations" / "lvis_v1_val.json", tmp_path / "data" / "coco")
    assert val.file_names == ["train2017/000000000003.jpg"]
    assert "lvis is complete in data/lvis and data/coco" in capsys.readouterr().out


def test_lvis_downloads_the_images_of_coco_but_not_its_annotations(prepare, server, tmp_path):
    assert prepare("lvis", "dataset.root=both", "dataset.images=both") == 0
    assert asked(server) == {*LVIS, "train2017.zip", "val2017.zip"}
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        "annotations", "train2017", "val2017", "downloads.json"
    }  # fmt: skip


def test_published_sizes_and_checksums_are_required(prepare, published, tmp_path):
    for name in ("coco", "lvis", "voc"):
        assert prepare(name, verify=True) == 0
    assert COCO_LAYOUT == files(tmp_path / "data" / "coco")


def test_a_wrong_size_is_rejected_before_the_download(prepare, server, tmp_path, capsys):
    assert prepare("coco", verify=True) == 2
    error = capsys.readouterr().err
    assert (
        "annotations_trainval2017.zip has" in error
        and "but the published annotations_trainval2017.zip has 252,907,541" in error
    )
    assert [start for _, start in server.requests] == [0] and files(tmp_path) == set()


def test_a_wrong_checksum_is_rejected_and_the_next_run_downloads_the_right_file(
    prepare, published, server, archives, tmp_path, capsys
):
    flipped = bytearray(archives["train2017.zip"])
    flipped[len(flipped) // 2] ^= 1
    server.files["train2017.zip"] = bytes(flipped)
    assert prepare("coco", verify=True) == 2
    error = capsys.readouterr().err
    assert hashlib.sha256(flipped).hexdigest() in error
    assert hashlib.sha256(archives["train2017.zip"]).hexdigest() in error
    root = tmp_path / "data" / "coco"
    assert files(root) == {name for name in COCO_LAYOUT if not name.startswith("train2017")}
    server.files["train2017.zip"] = archives["train2017.zip"]
    server.requests.clear()
    assert prepare("coco", verify=True) == 0
    assert asked(server) == {"train2017.zip"} and files(root) == COCO_LAYOUT


def test_a_computed_checksum_is_required_later(prepare, server, tmp_path, capsys):
    assert prepare("coco") == 0
    root = tmp_path / "data" / "coco"
    shutil.rmtree(root / "val2017")
    server.files["val2017.zip"] = pack_zip({f"val2017/{i:012}.jpg": jpeg(i + 1) for i in (5, 6)})
    assert prepare("coco") == 2
    assert f"but {root / 'downloads.json'} has" in capsys.readouterr().err and not (root / "val2017").exists()
    (root / "downloads.json").unlink()
    assert prepare("coco") == 2  # without it, three images are too few for the published set
    assert "train2017 contains 3 of 118,287 files: the copy is incomplete" in capsys.readouterr().err


def room_for_coco(archives: dict[str, bytes]) -> int:
    """Bytes for archives and data: annotations unpack to about twice their archive, images to 1.02 times theirs."""
    annotations, *images = (len(archives[name]) for name in COCO)
    return int(3 * annotations + 2.02 * sum(images))


def test_an_interrupted_download_continues(
    prepare, published, server, archives, tmp_path, monkeypatch, capsys
):
    first = {"n": 0}
    answer = server.answer

    def fail_later(handler):
        first["n"] += 1
        if first["n"] == 7:
            server.statuses = [403]
        answer(handler)

    server.answer = fail_later
    assert prepare("coco", "connections=1", verify=True) == 2
    assert "403 Forbidden" in capsys.readouterr().err
    server.requests.clear()
    server.sent = 0
    # Existing files need no additional space.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, room_for_coco(archives) - 1))
    assert prepare("coco", "connections=1", verify=True) == 0
    # The chunks that the first run received are not sent again.
    assert server.sent < sum(len(archives[name]) for name in COCO)
    assert files(tmp_path / "data" / "coco") == COCO_LAYOUT


def test_broken_connections_do_not_affect_the_result(prepare, published, server, tmp_path):
    server.cut_after, server.cuts = 200, 12
    assert prepare("coco", "connections=3", verify=True) == 0
    assert server.cuts == 0 and files(tmp_path / "data" / "coco") == COCO_LAYOUT


def test_incomplete_files_of_a_killed_run_are_removed(prepare, tmp_path):
    root = tmp_path / "data" / "VOCdevkit"
    stale = root / "archives" / "unpacking" / "VOCdevkit" / "VOC2007" / "Annotations" / "000009.xml"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half a file")
    assert prepare("voc") == 0
    found = {path.name for path in (root / "VOC2007" / "Annotations").iterdir()}
    assert found == {"000001.xml", "000005.xml", "000007.xml"} and not (root / "archives").exists()


def test_kept_archives_are_reused(prepare, server, tmp_path, capsys):
    assert prepare("coco", "keep_archives=true") == 0
    root = tmp_path / "data" / "coco"
    assert {path.name for path in (root / "archives").iterdir()} == set(COCO)
    shutil.rmtree(root / "train2017")
    (root / "annotations" / "instances_val2017.json").unlink()
    server.requests.clear()
    assert prepare("coco") == 0
    assert not server.requests and COCO_LAYOUT < files(root)
    assert f"using {root / 'archives' / 'train2017.zip'}" in capsys.readouterr().out


def test_an_existing_copy_is_linked(prepare, server, tmp_path):
    assert prepare("coco", "dataset.root=copy") == 0
    shutil.rmtree(tmp_path / "copy" / "val2017")
    server.requests.clear()
    assert prepare("coco", "existing=copy") == 0
    root = tmp_path / "data" / "coco"
    assert asked(server) == {"val2017.zip"} and files(root / "train2017") == files(
        tmp_path / "copy" / "train2017"
    )
    assert (root / "train2017").resolve() == tmp_path / "copy" / "train2017"
    assert (root / "annotations" / "instances_val2017.json").is_symlink() and not (
        root / "val2017"
    ).is_symlink()
    assert len(read_coco(root / "annotations" / "instances_train2017.json", root / "train2017")) == 3
    server.requests.clear()
    assert prepare("coco") == 0 and not server.requests


def test_existing_archives_are_used_in_place(prepare, server, archives, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in COCO:
        (folder / name).write_bytes(archives[name])
    assert prepare("coco", "existing=downloads") == 0
    assert not server.requests and files(tmp_path / "data" / "coco") == COCO_LAYOUT
    assert {path.name for path in folder.iterdir()} == set(COCO)


def test_a_damaged_archive_of_the_user_is_named_and_kept(prepare, server, archives, tmp_path, capsys):
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "val2017.zip").write_bytes(archives["val2017.zip"][:-30])
    assert prepare("coco", "existing=downloads") == 2
    assert f"{folder.relative_to(tmp_path) / 'val2017.zip'} is damaged" in capsys.readouterr().err
    assert (folder / "val2017.zip").exists() and not (tmp_path / "data" / "coco" / "val2017").exists()


@pytest.mark.parametrize("keep", ["VOC2007/Annotations", "VOC2007/JPEGImages"])
def test_an_incomplete_copy_is_rejected(prepare, server, tmp_path, keep, capsys):
    (tmp_path / "data" / "VOCdevkit" / keep).mkdir(parents=True)
    (tmp_path / "data" / "VOCdevkit" / keep / "000001.any").touch()
    assert prepare("voc") == 2
    error = capsys.readouterr().err
    assert "of 9,963 files: the copy is incomplete; move or delete it" in error and not server.requests
    assert prepare("voc", "dataset.root=new", "existing=data/VOCdevkit") == 2
    assert "of 9,963 files" in capsys.readouterr().err


def test_an_empty_folder_is_not_a_copy_and_a_dead_link_is_named(prepare, tmp_path, capsys):
    root = tmp_path / "data" / "coco"
    (root / "train2017").mkdir(parents=True)
    (root / "val2017").symlink_to(tmp_path / "gone")
    assert prepare("coco") == 2
    assert "val2017 links to" in capsys.readouterr().err
    (root / "val2017").unlink()
    assert prepare("coco") == 0 and files(root) == COCO_LAYOUT


def test_unusable_target_folders_are_named_before_the_download(
    prepare, server, tmp_path, monkeypatch, capsys
):
    root, other = tmp_path / "data" / "coco", tmp_path / "other disk"
    root.mkdir(parents=True)
    other.mkdir()
    (root / "train2017").symlink_to(other)
    assert prepare("coco") == 2
    assert f"train2017 links to {other}, which is empty; remove the link" in capsys.readouterr().err
    (root / "train2017").unlink()
    (root / "annotations").symlink_to(other)
    stat = os.stat

    def on_two_disks(path, **how):
        found = stat(path, **how)
        return (
            found
            if str(path) != str(root / "annotations")
            else SimpleNamespace(st_dev=-1, st_mode=found.st_mode)
        )

    with monkeypatch.context() as patched:
        patched.setattr("datasets.data_folder.os.stat", on_two_disks)
        assert prepare("coco") == 2
    assert "annotations is on another disk than" in capsys.readouterr().err
    assert not server.requests
    assert prepare("coco") == 0
    assert files(other) == {"instances_train2017.json", "instances_val2017.json"}


def test_a_full_disk_is_detected_before_the_download(
    prepare, server, archives, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, room_for_coco(archives) - 1))
    assert prepare("coco") == 2
    assert "free; make room, or set dataset.root" in capsys.readouterr().err
    assert len(server.requests) == 3 and files(tmp_path) == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, room_for_coco(archives) + 1))
    assert prepare("coco") == 0


EVIL = {
    "../../../evil": "would be written outside",
    "/tmp/afl-evil": "would be written outside",
    "train2017/../../evil": "would be written outside",
}


@pytest.mark.parametrize("name", EVIL)
def test_a_malicious_archive_writes_no_file(prepare, server, tmp_path, name, capsys):
    server.files["train2017.zip"] = pack_zip({"train2017/000000000001.jpg": jpeg(1), name: b"evil"})
    assert prepare("coco") == 2
    assert EVIL[name] in capsys.readouterr().err
    assert not any("evil" in path for path in files(tmp_path)) and not Path("/tmp/afl-evil").exists()
    root = tmp_path / "data" / "coco"
    assert not (root / "train2017").exists() and not (root / "archives" / "unpacking").exists()
    assert not (root / "archives" / "train2017.zip").exists()


def test_an_archive_with_other_content_is_rejected(prepare, server, tmp_path, capsys):
    server.files["train2017.zip"] = pack_zip({"train2014/1.jpg": b""})
    assert prepare("coco") == 2
    assert "train2017.zip came without train2017" in capsys.readouterr().err


def test_two_runs_for_one_folder_do_not_interfere(prepare, tmp_path, capsys):
    with DataFolder.locked(tmp_path / "data" / "coco"):
        assert prepare("coco") == 2
    assert "another process is preparing" in capsys.readouterr().err
    assert prepare("coco") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["miror=http://127.0.0.1"], "there is no option 'miror'. Did you mean mirror?"),
        (["verify=maybe"], "verify is 'maybe'; it must be true or false"),
        (["connections=0"], "connections=0 is not a number from 1 to 32"),
        (["existing=/nowhere"], "there is no folder /nowhere: correct existing="),
        (["mirror=/data"], "/data/annotations_trainval2017.zip is not an http or https address"),
        (["dataset.rot=x"], "dataset.rot"),
        (["dataset.root=/proc/here"], "cannot be used as a folder for data"),
    ],
)
def test_wrong_options_give_one_clear_error(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["coco", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_manifest_is_named(prepare, tmp_path, capsys):
    (tmp_path / "data" / "coco").mkdir(parents=True)
    (tmp_path / "data" / "coco" / "downloads.json").write_text("[1")
    assert prepare("coco") == 2
    assert "downloads.json cannot be read; delete it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["coco", "lvis", "voc"])
def test_the_error_for_a_missing_data_set_names_its_command_first(name, tmp_path, capsys):
    assert main(["check", f"dataset={name}", f"dataset.root={tmp_path / 'none'}"]) == 2
    error = capsys.readouterr().err
    assert error.index(f": run `make data-{name}` (python -m scripts.prepare_data {name})") < error.index(
        "by hand"
    )


def test_voc_files_are_those_of_torchvision_at_the_server_that_serves_them_now():
    # Older releases of torchvision name a host that only redirects to this server.
    known = {urlsplit(DATASET_YEAR_DICT[year]["url"]).path for year in ("2007", "2007-test", "2012")}
    addresses = [urlsplit(archive.url) for part in VOC for archive in part.archives]
    assert {address.path for address in addresses} == known
    assert {(address.scheme, address.netloc) for address in addresses} == {("https", "thor.robots.ox.ac.uk")}


def test_plain_lines_show_the_progress(monkeypatch, capsys):
    monkeypatch.setattr(transfer_progress, "PLAIN_LINE_EVERY", 0.0)
    with transfer_progress.transfer_progress(Console(force_terminal=False)) as (progress, say):
        tick = progress("train2017.zip", 400_000_000, 100_000_000)
        tick(200_000_000)
        say("done")
    printed = capsys.readouterr().out
    assert printed.startswith("train2017.zip: 300 of 400 MB (75%), ") and printed.endswith("min left\ndone\n")


def test_a_terminal_shows_bars():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with transfer_progress.transfer_progress(console) as (progress, say):
        progress("train2017.zip", 4_000_000, 1_000_000)(3_000_000)
        say("unpacked [here]")
    assert "train2017.zip" in screen.getvalue() and "4.0/4.0 MB" in screen.getvalue()
    assert "unpacked [here]" in screen.getvalue()
