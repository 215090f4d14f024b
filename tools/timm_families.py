"""Try every architecture family of timm as a student, and print the table of docs/students.md.

    python tools/timm_families.py                  # tries what isn't in the CSV yet; can be stopped and run again
    python tools/timm_families.py --only swin_transformer levit
    python tools/timm_families.py --print          # the table, from the CSV

Of each family a small member goes, with random weights, the way that a user's student goes: `vl2v.distill` (two steps
of Align, two of Distill), an export to ONNX in fp32 that has to agree with the student, the file read back by ONNX
Runtime, a prediction, and the same file in int8. Images have 64 pixels a side where the model takes that, else what its
refusal names. Each family has a process of its own and a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import multiprocessing
import re
import resource
import tempfile
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw

CSV = Path(__file__).with_name("timm_families.csv")
PAGE = Path(__file__).parents[1] / "docs" / "students.md"
COLUMNS = ("family", "model", "size", "free_size", "width", "trains", "exports", "quantises", "why")
SIZE = 64
CONSIDERED, CANDIDATES = 12, 3
MEMORY = 8 * 2**30  # bytes a family
# Parts of names that say how large a model is, the smallest first.
SMALL = (
    "test_ atto nano_ femto xxtiny pico zepto xxs xxsmall _n0 _005 _010 _035 _050 mini extra_tiny xs tiny _t0 _t_ _s0 "
    "s0 _m0 b0 _p0 18 14 13 12 small 0 _s 26 34 1 lite 2"
).split()


def families() -> list[str]:
    """Return timm's modules that have models."""
    return [name for name in timm.list_modules() if timm.list_models(module=name)]


def small_member(family: str) -> str:
    """Return the smallest, by its parameters, of a few models whose names sound small."""
    from vl2v.errors import StudentError
    from vl2v.students.backbone import output_width

    def rank(name: str) -> tuple[int, str]:
        return next((rank for rank, part in enumerate(SMALL) if part in name), len(SMALL)), name

    sizes = {}
    for name in sorted(timm.list_models(module=family), key=rank)[:CONSIDERED]:
        with contextlib.suppress(Exception), torch.device("meta"):
            sizes[name] = sum(weights.numel() for weights in timm.create_model(name, num_classes=0).parameters())
    names = sorted(sizes, key=sizes.__getitem__)[:CANDIDATES] or timm.list_models(module=family)[:1]
    fit = [name for name in names if _runs(name, output_width, StudentError)]
    return min(fit or sizes or names, key=lambda name: sizes.get(name, 0))


def _runs(name: str, output_width: Any, refusal: type[Exception]) -> bool:
    try:
        return bool(output_width(name, SIZE))
    except refusal as error:
        return "use image size" in str(error)


def size_for(name: str) -> int:
    """Return pixels a side: 64, or what the refusal of that names.

    Raises:
        StudentError: the model can't be a student.
    """
    from vl2v.errors import StudentError
    from vl2v.students.backbone import output_width

    try:
        output_width(name, SIZE)
        return SIZE
    except StudentError as error:
        named = re.search(r"use image size (\d+)", str(error))
        if named is None:
            raise
        return int(named[1])


def draw_images(root: Path) -> None:
    """Draw two domains of two classes, six images each."""
    for domain, paper in (("ink", "white"), ("chalk", "black")):
        for name in ("ball", "box"):
            (root / domain / name).mkdir(parents=True, exist_ok=True)
            for number in range(6):
                image = Image.new("RGB", (SIZE, SIZE), paper)
                pen, corner = ImageDraw.Draw(image), 4 + 3 * number
                shape = pen.ellipse if name == "ball" else pen.rectangle
                shape((corner, corner, corner + 36, corner + 36), fill="red" if domain == "ink" else "yellow")
                image.save(root / domain / name / f"{number}.png")


def tried(family: str, work: Path) -> dict[str, Any]:
    """Return the row of a family."""
    from vl2v.errors import StudentError
    from vl2v.students.backbone import output_width

    torch.set_num_threads(1)
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {"family": family, "model": small_member(family)}
    try:
        row["size"] = size_for(row["model"])
    except StudentError as error:
        return row | {"trains": "refused", "why": str(error)}
    row |= {"free_size": "yes" if row["size"] == SIZE else "", "width": output_width(row["model"], row["size"])}
    step = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            for step, done in STEPS.items():
                done(row, work, Path(folder))
                row[step] = "yes"
    except Exception as error:
        row[step] = "no"
        said = " ".join(str(error).split()).replace(f"{tempfile.gettempdir()}/", "")
        row["why"] = f"{type(error).__name__}: {said[:160]}"
    return row


