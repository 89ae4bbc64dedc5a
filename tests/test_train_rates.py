"""The example that learns rates: it ends at most at the target's cost, and goes on exactly where it stopped."""

import gzip
import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "train_rates.py"
SHORT = ["--images", "64", "--batch", "16", "--epochs", "0", "2", "--test", "32"]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of noise in the files that the package has."""
    for package in ("timm", "sklearn", "rich", "matplotlib"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    rng, where = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for part in ("train", "t10k"):
        pixels, labels = rng.integers(0, 256, (64, 28, 28), dtype=np.uint8), rng.integers(0, 10, 64, dtype=np.uint8)
        for kind, head, content in (
            ("images-idx3", struct.pack(">IIII", 2051, 64, 28, 28), pixels),
            ("labels-idx1", struct.pack(">II", 2049, 64), labels),
        ):
            with gzip.open(where / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + content.tobytes())
    return where


def run(data, out, *options):
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=out.parent, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rates_cost_at_most_the_target_and_resume_exactly(data, tmp_path):
    run(data, tmp_path / "whole", *SHORT)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["cost"]["learned rates"] <= report["cost"]["ToMe"] + 1e-6
    assert set(report["gain"]) == {"dense", "ToMe", "constant rates"}
    run(data, tmp_path / "parts", *SHORT, "--stop-after", "1")
    run(data, tmp_path / "parts", *SHORT, "--resume", str(tmp_path / "parts" / "checkpoint.pt"))
    rates = [json.loads((tmp_path / name / "rates.json").read_text()) for name in ("whole", "parts")]
    assert rates[0] == rates[1]
