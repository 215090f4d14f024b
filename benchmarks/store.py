"""Speed, size, memory and kill -9 of the embedding store, and of the containers it could have been.

    python benchmarks/store.py bars          the store itself, 1 million x 512: the bars of docs/store.md
    python benchmarks/store.py kills         50 times kill -9 at random moments, everything acknowledged read back
    python benchmarks/store.py containers    the same bare loop over SQLite's layouts, LMDB, an append-only log

Every part works in a temporary folder (`--folder` chooses where: the disk is what is measured) and removes it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore

Rows = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Facts:
    name: str = "benchmark"
    fingerprint: str = "b" * 16
    dim: int = 512
    logit_scale: float | None = None


def keys_of(numbers: Sequence[int]) -> list[bytes]:
    return [image_key(number.to_bytes(32, "big")) for number in numbers]


def vectors_of(start: int, count: int, dim: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(start).standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def own_memory() -> float:
    """Anonymous memory of this process, MB: without file pages, which the system takes back when it likes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vl2v-store-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


# The store itself


def written_per_second(store: EmbeddingStore, facts: Facts, start: int, stop: int, batch: int) -> float:
    spent = 0.0
    for first in range(start, stop, batch):
        count = min(batch, stop - first)
        keys, vectors = keys_of(range(first, first + count)), vectors_of(first, count, facts.dim)
        began = time.perf_counter()
        store.put(facts.fingerprint, keys, vectors, kind="image")
        spent += time.perf_counter() - began
    return (stop - start) / spent


def read_per_second(store: EmbeddingStore, facts: Facts, rows: int, at_once: int, times: int) -> float:
    draw = np.random.default_rng(0)
    spent = 0.0
    for _ in range(times):
        keys = keys_of(draw.integers(rows, size=at_once).tolist())
        began = time.perf_counter()
        store.get(facts.fingerprint, keys)
        spent += time.perf_counter() - began
    return times * at_once / spent


