"""Archives written by the tools of their formats, and malicious archives."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import warnings
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from datasets import DataError
from datasets.archives import ArchiveError, unpack, unpacked_size

FILES = {
    "data/a.txt": b"first",
    "data/deep/er/b.bin": bytes(range(256)) * 5000,
    "other/c.txt": b"",
    "d": b"top",
}
Usage = namedtuple("Usage", "total used free")


def make_zip(path: Path, members: list[tuple[zipfile.ZipInfo | str, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # about duplicate names
        for member, content in members:
            file.writestr(member, content)
    return path


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make(kind: str, path: Path, members) -> Path:
    return {"zip": make_zip, "tar": make_tar}[kind](path.with_suffix(f".{kind}"), members)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


both = pytest.mark.parametrize("kind", ["zip", "tar"])


@both
def test_extracted_members_equal_the_packed_files(kind, tmp_path):
    archive = make(kind, tmp_path / "x", list(FILES.items()))
    written = []
    unpack(archive, tmp_path / "out", ["data", "d"], written.append)
    expected = {name: content for name, content in FILES.items() if not name.startswith("other")}
    assert contents(tmp_path / "out") == expected
    assert sum(written) == unpacked_size(archive, ["data", "d"]) == sum(map(len, expected.values()))


@both
def test_a_folder_packed_by_shutil_is_restored(kind, tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    archive = shutil.make_archive(
        str(tmp_path / "y"), kind, tmp_path / "in"
    )  # a tar of "./data/...", with folders
    unpack(Path(archive), tmp_path / "out", ["data", "other", "d"])
    assert contents(tmp_path / "out") == FILES


@both
def test_a_requested_name_is_not_a_prefix(kind, tmp_path):
    archive = make(kind, tmp_path / "x", [("train/a", b"1"), ("train2/a", b"2")])
    unpack(archive, tmp_path / "out", ["train"])
    assert contents(tmp_path / "out") == {"train/a": b"1"}


OUTSIDE = ["../evil", "data/../../evil", "/evil", "//evil", "C:/evil", "c:evil", "..\\evil", "\\evil", ".."]


@both
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("wanted", [["data"], ["data", "..", "/", "evil"]])
def test_names_outside_the_folder_are_rejected(kind, name, wanted, tmp_path):
    archive = make(kind, tmp_path / "x", [("data/good", b"good"), (name, b"evil")])
    with pytest.raises(ArchiveError, match="refused: its member .* would be written outside"):
        unpack(archive, tmp_path / "deep" / "out", wanted)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {archive.name, "good"}
    assert not Path("/evil").exists()


def test_a_name_with_a_zero_byte_is_rejected(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("data/aXb", b"1")])
    archive.write_bytes(archive.read_bytes().replace(b"data/aXb", b"data/a\0b"))
    with pytest.raises(ArchiveError, match="would be written outside"):
        unpack(archive, tmp_path / "out", ["data"])


SPECIAL = {
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
}


@pytest.mark.parametrize("what", SPECIAL)
def test_links_and_devices_in_a_tar_are_rejected(what, tmp_path):
    info = tarfile.TarInfo("data/link")
    info.type, info.linkname = SPECIAL[what], "/etc/passwd"
    archive = make_tar(tmp_path / "x.tar", [(info, b""), ("data/link/evil", b"evil")])
    with pytest.raises(ArchiveError, match="'data/link' is a link or a device"):
        unpack(archive, tmp_path / "out", ["data"])
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_rejected(mode, tmp_path):
    info = zipfile.ZipInfo("data/link")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    archive = make_zip(tmp_path / "x.zip", [(info, b"/etc"), ("data/link/evil", b"evil")])
    with pytest.raises(ArchiveError, match="'data/link' is a link or a device"):
        unpack(archive, tmp_path / "out", ["data"])
    assert contents(tmp_path / "out") == {}


@both
def test_two_members_with_one_name_are_rejected(kind, tmp_path):
    archive = make(kind, tmp_path / "x", [("data/a", b"1"), ("./data/a", b"2")])
    with pytest.raises(ArchiveError, match="two members named './data/a'"):
        unpack(archive, tmp_path / "out", ["data"])


@both
def test_a_file_that_is_also_a_folder_gives_one_clear_error(kind, tmp_path):
    archive = make(kind, tmp_path / "x", [("data/a", b"1"), ("data/a/b", b"2")])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out", ["data"])


@both
def test_a_truncated_archive_is_damaged(kind, tmp_path):
    archive = make(kind, tmp_path / "x", [("data/a", b"1" * 3000), ("data/b", b"2" * 3000)])
    whole = archive.read_bytes()
    # The end of a tar is padded with zeros, and only the first block of them is significant.
    last = len(whole) - 1 if kind == "zip" else 2 * (512 + 3072) + 511
    for size in [0, 1, 100, *range(500, last, 257), last]:
        archive.write_bytes(whole[:size])
        with pytest.raises(ArchiveError, match="is damaged"):
            unpack(archive, tmp_path / f"out{size}", ["data"])
    archive.write_bytes(whole)
    unpack(archive, tmp_path / "out", ["data"])


def test_the_checksum_of_a_zip_detects_a_flipped_bit(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("data/a", b"some content that nobody compresses")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"nobody", b"noboda"))
    with pytest.raises(ArchiveError, match="is damaged .*CRC"):
        unpack(archive, tmp_path / "out", ["data"])


def test_a_member_that_is_shorter_than_stated_is_truncated(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("data/a", b"ten bytes.")])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 24] += 1  # uncompressed size in the central directory
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="data/a is cut off"):
        unpack(archive, tmp_path / "out", ["data"])


def test_a_broken_header_in_a_tar_is_not_its_end(tmp_path):
    archive = make_tar(tmp_path / "x.tar", [("data/a", b"1"), ("data/b", b"2"), ("data/c", b"3")])
    content = bytearray(archive.read_bytes())
    content[1024 + 150] ^= 1  # the checksum field of the second header
    archive.write_bytes(content)
    with tarfile.open(archive) as file:
        assert file.getnames() == ["data/a"]  # the result of the library
    with pytest.raises(ArchiveError, match="is damaged .*byte 1024"):
        unpack(archive, tmp_path / "out", ["data"])


def test_an_encrypted_member_gives_one_clear_error(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("data/a", b"1")])
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # flag bits of the local header, and of the central one
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="is damaged .*encrypted"):
        unpack(archive, tmp_path / "out", ["data"])


def test_other_formats_are_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.rar is neither a \.zip nor a \.tar"):
        unpack(tmp_path / "x.rar", tmp_path / "out", ["data"])


@both
def test_a_full_disk_is_detected_before_the_first_byte(kind, tmp_path, monkeypatch):
    archive = make(kind, tmp_path / "x", list(FILES.items()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 1_280_004))
    with pytest.raises(DataError, match="make room") as caught:
        unpack(archive, tmp_path / "out", ["data"])
    assert not isinstance(caught.value, ArchiveError)  # which would delete the archive
    assert contents(tmp_path / "out") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 1_280_005))
    unpack(archive, tmp_path / "out", ["data"])
