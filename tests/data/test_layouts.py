from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vl2v.data import audit, inspect, open_dataset
from vl2v.errors import DataError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(root / name, "PNG")
    return root


def test_domain_class_image_in_imagefolders_order(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    names = [
        "Art/dog/b.png",
        "Art/dog/a.png",
        "Art/cat/10.png",
        "Art/cat/9.png",
        "photo/dog/x.jpg",
        "photo/Zebra/y.png",
    ]
    dataset = open_dataset(put(tmp_path, *names))
    assert dataset.domains == ("Art", "photo") and dataset.classes == ("Zebra", "cat", "dog")
    for domain in dataset.domains:
        theirs = [os.path.relpath(path, tmp_path) for path, _ in ImageFolder(str(tmp_path / domain)).samples]
        assert [dataset.paths[i] for i in dataset.indices(domain)] == theirs


def test_class_image_is_one_domain(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "dog/a.png", "cat/b.png"))
    assert dataset.domains == ("all",) and dataset.classes == ("cat", "dog")


def test_a_folder_of_one_benchmark_is_entered(tmp_path: Path) -> None:
    put(tmp_path, "terra_incognita/location_38/bird/a.png", "terra_incognita/location_43/cat/b.png")
    assert open_dataset(tmp_path).domains == ("location_38", "location_43")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_says_class_domain_and_split(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "x/1.png", "x/2.png", "y/3.png")
    rows = [
        ("x/1.png", "cat", "a", "train"),
        ("x/2.png", "dog", "a", ""),
        ("y/3.png", "dog", "b", "val"),
        ("gone.png", "dog", "b", ""),
    ]
    columns = ("path", "class", "domain", "split")
    manifest = tmp_path / f"m.{kind}"
    if kind == "csv":
        with manifest.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(columns)})
        pyarrow.parquet.write_table(table, manifest)
    dataset = open_dataset(manifest)
    assert dataset.classes == ("cat", "dog") and dataset.splits == ("train", None, "val")
    assert [e.path for e in dataset.excluded] == ["gone.png"]


def test_what_is_no_image_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path / "data", "a/cat/1.png", "a/dog/2.png", "b/cat/3.png", "b/loose.png")
    (tmp_path / "data/a/cat/notes.txt").write_text("x")
    (tmp_path / "data/a/cat/.hidden.png").write_text("x")
    put(tmp_path, "secret/cat/1.png")
    (tmp_path / "data/a/dog/out.png").symlink_to(tmp_path / "secret/cat/1.png")
    (tmp_path / "data/b/away").symlink_to(tmp_path / "secret")
    (tmp_path / "data/b/loop").symlink_to(tmp_path / "data/b")
    dataset = open_dataset(tmp_path / "data")
    assert len(dataset) == 3
    reasons = {e.path: e.reason for e in dataset.excluded}
    assert "link to outside" in reasons["a/dog/out.png"] and "link to outside" in reasons["b/away"]
    assert "it is in" in reasons["b/loop"] and "not an image" in reasons["a/cat/notes.txt"]
    assert "not at domain/class/image" in reasons["b/loose.png"]


def test_a_list_of_files_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "domain_net", "clipart/cat/1.png", "clipart/dog/2.png", "real/cat/3.png")
    listed = tmp_path / "duplicates.txt"
    listed.write_text("clipart/cat/1.png\ndomain_net/real/cat/3.png\n")
    dataset = open_dataset(tmp_path / "domain_net", exclude=listed)
    assert dataset.paths == ("clipart/dog/2.png",) and len(dataset.excluded) == 2
    listed.write_text("nothing/here.png\n")
    with pytest.raises(DataError, match="none of its 1 lines names an image"):
        open_dataset(tmp_path / "domain_net", exclude=listed)


def test_unlabelled_images_are_a_domain_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "data", "a/cat/1.png", "b/dog/2.png")
    put(tmp_path / "more", "x.png", "deep/er/y.png")
    dataset = open_dataset(tmp_path / "data", unlabelled=tmp_path / "more")
    assert dataset.domains == ("a", "b", "unlabelled") and dataset.labels.tolist() == [0, 1, -1, -1]
    assert all(dataset.read(i) for i in range(4))


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such folder or manifest"), ("empty", "no images at domain/class/image")]
)
def test_nothing_to_open_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / name)


