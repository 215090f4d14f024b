"""The notebook runs as a reader would run it: progress is shown, results are tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from sample_icons import few_icons

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what the code cells show, by kind of content; each cell's last output of a kind."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    with few_icons(folder / "home", 3):
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    shown: list[dict[str, Any]] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown.append({kind: text for output in cell.outputs for kind, text in output.get("data", {}).items()})
            shown[-1]["all"] = " ".join(str(output.get("data", output)) for output in cell.outputs)
    return shown


def test_progress_is_rendered_and_a_run_is_a_table(outputs: list[dict[str, Any]]) -> None:
    training = outputs[2]
    assert "<progress value='5' max='5'></progress>" in training["all"] and "distill" in training["all"]
    assert "<table" in training["text/html"] and "adip" in training["text/html"]


def test_results_are_tables_and_figures(outputs: list[dict[str, Any]]) -> None:
    assert "'outline'" in outputs[0]["text/plain"]
    assert "<table" in outputs[3]["text/html"] and "outline" in outputs[3]["text/html"]
    assert {"image/png"} <= outputs[1].keys() & outputs[4].keys()
    assert "<" in outputs[5]["text/html"]
