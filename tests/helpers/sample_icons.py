"""IconDG with few images, for examples of the documentation that would take all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vl2v.data.archives import icondg


@contextmanager
def few_icons(home: Path, count: int) -> Iterator[None]:
    """Be a new user in whose cache IconDG has `count` images of each class and style."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for kind in ("cache", "data"):
            patch.setenv(f"XDG_{kind.upper()}_HOME", str(home / kind))
        for folder in icondg().glob("*/*/"):
            for image in sorted(folder.glob("*.png"))[count:]:
                image.unlink()
        yield
