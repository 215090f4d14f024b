"""What an export gains: speed, size and memory beside the same student in eager PyTorch, and the cold start.

    python benchmarks/export.py RUN                      # a finished run, its images at hand
    python benchmarks/export.py RUN --against vit-b-16   # and beside a ViT-B/16 of random weights

Prints the table of `vl2v bench-device`. The cold start is a new process that imports vl2v.deploy.runtime, loads the
int8 file (or fp32, where int8 is refused) and predicts one image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vl2v.errors import StudentError
from vl2v.export.device import bench_device
from vl2v.export.student import export_student
from vl2v.runs.folder import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", help="as for `vl2v bench-device`, or vit-b-16")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        against = f"open_clip:local-dir:{vit_b_16(folder)}" if given.against == "vit-b-16" else given.against
        found = bench_device(
            Run(given.run), against=against, image_size=given.image_size, turns=given.turns, store=given.store
        )
        print(found.table().render("md"))
        print(f"cold start: {cold_start(exported(given.run, folder, given.store), folder):.2f} s")


def vit_b_16(folder: Path) -> Path:
    """Return the folder of an open_clip model of random weights."""
    import open_clip
    from safetensors.torch import save_file

    place = folder / "vit-b-16"
    place.mkdir()
    model = open_clip.create_model("ViT-B-16")
    save_file(model.state_dict(), place / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config("ViT-B-16"), "preprocess_cfg": {}}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    return place


def exported(run: Path, folder: Path, store: Path | None) -> Path:
    """Return an export in int8, or in fp32 where accuracy would fall."""
    file = folder / "student.onnx"
    try:
        export_student(Run(run), file, int8=True, store=store)
    except StudentError:
        export_student(Run(run), file, store=store)
    return file


def cold_start(file: Path, folder: Path) -> float:
    """Return the median seconds of five new processes."""
    from PIL import Image

    Image.effect_noise((227, 227), 64).convert("RGB").save(folder / "noise.jpg")
    program = f"import vl2v.deploy.runtime as r; r.load({str(file)!r}).predict([{str(folder / 'noise.jpg')!r}])"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