def test_a_manifest_without_a_column_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,kind\nx.png,cat\n")
    with pytest.raises(DataError, match="no class column among path, kind; the columns are"):
        open_dataset(tmp_path / "m.csv")


@pytest.mark.parametrize("name", ["PACS", "vlcs", "office_home", "OfficeHome", "DomainNet", "Terra-Incognita"])
def test_domainbeds_five_are_known_however_they_are_written(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/a/cat/1.png", f"{name}/b/dog/2.png")
    assert open_dataset(tmp_path).paths == open_dataset(tmp_path / name).paths == ("a/cat/1.png", "b/dog/2.png")


def test_of_several_benchmarks_one_has_to_be_chosen(tmp_path: Path) -> None:
    put(tmp_path, "PACS/a/cat/1.png", "VLCS/b/dog/2.png")
    with pytest.raises(DataError, match=r"deeper than domain/class/image.*open .*PACS"):
        open_dataset(tmp_path)


def test_what_most_images_are_at_is_the_layout(tmp_path: Path) -> None:
    few_deep = open_dataset(put(tmp_path / "one", "cat/1.png", "dog/2.png", "dog/thumbs/3.png"))
    assert few_deep.domains == ("all",) and [e.path for e in few_deep.excluded] == ["dog/thumbs/3.png"]
    few_flat = open_dataset(put(tmp_path / "two", "a/cat/1.png", "b/dog/2.png", "b/3.png", "4.png", "a/cat/more/5.png"))
    assert few_flat.domains == ("a", "b")
    assert sorted(e.path for e in few_flat.excluded) == ["4.png", "a/cat/more/5.png", "b/3.png"]


def test_a_layout_that_is_said_takes_deeper_folders_as_imagefolder_does(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    put(tmp_path, "a/cat/x/1.png", "a/cat/b.png", "a/cat/x.png", "a/cat/a/9.png", "a/dog/z.png")
    dataset = open_dataset(tmp_path, layout="domains")
    theirs = [os.path.relpath(path, tmp_path) for path, _ in ImageFolder(str(tmp_path / "a")).samples]
    assert list(dataset.paths) == theirs and dataset.classes == ("cat", "dog")


@pytest.mark.parametrize(("layout", "message"), [("odd", "choose one of auto"), ("manifest", "needs a .csv")])
def test_an_unfit_layout_is_an_error(tmp_path: Path, layout: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(put(tmp_path, "a/cat/1.png"), layout=layout)


def test_no_link_pipe_or_name_is_followed_too_far(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a/cat/1.png", "b/dog/2.png")
    (root / "a/there").symlink_to(root / "b")
    (root / "b/back").symlink_to(root / "a")
    (root / "a/cat/broken.png").symlink_to(root / "a/cat/nowhere.png")
    (root / "a/cat/same.png").symlink_to("1.png")
    os.mkfifo(root / "a/cat/pipe.png")
    shutil.copy(os.fsencode(root / "a/cat/1.png"), os.fsencode(root) + b"/a/cat/\xff.png")
    dataset = open_dataset(root)
    assert dataset.paths == ("a/cat/1.png", "a/cat/same.png", "b/dog/2.png")
    reasons = {e.path: e.reason for e in dataset.excluded}
    assert reasons["a/there/back"] == reasons["b/back/there"] == "a link to a folder that it is in"
    assert reasons["a/cat/broken.png"] == "a link to nothing" and reasons["a/cat/pipe.png"] == "not a file"
    assert reasons["a/cat/\\udcff.png"] == "its name is not UTF-8"


def test_an_empty_domain_is_listed_and_explained(tmp_path: Path) -> None:
    put(tmp_path, "a/cat/1.png", "b/dog/2.png")
    (tmp_path / "c/cat").mkdir(parents=True)
    dataset = open_dataset(tmp_path)
    assert [(e.path, e.reason) for e in dataset.excluded] == [("c/cat", "an empty folder")]
    with pytest.raises(DataError, match=r"domain 'c' has no usable images \(c/cat: an empty folder\)"):
        dataset.domain_index("c")


def manifest(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("path,class,domain", *lines)), encoding="utf-8-sig")
    return path


def test_a_manifest_leads_nowhere_else(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "x/1.png", "x/2.png")
    put(tmp_path, "secret.png")
    (root / "x/link.png").symlink_to(tmp_path / "secret.png")
    lines = (f"{tmp_path}/secret.png,cat,a", "../secret.png,cat,a", "x/link.png,cat,a", "./x/1.png,cat,a", "x/2.png,,a")
    dataset = open_dataset(manifest(tmp_path / "m.csv", *lines), root=root)
    assert dataset.paths == ("x/2.png", "x/1.png") and dataset.labels.tolist() == [-1, 0]
    assert {e.reason for e in dataset.excluded} == {"a path outside the dataset's folder"} and len(
        dataset.excluded
    ) == 3


def test_one_image_has_one_label(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    same = manifest(tmp_path / "m.csv", "1.png,cat,a", "2.png,dog,a", "./1.png,cat,a")
    assert [e.reason for e in open_dataset(same).excluded] == ["listed twice"]
    torn = manifest(tmp_path / "m.csv", "1.png,cat,a", "2.png,dog,a", "1.png,dog,a")
    with pytest.raises(DataError, match=r"1\.png is listed as a/cat and as a/dog; keep one"):
        open_dataset(torn)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty manifest"),
        ("path,class,domain\n", "an empty manifest"),
        ("path,class,domain\n1.png\n", "line 2 has no class"),
        ("path,class,domain\n1.png,cat,\n", "line 2 has no domain"),
        ("path,class,domain,split\n1.png,cat,a,fold1\n", "split 'fold1'; it is train, val, test or empty"),
        ("path,class,domain\nno.png,cat,a\n", r"none of its 1 images can be used \(no.png: no such file\)"),
        ("path,class,domain\n\0.png,cat,a\n", "no such file"),
        ("\udcff", "can't be read as CSV"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path, "1.png")
    (tmp_path / "m.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "m.csv")


def test_a_parquet_file_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 it says, and lies")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        open_dataset(tmp_path / "m.parquet")


def test_a_list_whose_files_are_gone_already_is_well(tmp_path: Path) -> None:
    put(tmp_path / "dn", "clipart/cat/1.png", "real/dog,old/2.png")
    (tmp_path / "l.txt").write_text("clipart/cat/99.png\nreal/dog,old/2.png\n")
    dataset = open_dataset(tmp_path / "dn", exclude=tmp_path / "l.txt")
    assert dataset.paths == ("clipart/cat/1.png",)
    (tmp_path / "l.txt").write_text("clipart/cat/99.png\n")
    assert len(open_dataset(tmp_path / "dn", exclude=tmp_path / "l.txt")) == 2
    (tmp_path / "l.txt").write_text("clipart/cat/1.png\nreal/dog,old/2.png\n")
    with pytest.raises(DataError, match="lists every image"):
        open_dataset(tmp_path / "dn", exclude=tmp_path / "l.txt")


def test_unlabelled_images_may_lie_inside_or_beyond_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk/data", "a/cat/1.png", "b/dog/2.png", "unlabelled/more/x.png", "unlabelled/y.png")
    (tmp_path / "disk/data/unlabelled/out.png").symlink_to(put(tmp_path, "secret.png") / "secret.png")
    (tmp_path / "link").symlink_to(tmp_path / "disk/data")
    inside = open_dataset(tmp_path / "link", unlabelled=tmp_path / "link/unlabelled")
    assert inside.domains == ("a", "b", "unlabelled")
    assert inside.paths[2:] == ("unlabelled/more/x.png", "unlabelled/y.png")
    assert [(e.path, e.reason[:17]) for e in inside.excluded] == [("unlabelled/out.png", "a link to outside")]
    with pytest.raises(DataError, match="has a domain 'unlabelled' already; rename it"):
        open_dataset(tmp_path / "link", unlabelled=put(tmp_path / "more", "z.png"))
    (tmp_path / "disk/data/unlabelled").rename(tmp_path / "gone")
    beyond = open_dataset(tmp_path / "link", unlabelled=tmp_path / "more")
    assert beyond.read(len(beyond) - 1) == (tmp_path / "more/z.png").read_bytes()


def test_wilds_tables_are_manifests(tmp_path: Path) -> None:
    put(tmp_path / "train", "0.png", "1.png", "2.png", "3.png", "4.png")
    table = manifest_of(
        tmp_path / "metadata.csv",
        "split,location_remapped,location,y,filename,category_id",
        *(
            f"{split},{n},{90 + n},{n % 2},{n}.png,7"
            for n, split in enumerate(("train", "id_val", "id_test", "val", "test"))
        ),
    )
    dataset = open_dataset(table, root=tmp_path / "train")
    assert dataset.domains == ("0", "1", "2", "3", "4") and dataset.classes == ("0", "1")
    assert dataset.splits == ("train", "val", "test", "val", "test")


def test_a_manifests_own_columns_count_before_others(tmp_path: Path) -> None:
    put(tmp_path, "0.png")
    table = manifest_of(tmp_path / "m.csv", "image_path,filename,y,category,group,domain", "x.png,0.png,3,cat,g,ink")
    dataset = open_dataset(table)
    assert (dataset.paths, dataset.classes, dataset.domains) == (("0.png",), ("cat",), ("ink",))


def manifest_of(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train/cat/1.png", "val/cat/2.png", "test/dog/3.png"),
            "test, train, val look like splits .* not like domains",
        ),
        (("Training/cat/1.png", "Validation/dog/2.png"), "look like splits"),
        (("cat/train/1.png", "cat/test/2.png", "dog/train/3.png"), "test, train look like splits .* not like classes"),
        (("images/train/1.png", "images/valid/2.png"), "train, valid look like splits"),
        (("train/1.png", "test/2.png"), "not like classes"),
    ],
)
def test_splits_are_not_taken_for_domains_or_classes(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)
    said = "domains" if len(names[0].split("/")) == 3 else "classes"
    assert len(open_dataset(tmp_path, layout=said)) == len(names)  # who says so is believed
    one = open_dataset(put(tmp_path / "x", "photo/cat/1.png", "photo/dog/2.png", "test/cat/3.png"))
    assert any("domains test: named like splits" in line for line in inspect(one, audit(one)).findings)


@pytest.mark.parametrize(
    "junk",
    [
        "@eaDir/1.png/SYNO_THUMB.jpg",
        "__MACOSX/cat/._1.png",
        ".thumbnails/1.png",
        "$RECYCLE.BIN/1.png",
        "#recycle/2.jpg",
    ],
)
@pytest.mark.parametrize("at", ["", "a/", "a/cat/"])
def test_a_systems_own_folders_are_passed_over_and_counted(tmp_path: Path, at: str, junk: str) -> None:
    root = put(tmp_path, "a/cat/1.png", "b/dog/2.png", at + junk, "a/cat/Thumbs.db", "b/dog/desktop.ini")
    dataset = open_dataset(root)
    assert dataset.paths == ("a/cat/1.png", "b/dog/2.png") and dataset.domains == ("a", "b")
    result = {gone.path for gone in dataset.excluded}
    hidden = any(part.startswith(".") for part in junk.split("/")[:-1])
    assert result == {"a/cat/Thumbs.db", "b/dog/desktop.ini"} | (set() if hidden else {at + junk})
    assert {gone.reason for gone in dataset.excluded} == {"thumbnails and other files of a system's own"}


@pytest.mark.parametrize("hidden", [".gitkeep", ".DS_Store", "._1.png", "Thumbs.db", "@eaDir/x.jpg"])
def test_a_class_of_hidden_files_only_is_reported(tmp_path: Path, hidden: str) -> None:
    dataset = open_dataset(put(tmp_path, "a/cat/1.png", "a/dog/1.png", f"a/bird/{hidden}"))
    assert ("a/bird", "an empty folder") in {(gone.path, gone.reason) for gone in dataset.excluded}


def test_names_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    root = put(tmp_path, f"linux/{NFC}/1.png", f"mac/{NFD}/2.png", "mac/tea/3.png", f"{NFD}/tea/4.png")
    dataset = open_dataset(root)
    assert dataset.classes == (NFC, "tea") and dataset.domain_index(NFD) == dataset.domain_index(NFC)
    assert all(dataset.read(i) for i in range(len(dataset)))
    (tmp_path / "no.txt").write_text(f"linux/{NFD}/1.png\nmac/{NFC}/2.png\n")
    assert len(open_dataset(root, exclude=tmp_path / "no.txt")) == 2
    listed = [f"mac/{NFC}/2.png,{NFD},{NFD}", f"linux/{NFD}/1.png,{NFC},{NFC}", "mac/tea/3.png,tea,x"]
    dataset = open_dataset(manifest(tmp_path / "m.csv", *listed, f"mac/{NFD}/2.png,{NFC},{NFC}"))
    assert dataset.classes == (NFC, "tea") and dataset.domains == (NFC, "x") and len(dataset) == 3
    assert [gone.reason for gone in dataset.excluded] == ["listed twice"]


def test_a_domain_with_a_benchmarks_name_is_a_domain(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "pacs/cat/1.png", "pacs/dog/2.png", "mine/cat/3.png"))
    assert dataset.domains == ("mine", "pacs") and len(dataset) == 3


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".pjpeg", ".dib"])
def test_images_are_known_by_their_rarer_suffixes(tmp_path: Path, suffix: str) -> None:
    assert len(open_dataset(put(tmp_path, f"a/cat/1{suffix}", f"b/dog/2{suffix}"))) == 2


