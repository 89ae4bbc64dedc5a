"""The example that trains gates: shares move to their targets, and a run goes on exactly where it stopped."""

import json

import pytest
import torch
from fashion_noise import run_example, write_noise
from torch.testing import assert_close

SHORT = ["--images", "64", "--batch", "16", "--epochs", "0", "2", "--test", "32"]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    run_example("train_gates.py", data, out, *SHORT)
    return out


def weights(out):
    return torch.load(out / "svit.pt", weights_only=True)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_report_compares_before_and_after_with_the_shares_of_each_block(whole):
    report = json.loads((whole / "report.json").read_text())
    assert list(report["models"]) == ["dense", "SViT before training", "IdleViT, not trained", "SViT after training"]
    assert list(report["targets"]) == ["2", "3", "4", "5", "6"]
    shares = report["models"]["SViT after training"]["shares"]
    assert len(shares) == 8 and shares[:2] + shares[7:] == [1.0] * 3 and all(0 <= share <= 1 for share in shares)
    assert [len(row["kept"]) for row in log(whole)] == [5] * 8


def test_shares_come_to_their_targets(data, tmp_path):
    more = ["--epochs", "0", "20", "--share-weight", "40", "--lr", "0", "0.003"]
    run_example("train_gates.py", data, tmp_path / "out", *SHORT, *more)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    models, targets = report["models"], report["targets"].values()
    before, after = (
        sum(abs(a - b) for a, b in zip(models[f"SViT {when} training"]["shares"][2:7], targets, strict=True))
        for when in ("before", "after")
    )
    assert after < 0.5 * before


def test_an_interrupted_training_ends_bit_for_bit_as_without_interruption(data, whole, tmp_path):
    out = tmp_path / "out"
    assert "To go on: --resume" in run_example("train_gates.py", data, out, *SHORT, "--stop-after", "1")
    run_example("train_gates.py", data, out, "--test", "32", "--resume", str(out / "checkpoint.pt"))
    assert log(out) == log(whole)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(out).items())


def test_two_processes_and_bfloat16_train_about_as_one_does(data, whole, tmp_path):
    run_example("train_gates.py", data, tmp_path / "two", *SHORT, processes=2)
    run_example("train_gates.py", data, tmp_path / "half", *SHORT, "--amp")
    for name in ("two", "half"):
        losses = [row["classification"] for row in log(tmp_path / name)]
        assert losses == pytest.approx([row["classification"] for row in log(whole)], rel=0.1)
    for name, value in weights(whole).items():
        assert_close(weights(tmp_path / "two")[name], value, rtol=0, atol=0.02)
