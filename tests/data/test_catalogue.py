"""Benchmarks by name: got, unpacked, laid out and counted, from a real server and from files that are here."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from little import CLASSES, DOMAINS
from vl2v.data.catalogue import MANIFEST, TERRA_CLASSES, Archive, Benchmark, benchmark, catalogue, check, obtain
from vl2v.data.layouts import open_dataset
from vl2v.errors import DataError


def toy(**more: Any) -> Benchmark:
    given = {
        "name": "toy",
        "title": "Toy",
        "about": "shapes",
        "page": "http://here",
        "licence": "CC0",
        "arrange": "folders",
        "folder": "toy_set",
        "strip": "all",
        "files": [{"name": "toy.zip", "bytes": 100_000}],
        "by_hand": "ask a friend for toy.zip",
        "total": 108,
        "classes": 3,
        "images": dict.fromkeys(DOMAINS, 36),
    }
    return Benchmark(**given | more)


@pytest.fixture
def archive(shapes: Path, tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "toy.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(shapes.rglob("*.png")):
            opened.write(file, "all/" + file.relative_to(shapes).as_posix())
        opened.writestr("readme.txt", "not in all/")
    return path


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "here"))

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock")}


def test_the_catalogue_is_complete_and_consistent() -> None:
    found = catalogue()
    assert {"pacs", "vlcs", "officehome", "terraincognita", "domainnet", "iwildcam", "camelyon17", "fmow"} <= set(found)
    for name, entry in found.items():
        assert benchmark(name.upper()) is entry and entry.licence and entry.page.startswith("http")
        assert entry.automatic or "open http" in entry.by_hand
        assert not entry.images or sum(entry.images.values()) == entry.total
        assert set(entry.unverified) <= set(Benchmark.model_fields) | set(Archive.model_fields)
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in entry.files)
    assert benchmark("Terra-Incognita") is found["terraincognita"]
    with pytest.raises(DataError, match="no dataset is called 'imagenet'; choose one of pacs,"):
        benchmark("imagenet")


def test_a_benchmark_is_downloaded_laid_out_and_counted(archive: Path, url: str, tmp_path: Path) -> None:
    wanted = toy(files=[{"name": "toy.zip", "urls": [f"{url}/toy.zip"], "bytes": 100_000}])
    seen: list[str] = []
    path, notes = obtain(wanted, tmp_path / "data", progress=lambda task, *_: seen.append(task))
    dataset = open_dataset(path)
    assert path == tmp_path / "data" / "toy_set" and dataset.classes == CLASSES and dataset.domains == DOMAINS
    assert names(tmp_path / "data") == {"toy_set", "vl2v-data.lock.json"}  # no archive, no scratch
    (note,) = notes
    lock = json.loads((tmp_path / "data" / "vl2v-data.lock.json").read_text())
    assert lock["toy"]["toy.zip"]["sha256"] in note and "nobody publishes it" in note
    assert {"downloading toy.zip", "unpacking toy.zip"} == set(seen)
    assert obtain(wanted, tmp_path / "data") == (path, [])  # there already: only counted


def test_what_a_killed_process_left_is_cleared_away(archive: Path, tmp_path: Path) -> None:
    half = tmp_path / "data" / ".toy-unpacking" / "toy_set" / "ink" / "ball"
    half.mkdir(parents=True)
    (half / "00.png").write_bytes(b"half")
    path, _ = obtain(toy(), tmp_path / "data", files=[archive])
    assert names(tmp_path / "data") == {"toy_set", "vl2v-data.lock.json"}
    assert (path / "ink/ball/00.png").read_bytes() != b"half"


def test_another_file_than_at_the_first_download_is_refused(archive: Path, tmp_path: Path) -> None:
    path, _ = obtain(toy(), tmp_path / "data", files=[archive])
    path.rename(tmp_path / "away")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("more.txt", "more")
    with pytest.raises(DataError, match=r"toy\.zip: SHA-256 is \w+, but at its first download it was.*lock\.json"):
        obtain(toy(), tmp_path / "data", files=[archive])
    assert not path.exists()


def test_another_file_than_published_is_refused(archive: Path, tmp_path: Path) -> None:
    wanted = toy(files=[{"name": "toy.zip", "bytes": 100_000, "sha256": "0" * 64}])
    with pytest.raises(DataError, match=r"toy\.zip: SHA-256 is \w+, but the published one is 000"):
        obtain(wanted, tmp_path / "data", files=[archive])


def test_what_must_be_got_by_hand_is_said(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        obtain(toy(), tmp_path / "data")
    assert "ask a friend for toy.zip; then: vl2v data download toy" in str(raised.value)
    assert str(raised.value).endswith("--from toy.zip")
    renamed = archive.rename(archive.with_name("toy (1).zip"))  # as browsers do
    assert obtain(toy(), tmp_path / "data", files=[renamed])[0].is_dir()
    assert renamed.exists()  # the person's own file is left alone


def test_a_failed_download_says_what_can_be_done_by_hand(url: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    wanted = toy(files=[{"name": "toy.zip", "urls": [f"{url}/gone.zip"], "bytes": 100_000}])
    with pytest.raises(DataError, match=r"says 404\); by hand: ask a friend for toy\.zip, then --from toy\.zip"):
        obtain(wanted, tmp_path / "data")


def test_wrong_files_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.zip: no such file"):
        obtain(toy(), tmp_path / "data", files=[tmp_path / "gone.zip"])
    two = toy(files=[{"name": "a.zip", "bytes": 1}, {"name": "b.zip", "bytes": 1}])
    with pytest.raises(DataError, match=r"toy\.zip: Toy has no such file; it has a\.zip, b\.zip"):
        obtain(two, tmp_path / "data", files=[archive])
    with pytest.raises(DataError, match="nothing below elsewhere"):
        obtain(toy(strip="elsewhere"), tmp_path / "data", files=[archive])
    assert names(tmp_path / "data") == {"vl2v-data.lock.json"}  # no half of a dataset


def test_a_page_instead_of_an_archive_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "toy.zip"
    page.write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>" * 10)
    with pytest.raises(DataError, match="truncated or damaged"):
        obtain(toy(), tmp_path / "data", files=[page])
    assert names(tmp_path / "data") == {"vl2v-data.lock.json"}


def test_counts_that_differ_are_reported(shapes: Path, archive: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shapes)
    assert check(toy(), dataset) == []
    counts = dict.fromkeys(DOMAINS, 36) | {"ink": 35}
    with pytest.raises(DataError, match="36 images in ink, not 35; it stays where it is"):
        check(toy(images=counts), dataset)
    with pytest.raises(DataError, match="108 images, not 1,000; 3 classes, not 4"):
        check(toy(total=1000, classes=4), dataset)
    assert check(toy(images=counts, unverified=("images",)), dataset) == [
        "36 images in ink, not 35 (of which we aren't sure)"
    ]
    with pytest.raises(DataError):
        obtain(toy(total=1), tmp_path / "data", files=[archive])
    assert (tmp_path / "data" / "toy_set").is_dir()


def test_listed_files_are_left_out(archive: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "here" / "duplicates.txt").write_text("ink/ball/00.png\nink/box/03.png\n")
    wanted = toy(omit=f"{url}/duplicates.txt", total=106, images={})
    path, _ = obtain(wanted, tmp_path / "data", files=[archive])
    assert not (path / "ink/ball/00.png").exists() and (path / "ink/ball/01.png").exists()


def test_a_hostile_archive_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as opened:
        opened.writestr("all/ink/ball/1.png", b"x")
        opened.writestr("all/../../../up.png", b"evil")
    with pytest.raises(DataError, match="leads out of the folder"):
        obtain(toy(), tmp_path / "data", files=[bad])
    assert names(tmp_path / "data") == {"vl2v-data.lock.json"} and not list(tmp_path.rglob("up.png"))


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path


def images(shapes: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(shapes.rglob("*.png"))]


def test_terra_incognita_is_domainbeds_choice(shapes: Path, tmp_path: Path) -> None:
    some = images(shapes)
    kinds = [{"id": 10 * i, "name": name} for i, name in enumerate((*TERRA_CLASSES, "car"))]
    places = ["38", 43, "46", "100", "105"]
    listed = [{"id": f"i{n}", "file_name": f"{n}.jpg", "location": places[n % 5]} for n in range(55)]
    rows = [{"image_id": f"i{n}", "category_id": 10 * (n // 5)} for n in range(55)]
    rows += [rows[0], {"image_id": "i0", "category_id": 10}]  # twice a bird, and a bobcat
    result = {
        "categories": kinds,
        "images": listed[:30],
        "annotations": [r for r in rows if int(r["image_id"][1:]) < 30],
    }
    rest = {"categories": kinds, "images": listed[30:], "annotations": rows[30:55]}
    files = [
        tarball(
            tmp_path / "eccv_18_annotations.tar.gz",
            {
                "eccv_18_annotation_files/train_annotations.json": json.dumps(result).encode(),
                "eccv_18_annotation_files/cis_val_annotations.json": json.dumps(rest).encode(),
            },
        ),
        tarball(
            tmp_path / "eccv_18_all_images_sm.tar.gz",
            {f"eccv_18_all_images_sm/{n}.jpg": some[n] for n in range(55)},
        ),
    ]
    wanted = catalogue()["terraincognita"].model_copy(update={"total": 41})
    path, _ = obtain(wanted, tmp_path / "data", files=files)
    dataset = open_dataset(path)
    assert dataset.domains == ("location_100", "location_38", "location_43", "location_46")
    assert dataset.classes == TERRA_CLASSES
    assert {"location_38/bird/0.jpg", "location_38/bobcat/0.jpg"} <= set(dataset.paths)


def table(rows: list[dict[str, object]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def wilds(name: str, tmp_path: Path, files: dict[str, bytes], **more: Any) -> tuple[Any, list[str]]:
    """Return the dataset of an archive as WILDS packs it, and the manifest's lines."""
    wanted = catalogue()[name].model_copy(update=more)
    path, _ = obtain(wanted, tmp_path / "data", files=[tarball(tmp_path / "archive.tar.gz", files)])
    assert path.name == MANIFEST
    return open_dataset(path), path.read_text().splitlines()


