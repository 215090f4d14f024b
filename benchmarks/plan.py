"""Planning with a million images of which nearly all are known: seconds and memory of `vl2v embed --dry-run`.

    python benchmarks/plan.py

Makes a manifest with hashes and a store of embeddings (dimension 8), then plans in a fresh process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.teachers import open_teacher

CLASSES, DOMAINS, CHUNK = 100, 4, 5000

PLAN = """
import resource, sys, time
start = time.perf_counter()
import vl2v
imported = time.perf_counter()
planned = vl2v.embed({"data": {"path": sys.argv[1]}, "teacher": {"spec": sys.argv[2]}}, store=sys.argv[3], dry_run=True)
print(planned.summary())
seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{seconds:.1f} s (bar 60), peak memory {peak:.2f} GiB (bar 1)")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--unknown", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        spec = f"recorded:{recording(folder / 'recording')}"
        fill(folder, spec, given.images, given.unknown)
        command = [sys.executable, "-c", PLAN, str(folder / "manifest.csv"), spec, str(folder / "store")]
        subprocess.run(command, check=True)


def recording(folder: Path) -> Path:
    """Write a recorded teacher of one image and the classes' texts, so that nothing is spent on a model."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    np.save(folder / "image_embeddings.npy", draw.normal(size=(1, 8)).astype(np.float16))
    np.save(folder / "text_embeddings.npy", draw.normal(size=(CLASSES, 8)).astype(np.float16))
    (folder / "images.csv").write_text("path\nnone.png\n")
    texts = "".join(f"a photo of a class{number}\n" for number in range(CLASSES))
    (folder / "texts.csv").write_text(f"text\n{texts}")
    (folder / "vendor.json").write_text(json.dumps({"name": "plan", "logit_scale": 10.0}))
    return folder


def fill(folder: Path, spec: str, images: int, unknown: int) -> None:
    """Write the manifest, and a store that knows all images but the last ones."""
    teacher = open_teacher(spec)
    start = time.perf_counter()
    rows = np.random.default_rng(1).normal(size=(CHUNK, teacher.dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with (folder / "manifest.csv").open("w") as manifest, EmbeddingStore(folder / "store") as store:
        store.register(teacher)
        manifest.write("path,class,domain,sha256\n")
        for first in range(0, images, CHUNK):
            hashes = [hashlib.sha256(str(number).encode()).digest() for number in range(first, first + CHUNK)]
            for number, sha256 in enumerate(hashes, first):
                name, domain = f"class{number % CLASSES}", f"domain{number % DOMAINS}"
                manifest.write(f"{domain}/{name}/image_{number:07d}.jpg,{name},{domain},{sha256.hex()}\n")
            known = [image_key(sha256) for sha256 in hashes][: max(0, images - unknown - first)]
            if known:
                store.put(teacher.fingerprint, known, rows[: len(known)], kind="image")
    print(f"prepared in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
