"""Archives from strangers: what is good comes out, what is hostile doesn't, and nothing leaves the folder."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from vl2v.data.archives import Limits, unpack
from vl2v.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "out").mkdir(parents=True)
    return tmp_path / "deep" / "out"


def zipped(path: Path, files: dict[str, bytes], **modes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get("mode", 0) << 16
            archive.writestr(info, data)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def inside(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def nothing_outside(folder: Path) -> None:
    top = folder.parents[1]
    assert not [file for file in top.rglob("*") if file.is_file() and folder not in file.parents and file.parent != top]


@pytest.mark.parametrize("name", ["good.zip", "good.tar", "good.tar.gz", "good.bin"])
def test_files_come_out_as_they_were(tmp_path: Path, folder: Path, name: str) -> None:
    files = {
        "set/a/1.jpg": b"one" * 1000,
        "./set//b/2.jpg": b"two",
        "set/.hidden": b"no",
        "__MACOSX/set/a/._1.jpg": b"no",
    }
    if name.endswith((".zip", ".bin")):  # told apart by content, not by name
        archive = zipped(tmp_path / name, files)
    else:
        archive = tarred(
            tmp_path / name, (entry("./", tarfile.DIRTYPE), b""), *((entry(n), d) for n, d in files.items())
        )
    seen: list[tuple[int, int]] = []
    assert unpack(archive, folder, progress=lambda task, done, total, remark: seen.append((done, total))) == 2
    assert inside(folder) == {"set/a/1.jpg": b"one" * 1000, "set/b/2.jpg": b"two"}
    assert seen and all(0 <= done <= total == 1 for done, total in seen)  # megabytes, rounded up


def test_files_go_where_they_are_placed(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"all/1.jpg": b"1", "all/2.jpg": b"2", "notes.txt": b"n"})
    places = {"all/1.jpg": ["x/1.jpg", "y/1.jpg"], "all/2.jpg": ["x/2.jpg"]}
    assert unpack(archive, folder, targets_of=lambda name: places.get(name, [])) == 3
    assert inside(folder) == {"x/1.jpg": b"1", "y/1.jpg": b"1", "x/2.jpg": b"2"}


@pytest.mark.parametrize(
    "name", ["../up.jpg", "a/../../up.jpg", "/abs.jpg", "a\\..\\..\\up.jpg", "C:/up.jpg", "..", "a/.."]
)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_nothing_leaves_the_folder(tmp_path: Path, folder: Path, name: str, kind: str) -> None:
    path = tmp_path / f"bad.{kind}"
    archive = zipped(path, {name: b"evil"}) if kind == "zip" else tarred(path, (entry(name), b"evil"))
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(archive, folder)
    assert not inside(folder)
    nothing_outside(folder)


def test_a_hostile_name_is_refused_even_where_it_would_not_be_written(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path / "bad.zip", {"../up.jpg": b"evil"})
    with pytest.raises(DataError, match="leads out"):
        unpack(archive, folder, targets_of=lambda _name: [])


@pytest.mark.parametrize(
    ("member", "what"),
    [
        (entry("link", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (entry("link", tarfile.LNKTYPE, "../../secret"), "a link"),
        (entry("null", tarfile.CHRTYPE), "a special file"),
        (entry("disk", tarfile.BLKTYPE), "a special file"),
        (entry("pipe", tarfile.FIFOTYPE), "a special file"),
    ],
    ids=["symlink", "hardlink", "character device", "block device", "pipe"],
)
def test_links_and_devices_in_a_tar_are_refused(
    tmp_path: Path, folder: Path, member: tarfile.TarInfo, what: str
) -> None:
    with pytest.raises(DataError, match=what):
        unpack(tarred(tmp_path / "bad.tar", (member, b"")), folder)
    assert list(folder.iterdir()) == []


def test_a_file_can_not_be_written_through_a_link(tmp_path: Path, folder: Path) -> None:
    archive = tarred(tmp_path / "bad.tar", (entry("a", tarfile.SYMTYPE, ".."), b""), (entry("a/up.jpg"), b"evil"))
    with pytest.raises(DataError, match="a link"):
        unpack(archive, folder)
    nothing_outside(folder)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, folder: Path, mode: int) -> None:
    with pytest.raises(DataError, match="no dataset needs"):
        unpack(zipped(tmp_path / "bad.zip", {"x.jpg": b"/etc/passwd"}, mode=mode | 0o777), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused(tmp_path: Path, folder: Path, kind: str) -> None:
    path, zeros = tmp_path / f"bomb.{kind}", bytes(100 * 1024**2)  # 100 kB of archive; an image set may grow 20 times
    archive = zipped(path, {"0.bin": zeros}) if kind == "zip" else tarred(path, (entry("0.bin"), zeros))
    assert archive.stat().st_size < 200_000
    with pytest.raises(DataError, match="more than such an archive should"):
        unpack(archive, folder)
    assert not inside(folder)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_members_are_refused(tmp_path: Path, folder: Path, kind: str) -> None:
    path, names = tmp_path / f"many.{kind}", [f"{number}.jpg" for number in range(30)]
    archive = (
        zipped(path, dict.fromkeys(names, b"x")) if kind == "zip" else tarred(path, *((entry(n), b"x") for n in names))
    )
    with pytest.raises(DataError, match="members"):
        unpack(archive, folder, limits=Limits(members=20))
    assert len(inside(folder)) <= 20


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path, folder: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 1024**3
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
    with pytest.raises(DataError, match="a header that is too long"):
        unpack(path, folder)


def test_a_size_below_zero_is_refused(tmp_path: Path, folder: Path) -> None:
    info = entry("a.jpg")
    info.size = -512
    path = tmp_path / "bad.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(DataError, match=r"bad\.tar: truncated or damaged"):
        unpack(path, folder)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_truncated_archive_is_an_error_that_says_so(tmp_path: Path, folder: Path, kind: str) -> None:
    path, data = tmp_path / f"cut.{kind}", bytes(range(256)) * 4000
    archive = zipped(path, {"a.jpg": data}) if kind == "zip" else tarred(path, (entry("a.jpg"), data))
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{path.name}: truncated or damaged .*download it again"):
        unpack(archive, folder)


@pytest.mark.parametrize("keep", [1024, 1300])
def test_a_tar_that_ends_between_two_files_is_truncated(tmp_path: Path, folder: Path, keep: int) -> None:
    archive = tarred(tmp_path / "cut.tar", (entry("a.jpg"), b"1"), (entry("b.jpg"), b"2"))
    archive.write_bytes(archive.read_bytes()[:keep])  # after the first file, or in the second one's header
    with pytest.raises(DataError, match="it has no end"):
        unpack(archive, folder)


def test_a_broken_header_is_not_the_end(tmp_path: Path, folder: Path) -> None:
    archive = tarred(tmp_path / "bad.tar.gz", (entry("a.jpg"), b"1"), (entry("b.jpg"), b"2"))
    raw = bytearray(gzip.decompress(archive.read_bytes()))
    raw[1024 + 150] ^= 0xFF  # its checksum
    archive.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DataError, match="it has no end"):
        unpack(archive, folder)


def test_a_damaged_zip_is_an_error(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path / "bad.zip", {"a.jpg": b"image" * 100})
    raw = bytearray(archive.read_bytes())
    raw[45] ^= 0xFF
    archive.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        unpack(archive, folder)


def test_an_encrypted_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path / "bad.zip", {"a.jpg": b"image"})
    raw = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + offset] |= 1
    archive.write_bytes(raw)
    with pytest.raises(DataError, match="an encrypted file"):
        unpack(archive, folder)


def test_a_file_that_is_there_twice_is_an_error(tmp_path: Path, folder: Path) -> None:
    archive = tarred(tmp_path / "twice.tar", (entry("a.jpg"), b"1"), (entry("./a.jpg"), b"2"))
    with pytest.raises(DataError, match="two of its files"):
        unpack(archive, folder)
    assert inside(folder) == {"a.jpg": b"1"}


def test_something_else_is_not_an_archive(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "page.zip").write_bytes(b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>" * 20)
    with pytest.raises(DataError, match=r"page\.zip: truncated or damaged"):
        unpack(tmp_path / "page.zip", folder)
