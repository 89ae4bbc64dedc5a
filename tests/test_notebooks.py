"""The notebooks run in a short form, and their kept outputs are whole and small."""

import json
import sys
from pathlib import Path

import pytest
from needs import library

from website.notebooks import run

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000  # bytes of a notebook with its outputs


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs_in_its_short_form(file):
    for name in ("timm", "transformers"):
        library(name)
    for name in ("skimage", "matplotlib", "PIL", "sklearn"):
        pytest.importorskip(name)

    notebook = read(file)
    try:
        run(notebook, short=True)
    finally:
        sys.modules.pop("notebook_of_tokengraph", None)
    assert any(cell.get("outputs") for cell in notebook["cells"])


def test_there_are_six_notebooks():
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_keeps_outputs_of_one_run_from_top_to_bottom(file):
    code = [cell for cell in read(file)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) >= 3
    assert file.stat().st_size < LARGEST
