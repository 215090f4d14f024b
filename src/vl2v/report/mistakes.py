"""A page of the images whose labels are probably wrong."""

from __future__ import annotations

from collections import defaultdict

from vl2v.data.decoding import decode
from vl2v.errors import DataError
from vl2v.report.page import page, percent, thumbnail
from vl2v.runs.mistakes import Mistakes

MOST = 300  # images shown


def mistakes_page(found: Mistakes) -> str:
    """Return the HTML of a page with the most suspect images, by the class that they are labelled with."""
    dataset, names = found.dataset, found.dataset.classes
    shown = defaultdict(list)
    for one in found.suspects[:MOST]:
        try:
            image = thumbnail(decode(dataset.read(one.image)))
        except (OSError, DataError):  # gone since it was checked
            continue
        path = dataset.paths[one.image]
        lines = [(f"{names[one.suggested]}?", "bad"), (percent(one.of_suggested, 0), ""), (path, "")]
        shown[names[one.label]].append({"image": image, "alt": path, "lines": lines})
    share = f"{percent(len(found.suspects) / found.checked)} of those checked"
    tiles = [
        {
            "who": "",
            "label": "suspect labels",
            "value": f"{len(found.suspects):,}",
            "note": share,
        },
        {"who": "", "label": "checked", "value": f"{found.checked:,}", "note": "labelled images with an embedding"},
        {"who": "", "label": "not checked", "value": f"{found.unknown:,}", "note": "without an embedding"},
    ]
    content = {
        "title": f"Labels to check in {dataset.root.name}",
        "eyebrow": "vl2v data mistakes",
        "lead": f"{found.teacher} and a linear student that never saw the image agree that its label is wrong.",
        "tiles": tiles,
        "sections": [(f"c{number}", name) for number, name in enumerate(shown)],
        "groups": [(f"c{number}", name, images) for number, (name, images) in enumerate(shown.items())],
        "more": max(0, len(found.suspects) - MOST),
    }
    return page("mistakes.html", content)