@pytest.mark.parametrize(
    "line",
    [
        "a/cat/1.png", "./a/cat/1.png", "{root}/a/cat/1.png", "a\\cat\\1.png", '"a/cat/1.png"', "'a/cat/1.png'",
        "a/cat/1.png,duplicate of 2.png", "a/cat/1.png 12", "{name}/a/cat/1.png", "a//cat/../cat/1.png",
        "a/cat/1.png\t3",
    ],
)  # fmt: skip
def test_an_exclusion_list_may_write_paths_in_many_ways(tmp_path: Path, line: str) -> None:
    root = put(tmp_path / "data", "a/cat/1.png", "a/dog/2.png")
    (tmp_path / "no.csv").write_text(f"path\n{line.format(root=root, name=root.name)}\n")
    dataset = open_dataset(root, exclude=tmp_path / "no.csv")
    assert dataset.paths == ("a/dog/2.png",) and not dataset.notes


def test_lines_of_an_exclusion_list_that_name_nothing_are_reported(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a/cat/1.png", "a/dog/2.png")
    (tmp_path / "no.txt").write_text("a/cat/1.png\na/cat/77.png\ncat\n")
    dataset = open_dataset(root, exclude=tmp_path / "no.txt")
    assert "2 of 3 lines name no image of the dataset, first a/cat/77.png" in dataset.notes[0]
    assert dataset.notes[0] in inspect(dataset, audit(dataset)).findings


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.zip", b"PK\x03\x04 and so on", "an archive.*unpack it"),
        ("x.tar.gz", b"\x1f\x8b\x08", "an archive"),
        ("x.tar", b"cat".ljust(257, b"\0") + b"ustar", "an archive"),
        ("x.xlsx", b"PK\x03\x04....xl/workbook.xml", "a spreadsheet.*save it as CSV"),
        ("x.png", b"\x89PNG\r\n", "one image.*give the folder"),
        ("x.jpg", b"\xff\xd8\xff\xe0", "one image"),
        ("x.jsonl", b'{"file_name": "a.png"}\n', "JSON.*CSV manifest"),
        ("x.json", b' [{"file": 1}]', "JSON"),
        ("x.csv", "path".encode("utf-16"), "no class column among path"),
        ("x.csv", "path".encode("utf-16")[:-1], "can't be read as CSV.*save it as UTF-8"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_given_for_a_dataset_and_is_none_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / name)


def test_a_folder_of_links_into_a_cache_says_so(tmp_path: Path) -> None:
    put(tmp_path / "blobs", "1.png", "2.png")
    for number in (1, 2):
        link = tmp_path / f"data/a/cat/{number}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / f"blobs/{number}.png")
    with pytest.raises(
        DataError,
        match=r"2 set aside: a link to outside the dataset's folder, first .*copy the files that the links point to",
    ):
        open_dataset(tmp_path / "data")
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(DataError, match="2 set aside: a link to nothing"):
        open_dataset(tmp_path / "data")


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", "nan", "NaN", "null", "<NA>", "#N/A"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_class_is_written_in_many_ways(tmp_path: Path, kind: str, missing: object) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    rows = [("1.png", "cat", "a"), ("2.png", missing, "a"), ("3.png", "dog", "b")]
    if kind == "csv":
        with (tmp_path / "m.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "class", "domain"), *rows])
    else:
        import pyarrow
        import pyarrow.parquet

        if isinstance(missing, float):
            rows = [(path, float(len(name)) if isinstance(name, str) else name, d) for path, name, d in rows]
        columns = zip(("path", "class", "domain"), zip(*rows, strict=True), strict=True)
        pyarrow.parquet.write_table(
            pyarrow.table({name: list(cells) for name, cells in columns}), tmp_path / "m.parquet"
        )
    dataset = open_dataset(tmp_path / f"m.{kind}")
    assert len(dataset.classes) == (1 if kind == "parquet" and isinstance(missing, float) else 2)
    assert [path for path, label in zip(dataset.paths, dataset.labels, strict=True) if label < 0] == ["2.png"]


@pytest.mark.parametrize(
    "text",
    [
        "path, class, domain\n1.png, cat, a\n2.png, dog , a\n",
        "Path;Class;Domain\r\n1.png;cat;a\r\n2.png;dog;a\r\n",
        "path\tclass\tdomain\n1.png\tcat\ta\n2.png\tdog\ta\n",
        'path,class,domain\n"1.png", "cat", a\n2.png,dog,a,\n',
        "path,class,domain\n.\\1.png,cat,a\n\n{root}/2.png,dog,a\n2.png,dog,a\n",
    ],
)
def test_blanks_and_other_separators_are_no_part_of_names(tmp_path: Path, text: str) -> None:
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "m.csv").write_text(text.format(root=tmp_path))
    dataset = open_dataset(tmp_path / "m.csv")
    assert (dataset.classes, dataset.domains, dataset.paths) == (("cat", "dog"), ("a",), ("1.png", "2.png"))


def test_one_file_by_two_paths_is_one_image_with_one_class(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "2.png")
    lines = ("a/1.png,cat,a", "2.png,dog,a", f"{tmp_path}/a/1.png,cat,a", "a/../a/1.png,cat,a")
    assert len(open_dataset(manifest(tmp_path / "m.csv", *lines))) == 2
    with pytest.raises(DataError, match=r"a/1\.png is listed as a/cat and as a/dog; keep one"):
        open_dataset(manifest(tmp_path / "m.csv", *lines, f"{tmp_path}/a/1.png,dog,a"))


def test_an_error_names_the_line_as_an_editor_counts_it(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    (tmp_path / "m.csv").write_text('path,class,domain\n\n1.png,"a",x\n\n\n\n1.png,cat\n')
    with pytest.raises(DataError, match="line 7 has no domain"):
        open_dataset(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("path,class,domain\n1.png,cat, feline,x\n")
    with pytest.raises(
        DataError, match='line 2 has 4 cells, the first line 3; put a text with a "," in it into quotes'
    ):
        open_dataset(tmp_path / "m.csv")


def test_labels_follow_their_names_into_other_classes(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    dataset = open_dataset(manifest(tmp_path / "m.csv", "1.png,cat,a", "2.png,dog,a", "3.png,,a"))
    named = dict(zip(dataset.paths, dataset.of_classes(["dog", "eel", "cat"]).labels.tolist(), strict=True))
    assert named == {"1.png": 2, "2.png": 0, "3.png": -1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Fotos", r"Fotos: no such folder or manifest; did you mean .*fotos\?"),
        ("fotoz", r"did you mean .*fotos\?"),
        ("m.cvs", r"did you mean .*m\.csv\?"),
        ("C:\new\table", r"C:\\new\\table: no such .* \(a backslash .* write the path in single quotes, or with /\)"),
        ("quite another", r"no such folder or manifest$"),
    ],
)
def test_a_path_that_leads_nowhere_may_be_a_misspelt_one(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "fotos").mkdir()
    (tmp_path / "m.csv").touch()
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / given)
