"""Runs the notebooks and keeps their outputs: ``make notebooks``. It needs no Jupyter.

Lines that end in ``# short: NAME = VALUE`` are replaced by that assignment in tests. With $TRUTH_DATA the ViT-S/14 of
``benchmarks/truth`` stands in for pretrained weights of the hub, and the notebooks print so.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

from website.measured import ROOT

FOLDER = ROOT / "notebooks"
SHORT = re.compile(r"^\S.*#\s*short:\s*(.+)$", flags=re.M)
Cell = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Runs all notebooks, or those that are named, and writes their outputs into them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of file names; default: all")
    names = parser.parse_args(argv).names
    if os.environ.get("TRUTH_DATA"):
        _real_weights(Path(os.environ["TRUTH_DATA"]))
    for file in sorted(FOLDER.glob("*.ipynb")):
        if not names or any(name in file.name for name in names):
            notebook = json.loads(file.read_text(encoding="utf-8"))
            run(notebook)
            file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{file.name}: {file.stat().st_size / 1000:.0f} KB")
    return 0


def run(notebook: dict[str, Any], *, short: bool = False) -> None:
    """Runs the code cells in turn and puts what they print and show into them.

    Raises:
        Exception: The first one of a cell, with the cell's number in its notes or message.
    """
    module = types.ModuleType("notebook_of_tokengraph")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            code = "".join(cell["source"])
            cell["outputs"] = outputs_of(SHORT.sub(r"\1", code) if short else code, module.__dict__, f"cell {number}")
            cell["execution_count"] = number


def outputs_of(code: str, names: dict[str, Any], label: str) -> list[Cell]:
    """Runs one cell and returns its outputs: the printed text, and the value of a last expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, label, "exec"), names)
        value = eval(compile(ast.Expression(last.value), label, "eval"), names) if last is not None else None
    found: list[Cell] = []
    if printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        found.append({"output_type": "display_data", "metadata": {}, "data": _shown(value)})
    return found


def markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as a page with its outputs, and the pictures by their names."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/jpeg" in data:
                picture = f"{name}-{len(pictures)}.jpg"
                pictures[picture] = base64.b64decode(data["image/jpeg"])
                parts.append(f"![output]({picture})")
            else:
                parts.append(f"```text\n{''.join(output.get('text') or data.get('text/plain', '')).rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _shown(value: Any) -> dict[str, Any]:
    if not hasattr(value, "savefig"):
        return {"text/plain": [repr(value)]}
    from PIL import Image

    raw, small = io.BytesIO(), io.BytesIO()
    value.savefig(raw, format="png", dpi=72)
    Image.open(raw).convert("RGB").save(small, format="jpeg", quality=72, optimize=True)
    return {"image/jpeg": base64.b64encode(small.getvalue()).decode(), "text/plain": ["<Figure>"]}


def _real_weights(data: Path) -> None:
    """Lets ``load_model`` return the ViT-S/14 of the folder."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from truth import weights

    from tokengraph.demo import weights as demo

    def load_model(name: str, *, img_size: int, pretrained: bool = True, seed: int = 0) -> demo.Loaded:
        """Takes the place of the function that asks the hub."""
        if name != "vit_small_patch14_dinov2":
            raise ValueError(f"Expected vit_small_patch14_dinov2 (got {name!r}).")
        return demo.Loaded(weights.vit_s(data, img_size), True, weights.NAME)

    demo.load_model = load_model


if __name__ == "__main__":
    sys.exit(main())