def _train(row: dict[str, Any], work: Path, folder: Path) -> None:
    import vl2v

    stage = {"steps": 2, "batch_per_domain": 2}
    settings = {
        "data": {"path": work / "images", "target": ["chalk"], "workers": 0},
        "teacher": {"spec": "tiny"},
        "student": {"name": row["model"], "weights": "none", "image_size": row["size"]},
        "stages": {"align": stage, "distill": stage},
    }
    run = vl2v.distill(settings, folder / "run", store=work / "store")
    (image, *_) = sorted((work / "images" / "chalk").rglob("*.png"))
    run.classifier.predict([image])


def _export(row: dict[str, Any], work: Path, folder: Path) -> None:
    from vl2v.deploy.runtime import load
    from vl2v.export.student import export_student
    from vl2v.runs.folder import Run

    export_student(Run(folder / "run"), folder / "student.onnx", preprocess="outside", store=work / "store")
    (image, *_) = sorted((work / "images" / "chalk").rglob("*.png"))
    load(folder / "student.onnx").predict([image])


def _quantise(row: dict[str, Any], work: Path, folder: Path) -> None:
    """Write an int8 file whose logits point where those of fp32 do.

    The accuracy of a student of random weights says nothing, so that `vl2v export --int8`'s own rule isn't used.
    """
    from vl2v.deploy.runtime import load
    from vl2v.export.int8 import int8_trials
    from vl2v.export.network import card_of
    from vl2v.runs.folder import Run

    files = sorted((work / "images" / "ink").rglob("*.png"))
    images = [Image.open(file).convert("RGB").resize((row["size"],) * 2) for file in files]
    pixels = np.stack([np.asarray(image) for image in images])
    made, _ = next(
        int8_trials(folder / "student.onnx", card_of(Run(folder / "run").classifier, "closed", "int8"), pixels)
    )
    plain, int8 = (np.asarray(load(path).run(pixels), np.float64) for path in (folder / "student.onnx", made))
    cosine = (plain * int8).sum() / (np.linalg.norm(plain) * np.linalg.norm(int8))
    if not cosine > 0.9:
        raise ValueError(f"cosine {cosine:.2f} of the logits in int8 and in fp32")


STEPS = {"trains": _train, "exports": _export, "quantises": _quantise}


def rows() -> list[dict[str, str]]:
    """Return what is known."""
    if not CSV.is_file():
        return []
    with CSV.open(newline="") as opened:
        return list(csv.DictReader(opened))


def put(row: dict[str, Any]) -> None:
    """Put a row into the CSV, in place of the family's old one."""
    known = {old["family"]: old for old in rows()} | {row["family"]: row}
    with CSV.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known[name] for name in sorted(known))


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| family (timm's module) | tried | features | image size | trains | ONNX | int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        size = "any" if row["free_size"] else f"{row['size']}, not {SIZE}" if row["size"] else ""
        cells = [f"`{row['family']}`", f"`{row['model']}`", row["width"], size]
        why = f": {row['why']}" if row["why"] else ""
        results = [row[column] or "" for column in ("trains", "exports", "quantises")]
        results = [f"{word}{why}" if word in ("no", "refused", "too slow", "not tried") else word for word in results]
        lines.append("| " + " | ".join((*cells, *(word.replace("|", "\\|") for word in results))) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Put the table into the page, between its marks."""
    begin, end = "<!-- families -->\n", "<!-- /families -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{before}{begin}\n{table()}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def _try(family: str, work: Path, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    queue.put(tried(family, work))


def _row(family: str, process: Any, queue: Any, timeout: float) -> dict[str, Any]:
    """Return the row of a family that is being tried in a process."""
    row = dict.fromkeys(COLUMNS, "") | {"family": family, "model": "", "trains": "no"}
    for _ in range(int(timeout)):
        with contextlib.suppress(Empty):
            return dict(queue.get(timeout=1))
        if not process.is_alive() and queue.empty():
            return row | {"why": f"the process ended with {process.exitcode}"}
    process.kill()
    return row | {"trains": "too slow", "why": f"over {timeout:g} s"}


def main() -> None:
    """Try what isn't known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="families; they are tried again")
    parser.add_argument("--print", action="store_true", help="write the table into docs/students.md and try nothing")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a family")
    given = parser.parse_args()
    if given.print:
        write_page()
        return
    import onnxscript  # noqa: F401  # once, before processes are forked

    import vl2v.export
    import vl2v.runs.train  # noqa: F401

    known = {row["family"] for row in rows()}
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_images(work / "images")
        for family in given.only or [name for name in families() if name not in known]:
            queue = context.Queue()
            process = context.Process(target=_try, args=(family, work, queue))
            process.start()
            row = _row(family, process, queue, given.timeout)
            process.join()
            put(row)
            print(", ".join(f"{value}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