def test_iwildcam_gets_a_manifest_with_names(shapes: Path, tmp_path: Path) -> None:
    splits = ("train", "id_val", "id_test", "val", "test")
    rows: list[dict[str, object]] = [
        {"split": split, "location_remapped": n, "filename": f"{n}.jpg", "y": n % 2} for n, split in enumerate(splits)
    ]
    names_ = table([{"y": 0, "category_id": 7, "name": "empty"}, {"y": 1, "category_id": 9, "name": "puma concolor"}])
    files = {f"train/{n}.jpg": data for n, data in enumerate(images(shapes)[:5])}
    files |= {"metadata.csv": table(rows), "categories.csv": names_}
    dataset, lines = wilds("iwildcam", tmp_path, files, total=5, classes=2, images={})
    assert dataset.classes == ("empty", "puma concolor")
    assert lines[1:] == [
        "train/0.jpg,empty,seen cameras,train",
        "train/1.jpg,puma concolor,seen cameras,val",
        "train/2.jpg,empty,seen cameras,test",
        "train/3.jpg,puma concolor,validation cameras,",
        "train/4.jpg,empty,test cameras,",
    ]


def test_camelyon17_gets_a_manifest_by_hospital(shapes: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"": n, "patient": "004", "node": 4, "x_coord": n, "y_coord": 9, "tumor": n % 2, "center": n, "split": n % 2}
        for n in range(5)
    ]
    files = {
        f"camelyon17_v1.0/patches/patient_004_node_4/patch_patient_004_node_4_x_{n}_y_9.png": data
        for n, data in enumerate(images(shapes)[:5])
    }
    files["camelyon17_v1.0/metadata.csv"] = table(rows)
    dataset, lines = wilds("camelyon17", tmp_path, files, total=5)
    assert dataset.domains == tuple(f"hospital {n}" for n in range(5))
    assert dataset.classes == ("normal tissue", "tumor tissue")
    assert [line.split(",")[3] for line in lines[1:]] == ["train", "", "", "val", "train"]