def bars(rows: int, dim: int, parent: Path | None) -> None:
    facts = Facts(dim=dim)
    with scratch(parent) as folder:
        with EmbeddingStore(folder) as store:
            store.register(facts)
            memory, rates = [], []
            for tenth in range(10):
                rates.append(written_per_second(store, facts, rows * tenth // 10, rows * (tenth + 1) // 10, 256))
                memory.append(own_memory())
        size = bytes_in(folder)
        with EmbeddingStore(folder) as store:
            turns = [
                (n, read_per_second(store, facts, rows, n, 40_000 // n)) for _ in range(5) for n in (256, 1000, 10_000)
            ]
            memory.append(own_memory())
            few = written_per_second(store, facts, rows, rows + 20_000, 32)
            middle = rows // 20 // 256 * 256  # a commit of the first tenth, when rows are a multiple of ten
            same = store.get_half(facts.fingerprint, keys_of(range(middle, middle + 256)))
            assert np.array_equal(same, vectors_of(middle, 256, dim).astype(np.float16)), "not what was written"
    row(f"{rows:,} x {dim}", "measured", "bar")
    row("---", "---", "---")
    row("durable writes/s, 256 a commit", f"{1 / statistics.mean(1 / r for r in rates):,.0f}", "20,000")
    row("the last tenth of them", f"{rates[-1]:,.0f}", "20,000")
    row("durable writes/s, 32 a commit, into the full store", f"{few:,.0f}", "-")
    for at_once in (256, 1000, 10_000):
        seen = sorted(rate for n, rate in turns if n == at_once)
        shown = f"{statistics.median(seen):,.0f} ({seen[0]:,.0f} to {seen[-1]:,.0f})"
        row(f"random look-ups/s, {at_once:,} a call: median of 5 (range)", shown, "100,000")
    row("file / raw half precision", f"{size / (2 * rows * dim):.3f}", "1.15")
    row("own memory after 10%, 50%, 100%, reading (MB)", ", ".join(f"{memory[i]:.0f}" for i in (0, 4, 9, 10)), "flat")


# kill -9


def write_until_killed(folder: Path, start: int) -> None:
    facts = Facts()
    with EmbeddingStore(folder) as store:
        store.register(facts)
        for batch in range(start, sys.maxsize):
            keys = keys_of(range(64 * batch, 64 * batch + 64))
            store.put(facts.fingerprint, keys, vectors_of(64 * batch, 64, facts.dim), kind="image")
            print(batch, flush=True)


def kills(times: int, parent: Path | None) -> None:
    facts, draw, acknowledged = Facts(), random.Random(), list[int]()
    with scratch(parent) as folder:
        for _ in range(times):
            start = acknowledged[-1] + 1 if acknowledged else 0
            command = [sys.executable, __file__, "write", "--folder", str(folder), "--start", str(start)]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert writer.stdout is not None
            acknowledged.append(int(writer.stdout.readline()))
            time.sleep(draw.uniform(0, 0.5))
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
            writer.wait()
        lost = 0
        with EmbeddingStore(folder) as store:
            for batch in acknowledged:
                keys = keys_of(range(64 * batch, 64 * batch + 64))
                there = store.cached(facts.fingerprint, keys)
                lost += int((~there).sum())
                if there.all():
                    there = store.get_half(facts.fingerprint, keys)
                    lost += int((there != vectors_of(64 * batch, 64, facts.dim).astype(np.float16)).any(axis=1).sum())
        with closing(sqlite3.connect(store.file)) as db:
            (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
    row("kill -9", "rows acknowledged", "lost or changed", "integrity_check")
    row("---", "---", "---", "---")
    row(times, f"{64 * len(acknowledged):,}", lost, verdict)


# Containers: the bare loop, without the store's checks, so that only the container differs


ROWS = "CREATE TABLE a (id INTEGER PRIMARY KEY, key BLOB, crc INT, v BLOB);"
PLACES = "CREATE TABLE {} (half INT, a INT, PRIMARY KEY (half, a)) WITHOUT ROWID;"
LAYOUTS = {
    "rows as they come, unique index on the key": ROWS + "CREATE UNIQUE INDEX i ON a (key)",
    "rows as they come, index on half the key": ROWS + PLACES.format("old") + PLACES.format("new"),
    "rows as they come, index on half the key, new entries gathered": ROWS
    + PLACES.format("old")
    + PLACES.format("new"),
    "rows sorted by key (WITHOUT ROWID)": "CREATE TABLE a (key BLOB PRIMARY KEY, crc INT, v BLOB) WITHOUT ROWID",
}


class Sqlite:
    def __init__(self, folder: Path, layout: str, page: int) -> None:
        self.half = "half" in layout or "gathered" in layout
        self.gathered = 8192 if "gathered" in layout else 1
        self.db = sqlite3.connect(folder / "x", isolation_level=None)
        for pragma in (
            f"page_size={page}",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={2**26 // page}",
            "cache_size=-65536",
            "mmap_size=2147418112",
        ):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.executescript(LAYOUTS[layout])
        self.last = 0

    def write(self, rows: Rows) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(
            "INSERT INTO a (key, crc, v) VALUES (?, ?, ?)", [(k, zlib.crc32(v) - 2**31, v) for k, v in rows]
        )
        if self.half:
            table = "new" if self.gathered > 1 else "old"
            self.db.executemany(
                f"INSERT INTO {table} VALUES (?, ?)",
                [(signed(k[:8]), self.last + i) for i, (k, _) in enumerate(rows, 1)],
            )
            if self.gathered > 1 and self.last // self.gathered != (self.last + len(rows)) // self.gathered:
                self.db.execute("INSERT INTO old SELECT * FROM new ORDER BY half, a")
                self.db.execute("DELETE FROM new")
        self.last += len(rows)
        self.db.execute("COMMIT")

    def read(self, keys: list[bytes]) -> list[bytes]:
        marks = ",".join("?" * len(keys))
        wanted = [signed(key[:8]) for key in keys] if self.half else keys
        sql = f"SELECT crc, v FROM a WHERE key IN ({marks})"
        if self.half:
            sql = f"SELECT crc, v FROM old CROSS JOIN a ON id = a WHERE half IN ({marks})"
        if self.gathered > 1:
            sql, wanted = f"{sql} UNION ALL {sql.replace('old', 'new')}", wanted * 2
        return [v for crc, v in self.db.execute(sql, wanted) if zlib.crc32(v) - 2**31 == crc]

    def close(self) -> None:
        self.db.close()


class Lmdb:
    def __init__(self, folder: Path) -> None:
        import lmdb

        self.env = lmdb.open(str(folder), map_size=2**36, writemap=False)

    def write(self, rows: Rows) -> None:
        with self.env.begin(write=True) as transaction:
            transaction.cursor().putmulti([(k, zlib.crc32(v).to_bytes(4, "little") + v) for k, v in rows])

    def read(self, keys: list[bytes]) -> list[bytes]:
        with self.env.begin() as transaction:
            found = transaction.cursor().getmulti(keys)
        return [v[4:] for _, v in found if zlib.crc32(v[4:]) == int.from_bytes(v[:4], "little")]

    def close(self) -> None:
        self.env.close()


class Log:
    """Append, fdatasync; the index is a dict in memory, the reads go through a memory map."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "log").open("w+b", buffering=0)
        self.offsets: dict[bytes, int] = {}
        self.end, self.map = 0, None

    def write(self, rows: Rows) -> None:
        self.file.write(b"".join(k + zlib.crc32(v).to_bytes(4, "little") + v for k, v in rows))
        os.fdatasync(self.file.fileno())
        self.width = len(rows[0][1])
        for k, _ in rows:
            self.offsets[k] = self.end
            self.end += 20 + self.width

    def read(self, keys: list[bytes]) -> list[bytes]:
        if self.map is None:
            self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        found = []
        for key in keys:
            offset = self.offsets[key]
            vector = self.map[offset + 20 : offset + 20 + self.width]
            if zlib.crc32(vector) == int.from_bytes(self.map[offset + 16 : offset + 20], "little"):
                found.append(vector)
        return found

    def close(self) -> None:
        self.file.close()


def signed(half: bytes) -> int:
    return int.from_bytes(half, "big", signed=True)


def containers(rows: int, dim: int, parent: Path | None) -> None:
    choices: dict[str, Callable[[Path], Sqlite | Lmdb | Log]] = {
        "append-only log + CRC + memory map": Log,
        **{
            f"SQLite, {layout}, pages of {page // 1024} KB": (lambda folder, la=layout, pa=page: Sqlite(folder, la, pa))
            for layout, page in [
                ("rows as they come, index on half the key, new entries gathered", 16384),
                ("rows as they come, index on half the key, new entries gathered", 4096),
                ("rows as they come, index on half the key, new entries gathered", 65536),
                ("rows as they come, index on half the key", 16384),
                ("rows as they come, unique index on the key", 16384),
                ("rows sorted by key (WITHOUT ROWID)", 16384),
            ]
        },
        "LMDB": Lmdb,
    }
    row(f"{rows:,} x {dim}, bare", "writes/s, 256 a commit", "32 a commit", "look-ups/s, 1,000 a call", "file / raw")
    row("---", "---", "---", "---", "---")
    for name, opened in choices.items():
        with scratch(parent) as folder, closing(opened(folder)) as container:
            rates = []
            for batch, start, stop in ((256, 0, rows * 9 // 10), (32, rows * 9 // 10, rows)):
                spent = 0.0
                for first in range(start, stop, batch):
                    count = min(batch, stop - first)
                    raw = vectors_of(first, count, dim).astype(np.float16)
                    chunk = list(zip(keys_of(range(first, first + count)), map(bytes, raw), strict=True))
                    began = time.perf_counter()
                    container.write(chunk)
                    spent += time.perf_counter() - began
                rates.append((stop - start) / spent)
            draw, spent = np.random.default_rng(0), 0.0
            for _ in range(100):
                keys = keys_of(draw.choice(rows, 1000, replace=False).tolist())
                began = time.perf_counter()
                assert len(container.read(keys)) == 1000
                spent += time.perf_counter() - began
            container.close()
            ratio = bytes_in(folder) / (2 * rows * dim)
            row(name, *(f"{rate:,.0f}" for rate in rates), f"{100_000 / spent:,.0f}", f"{ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["bars", "kills", "containers", "write"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--times", type=int, default=50, help="how many kills")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    match given.part:
        case "bars":
            bars(given.rows or 1_000_000, given.dim, given.folder)
        case "kills":
            kills(given.times, given.folder)
        case "containers":
            containers(given.rows or 300_000, given.dim, given.folder)
        case "write":
            write_until_killed(given.folder, given.start)


if __name__ == "__main__":
    main()
