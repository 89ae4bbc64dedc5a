"""The example that learns rates: it ends at most at the target's cost, and goes on exactly where it stopped."""

import json

import pytest
from fashion_noise import run_example, write_noise

SHORT = ["--images", "64", "--batch", "16", "--epochs", "0", "2", "--test", "32"]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("data"))


def test_rates_cost_at_most_the_target_and_resume_exactly(data, tmp_path):
    run_example("train_rates.py", data, tmp_path / "whole", *SHORT)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert all(report["cost"][name] <= report["cost"]["ToMe"] + 1e-6 for name in ("learned rates", "best of ten lists"))
    assert set(report["gain"]) == {"dense", "ToMe", "constant rates", "best of ten lists"}
    run_example("train_rates.py", data, tmp_path / "parts", *SHORT, "--stop-after", "1")
    checkpoint = str(tmp_path / "parts" / "checkpoint.pt")
    run_example("train_rates.py", data, tmp_path / "parts", "--test", "32", "--resume", checkpoint)
    rates = [json.loads((tmp_path / name / "rates.json").read_text()) for name in ("whole", "parts")]
    assert rates[0] == rates[1] and rates[0]["merge_by"] == "similarity"


def test_rates_of_the_published_form_are_learned_from_labels(data, tmp_path):
    run_example("train_rates.py", data, tmp_path / "out", *SHORT, "--merge-by", "attention", "--from-labels")
    assert "merge_by" not in json.loads((tmp_path / "out" / "rates.json").read_text())