def test_fmow_gets_a_manifest_by_region(shapes: Path, tmp_path: Path) -> None:
    some = images(shapes)
    rows: list[dict[str, object]] = [
        {"split": split, "category": kind, "country_code": code, "timestamp": "2012-01-01T00:00:00Z"}
        for split, kind, code in (
            ("train", "race_track", "FRA"),
            ("seq", "zoo", "FRA"),
            ("val", "zoo", "KEN"),
            ("test", "zoo", "XXX"),
        )
    ]
    codes: list[dict[str, object]] = [{"alpha-3": "FRA", "region": "Europe"}, {"alpha-3": "KEN", "region": "Africa"}]
    files = {"rgb_metadata.csv": table(rows), "country_code_mapping.csv": table(codes)}
    files |= {f"images/rgb_img_{n}.png": some[n] for n in (0, 2, 3)}
    dataset, lines = wilds("fmow", tmp_path, files, classes=2)
    assert dataset.domains == ("Africa", "Europe", "Other")
    assert lines[1] == "images/rgb_img_0.png,race track,Europe,train" and len(lines) == 4


def test_tables_that_are_not_as_known_are_an_error(tmp_path: Path) -> None:
    archive = tarball(tmp_path / "a.tar.gz", {"metadata.csv": b"a,b\n1,2\n", "categories.csv": b"y,name\n0,empty\n"})
    with pytest.raises(DataError, match="its tables aren't as expected"):
        obtain(catalogue()["iwildcam"], tmp_path / "data", files=[archive])
    assert names(tmp_path / "data") == {"vl2v-data.lock.json"}
