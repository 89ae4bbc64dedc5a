"""Files of Fashion-MNIST's kind with images of noise, and scripts of ``examples/`` that train on them."""

import gzip
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def write_noise(where: Path, count: int = 64) -> Path:
    """Writes the four files, each part with as many images; skips the test if a package of the examples is missing."""
    for package in ("timm", "sklearn", "rich", "matplotlib"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for kind, head, content in (
            ("images-idx3", struct.pack(">IIII", 2051, count, 28, 28), pixels),
            ("labels-idx1", struct.pack(">II", 2049, count), labels),
        ):
            with gzip.open(where / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + content.tobytes())
    return where


def run_example(script: str, data: Path, out: Path, *options: str, processes: int = 0) -> str:
    """Runs the script in a process of its own, or by torchrun, and returns what it printed."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    command = [sys.executable, *launcher, str(EXAMPLES / script), "--data", str(data), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=out.parent, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
