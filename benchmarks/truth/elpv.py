"""ELPV: 2,624 photographs of solar cells, 300 x 300, grey, with a defect probability in four steps and a kind of cell.

The pictures are read from the package when it runs; none of them may be committed (CC BY-NC-SA).
Source: Buerhop-Lutz et al., *A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
Imagery*, EU PVSEC 2018.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokengraph.evaluate.images import Images

WHEEL = "elpv_dataset-1.0.0.post1-py3-none-any.whl"
MEMBERS = "elpv_dataset/data/"
TASKS = {
    "defect": ("sound", "defect"),
    "kind-defect": ("poly, sound", "poly, defect", "mono, sound", "mono, defect"),
}


def read_rows(text: str) -> list[tuple[str, float, str]]:
    """``(file, defect probability, "mono" or "poly")`` of each line of ``labels.csv``; blanks between the columns."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return [(name, float(probability), kind) for name, probability, kind in rows]


def label_of(probability: float, kind: str, task: str) -> int:
    """The class in a task; a defect is a probability of at least a half (two of three experts' votes, or sure)."""
    defect = int(probability >= 0.5)
    return defect if task == "defect" else 2 * (kind == "mono") + defect


class Elpv(Images):
    """The set with the labels of one task, read from the wheel.

    Args:
        folder: Where packages were fetched.
        task: ``"defect"`` or ``"kind-defect"``.
    """

    def __init__(self, folder: Path, task: str = "defect") -> None:
        if task not in TASKS:
            raise ValueError(f"Expected a task of ELPV: {', '.join(TASKS)} (got {task!r}).")
        self._wheel = folder / "packages" / WHEEL
        with zipfile.ZipFile(self._wheel) as wheel:
            self.rows = read_rows(wheel.read(MEMBERS + "labels.csv").decode())
        self.task, self.name = task, "ELPV"
        self.classes: Sequence[str] = TASKS[task]
        self.has_labels = True

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Any:
        """A Pillow image, 300 x 300, three equal channels."""
        with zipfile.ZipFile(self._wheel) as wheel:  # opened anew: threads may read at the same time
            return Image.open(io.BytesIO(wheel.read(MEMBERS + self.rows[index][0]))).convert("RGB")

    def label(self, index: int) -> int:
        """The class in the task."""
        _, probability, kind = self.rows[index]
        return label_of(probability, kind, self.task)

    def key(self, index: int) -> str:
        """The file's name."""
        return self.rows[index][0]
