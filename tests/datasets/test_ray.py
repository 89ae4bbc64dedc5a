"""examples/ray_token_graphs.py: two actors, one of which dies, write what one process writes."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tokengraph as tg
from tokengraph.datasets import Recipe, write_dataset
from tokengraph.evaluate import Options
from tokengraph.evaluate.source import source_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_token_graphs.py"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_survives_a_worker_and_doubles_nothing(folder, tmp_path):
    out, died = tmp_path / "ray", tmp_path / "died"
    root = str(Path(tg.__file__).parent.parent)
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    options = ["--model", "test_vit", "--random-weights", "--chunk", "4", "--connect", "knn:3", "--faulty", str(died)]
    done = subprocess.run(
        [sys.executable, EXAMPLE, folder, out, *options],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert died.exists() and re.search(r"^17 graphs added$", done.stdout, flags=re.M)
    how = Options(chunk=4, batch_size=32, progress=False, device="cpu")
    source = source_of("test_vit", random_weights=True)
    write_dataset(source, folder, tmp_path / "one", Recipe(connect="knn:3", dtype="float16"), options=how)
    ours, theirs = tg.TokenGraphDataset(out), tg.TokenGraphDataset(tmp_path / "one")
    assert ours.skipped == theirs.skipped and sorted(ours.paths) == sorted(theirs.paths)
    known = {graph.path: graph for graph in theirs}
    assert all(torch.allclose(graph.x, known[graph.path].x, atol=1e-2) for graph in ours)
