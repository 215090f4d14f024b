"""A student as a finished page: a folder for any static host, which works without a network once it was opened."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vl2v.data.download import fetch, sha256_of
from vl2v.errors import ConfigError, DataError, RunError, StudentError, writing
from vl2v.io import temporary_folder, write_bytes
from vl2v.session import Progress, silent

RUNTIME_VERSION = "1.30.0"  # of onnxruntime-web
RUNTIME = {
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""What runs the student in a browser: file -> SHA-256."""

PACKED = "ort-wasm.bin"
"""The largest of these in a page, gzipped; the page unpacks it."""

_WASM = "ort-wasm-simd-threaded.wasm"
_ADDRESS = "https://cdn.jsdelivr.net/npm/onnxruntime-web@{version}/dist/{name}"
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_COLOUR = "#0b6e66"
_HEAD = f"""<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="manifest" href="manifest.webmanifest">
<link rel="icon" href="icon-192.png">
<link rel="apple-touch-icon" href="icon-180.png">
<meta name="theme-color" content="{_COLOUR}">
<script src="ort.wasm.min.js"></script>
<script src="student.js" defer></script>
"""


def runtime_files(folder: Path | None = None, progress: Progress = silent) -> dict[str, Path]:
    """Return the files of onnxruntime-web: from a folder, from the cache, or downloaded once, by npm if need be.

    Args:
        folder: that has them, such as `node_modules/onnxruntime-web/dist`; None: the cache.

    Raises:
        ConfigError: the folder lacks one, or it is of another version.
        DataError: one can't be downloaded.
    """
    if folder is not None:
        for name, digest in RUNTIME.items():
            if not (folder / name).is_file() or sha256_of(folder / name) != digest:
                raise ConfigError(
                    f"--runtime {folder}: {name} isn't that of onnxruntime-web {RUNTIME_VERSION}; "
                    f"`npm install onnxruntime-web@{RUNTIME_VERSION}`, then --runtime node_modules/onnxruntime-web/dist"
                )
        return {name: folder / name for name in RUNTIME}
    cache = platformdirs.user_cache_path("vl2v", appauthor=False) / f"onnxruntime-web-{RUNTIME_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    missing = [name for name, sha in RUNTIME.items() if not (cache / name).is_file() or sha256_of(cache / name) != sha]
    try:
        for name in missing:
            address = _ADDRESS.format(version=RUNTIME_VERSION, name=name)
            fetch([address], cache / name, sha256=RUNTIME[name], most=20_000_000, progress=progress)
    except DataError as error:
        if not _fetched_by_npm(cache):
            raise DataError(
                f"{error}; without a network: `npm install onnxruntime-web@{RUNTIME_VERSION}` elsewhere, and name "
                "its folder dist with --runtime"
            ) from None
    return {name: cache / name for name in RUNTIME}


def _fetched_by_npm(folder: Path) -> bool:
    """Put onnxruntime-web's files into a folder by npm, which may reach a registry where nothing else is reached."""
    npm = shutil.which("npm")
    if npm is None:
        return False
    with temporary_folder() as packs:
        words = [npm, "pack", f"onnxruntime-web@{RUNTIME_VERSION}", "--silent", "--pack-destination", str(packs)]
        if subprocess.run(words, cwd=packs, capture_output=True).returncode:
            return False
        with tarfile.open(next(packs.glob("*.tgz"))) as packed:
            for file, digest in RUNTIME.items():
                member = packed.extractfile(f"package/dist/{file}")
                data = member.read() if member else b""
                if hashlib.sha256(data).hexdigest() != digest:
                    return False
                write_bytes(folder / file, data)
    return True


def check_folder(out: Path) -> None:
    """Check that a page may be written to a folder.

    Raises:
        ConfigError: it has something else in it.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "student.js").is_file())):
        raise ConfigError(f"--out {out}: has other files in it; name a new folder")


def write_web(
    model: Path,
    card: dict[str, Any],
    out: Path,
    *,
    others: Mapping[str, NDArray[np.float32]] | None = None,
    runtime: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Write the page of a student.

    Args:
        model: an ONNX file with preprocessing inside.
        card: its card, as `vl2v.export.cards` makes it.
        out: the folder; it is new, or that of an earlier page, which is replaced.
        others: classes that can be added in the page, of the open form: name -> class embedding [d].
        runtime: as for `runtime_files`.

    Raises:
        StudentError: the model has its preprocessing outside.
        ConfigError: the folder has something else in it.
        DataError: onnxruntime-web can't be downloaded.
    """
    if card["preprocessing"] != "inside":
        raise StudentError("a page needs a student with its preprocessing inside")
    check_folder(out)
    assets = files("vl2v.export").joinpath("web_page")
    html = files("vl2v").joinpath("serving", "page.html").read_text(encoding="utf-8")
    for old, new in (
        ('<link rel="icon" href="data:,">\n', _HEAD),
        ("It is sent to this server alone.", "It stays on this device."),
        ("\nbegin();\n</script>", '\naddEventListener("DOMContentLoaded", begin);\n</script>'),
    ):
        if html.count(old) != 1:
            raise StudentError(f"the page has changed: {old.strip()!r} isn't in it once; report this")
        html = html.replace(old, new)
    embeddings = {
        name: base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() for name, vector in (others or {}).items()
    }
    manifest = {
        "name": "What is it?",
        "short_name": "What is it?",
        "start_url": "./",
        "display": "standalone",
        "background_color": "#f7f6f2",
        "theme_color": _COLOUR,
        "icons": [
            {"src": f"icon-{side}.png", "sizes": f"{side}x{side}", "type": "image/png", "purpose": "any maskable"}
            for side in (192, 512)
        ],
    }
    card = {**card, "files": [{**card["files"][0], "name": "student.onnx"}]}
    page = {
        "index.html": html.encode(),
        "manifest.webmanifest": json.dumps(manifest, indent=2).encode(),
        "classes.json": json.dumps(embeddings).encode(),
        "student.json": json.dumps(card, indent=2, ensure_ascii=False).encode(),
        card["files"][0]["name"]: model.read_bytes(),
        "student.js": assets.joinpath("student.js").read_bytes(),
        **{f"icon-{side}.png": _icon(side) for side in (180, 192, 512)},  # iPhones show no SVG
        **{name: file.read_bytes() for name, file in runtime_files(runtime, progress).items()},
    }
    if _WASM in page:  # not called .gz: some servers would have the browser unpack that
        page[PACKED] = gzip.compress(page.pop(_WASM), mtime=0)
    version = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in page.values())).hexdigest()[:16]
    worker = assets.joinpath("sw.js").read_text(encoding="utf-8")
    listed = json.dumps(["./", *(name for name in page if name != "index.html")])
    page["sw.js"] = worker.replace("{version}", version).replace("{files}", listed).encode()
    with writing(out, RunError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder) / "page"
            for name, data in page.items():
                write_bytes(made / name, data)
            if out.exists():
                shutil.rmtree(out)
            made.rename(out)


def _icon(side: int) -> bytes:
    """Return the page's icon as PNG: a photograph in outline, on a full square: systems cut the corners."""
    image = Image.new("RGB", (1536, 1536), _COLOUR)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((248, 344, 1288, 1192), 168, outline="white", width=80)
    draw.ellipse((408, 448, 664, 704), outline="white", width=80)
    draw.line([(352, 1056), (608, 800), (800, 992), (960, 864), (1184, 1056)], "white", 80, joint="curve")
    buffer = io.BytesIO()
    image.resize((side, side)).quantize(16).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
