"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        help="Images: folders domain/class/image or class/image, a manifest, or hf:NAME of the Hugging Face hub."
    ),
]

TeacherSpec = Annotated[
    str | None,
    typer.Option(help="Teacher: open_clip:MODEL/PRETRAINED, hf:REPO, jina:MODEL, recorded:FOLDER, tiny and more."),
]

Target = Annotated[list[str] | None, typer.Option(help="Domain to keep unseen; may be repeated.")]
Views = Annotated[int | None, typer.Option(help="Number of fixed augmented views of each image to query.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")]

Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, such as stages.distill.lr=1e-3; may be repeated.")
]

Classes = Annotated[
    str | None,
    typer.Option(help="Class names of images without labels, separated by commas, or a .txt file with one a line."),
]

Unlabelled = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder of unlabelled images to learn from as well, or a CSV or Parquet file with a path column; may be "
        "repeated."
    ),
]

Budget = Annotated[
    float, typer.Option(help="Lifetime spending limit of this store for the paid teacher, in the vendor's currency.")
]

Select = Annotated[
    str | None, typer.Option(help="Number of training images to query, or 'known' for cached embeddings only.")
]

Strategy = Annotated[
    str | None, typer.Option(help="How images are selected: random, balanced, kcenter, uncertainty or nearest.")
]

SelectFrom = Annotated[
    str | None,
    typer.Option(help="What is selected from: all, or unlabelled: all training images with labels are queried then."),
]

Method = Annotated[
    str | None,
    typer.Option(help="Training method, adip-plus by default (adip with --preset paper); see `vl2v methods`."),
]

Student = Annotated[str | None, typer.Option(help="Student: a timm model.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
ImageSize = Annotated[int | None, typer.Option(help="Student's image size in pixels.")]
Preset = Annotated[str, typer.Option(help="Preset: default, or paper (as published, oddities included).")]
Store = Annotated[Path | None, typer.Option(help="Embedding store; default: one shared by all runs.")]
