"""The training example: it reaches its targets, goes on exactly where it stopped, and does not depend on processes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

SCRIPT = Path(__file__).parent.parent / "examples" / "train_dynamicvit.py"
SHORT = ["--epochs", "1", "2", "--frozen", "1", "--images", "352", "--rounds", "1"]  # 11 steps an epoch
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def needs():
    for package in ("timm", "sklearn", "rich", "matplotlib"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def run(out: Path, *options: str, processes: int = 0) -> str:
    """The script in a process of its own, or by torchrun; what it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    command = [sys.executable, *launcher, str(SCRIPT), "--out", str(out), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=out.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(out: Path, name: str = "dynamicvit") -> dict[str, torch.Tensor]:
    return torch.load(out / f"{name}.pt", weights_only=True)


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A short training without an interruption, by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(out, *SHORT)
    return out


def test_quick_training_reaches_its_targets_and_prunes_better_than_class_attention(tmp_path):
    printed = run(tmp_path / "out", "--quick", "--rounds", "5")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    dense, by_attention, trained = (row["accuracy"] for row in report["models"])
    assert dense > 0.9 and trained > 0.8 and trained > by_attention  # chance: 0.1
    assert report["tokens"] == [64, 32, 16, 8, 8] and report["targets"] == [0.5, 0.25, 0.125]
    for kept, target in zip(report["kept"], report["targets"], strict=True):
        assert abs(kept - target) < 0.15
    assert "pruned by trained predictors" in printed
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    files = {"checkpoint.pt", "dense.pt", "dynamicvit.pt", "log.jsonl", "report.json", "training.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == files


def test_log_has_a_line_for_each_step_with_parts_and_shares(whole):
    rows = log(whole)
    assert [(r["phase"], r["epoch"], r["step"]) for r in rows] == [
        (phase, epoch, step)
        for phase, epoch in (("dense", 0), ("predictors", 0), ("predictors", 1))
        for step in range(11)
    ]
    assert {"loss", "classification", "ratio", "distillation", "token"} <= set(rows[-1]) and len(rows[-1]["kept"]) == 3
    assert [r["lr"][1] == 0 for r in rows[11:]] == [True] * 11 + [False] * 11  # the backbone is frozen at first


def test_backbone_stays_as_it_is_while_frozen(tmp_path, whole):
    run(tmp_path / "out", *SHORT, "--epochs", "1", "1", "--dense", str(whole / "dense.pt"))
    dense, trained = weights(tmp_path / "out", "dense"), weights(tmp_path / "out")
    assert all(torch.equal(trained[name], value) for name, value in dense.items())
    assert {name.split(".")[0] for name in set(trained) - set(dense)} == {"score_predictor"}


def test_a_training_interrupted_twice_ends_bit_for_bit_as_without_interruption(tmp_path, whole):
    out = tmp_path / "out"
    printed = run(out, *SHORT, "--stop-after", "1")
    assert "To go on: --resume" in printed and not (out / "dynamicvit.pt").exists()
    run(out, "--resume", str(out / "checkpoint.pt"), "--stop-after", "1")
    run(out, "--resume", str(out / "checkpoint.pt"), "--rounds", "1")
    again, straight = (torch.load(o / "checkpoint.pt", weights_only=True) for o in (out, whole))
    assert log(out) == log(whole) == straight["rows"]
    for name in ("model", "dense"):
        assert list(again[name]) == list(straight[name])
        assert all(torch.equal(again[name][k], v) for k, v in straight[name].items())
    for name in ("generator", "random"):
        assert torch.equal(again[name], straight[name])
    assert again["schedule"] == straight["schedule"] and again["epoch"] == straight["epoch"] == 2
    for mine, theirs in zip(again["optimizer"]["state"].values(), straight["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(mine[k], v) for k, v in theirs.items())


def test_two_processes_train_as_one_up_to_rounding(tmp_path, whole):
    run(tmp_path / "out", *SHORT, processes=2)
    rows, expected = log(tmp_path / "out"), log(whole)
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert row["kept"] == pytest.approx(other["kept"], abs=2e-3)  # few decisions lie on the edge
    for name, value in weights(whole, "dense").items():
        assert_close(weights(tmp_path / "out", "dense")[name], value, rtol=1e-3, atol=1e-4)
    for name, value in weights(whole).items():
        assert_close(weights(tmp_path / "out")[name], value, rtol=1e-3, atol=1e-3)


def test_a_batch_that_processes_cannot_share_evenly_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"Expected a batch that 2 processes can share evenly \(got 31\)"):
        run(tmp_path / "out", "--batch", "31", processes=2)


def test_checkpointed_blocks_train_to_the_same_weights(tmp_path, whole):
    run(tmp_path / "out", *SHORT, "--checkpoint-blocks")
    for name, value in weights(whole).items():
        assert_close(weights(tmp_path / "out")[name], value, rtol=1e-3, atol=1e-4)


def test_mixed_precision_trains_about_as_single_does(tmp_path, whole):
    run(tmp_path / "out", *SHORT, "--amp")
    rows, expected = log(tmp_path / "out"), log(whole)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "out").values())
    assert rows[10]["loss"] == pytest.approx(expected[10]["loss"], rel=0.1)
    assert rows[10]["loss"] != expected[10]["loss"]
