"""Plans against fixed settings: the script plans, compares in pairs, resumes, and writes its table."""

import numpy as np
import pytest
from needs import library

library("timm")

from truth import planned  # noqa: E402
from truth.planned import compare, make_plans, paired, write_planned  # noqa: E402
from truth.results import read  # noqa: E402
from truth.tasks import Task, alone  # noqa: E402

import tokengraph as tg  # noqa: E402
from tokengraph.evaluate.config import DataConfig  # noqa: E402
from tokengraph.evaluate.images import Arrays  # noqa: E402
from tokengraph.evaluate.source import Source  # noqa: E402
from tokengraph.testing import tiny_vit  # noqa: E402


def noise(count, seed):
    return Arrays(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), name="noise")


@pytest.fixture
def tiny(monkeypatch):
    def source(_):
        return Source("tiny", lambda size: tiny_vit(img_size=size or 32), DataConfig(32))

    monkeypatch.setattr(planned, "TASKS", {"photographs": Task("photographs", source, alone(lambda _: noise(4, 0)))})
    monkeypatch.setattr(planned, "parts", lambda name, folder, limit: (noise(4, len(name)), noise(5, 2)))


def test_plans_are_made_once_and_compared_in_pairs(tiny, tmp_path):
    files = make_plans("photographs", tmp_path, tmp_path, [0.6])
    assert make_plans(planned.VARIED, tmp_path, tmp_path, [0.6]) != files
    made = files[0].read_text()
    assert tg.Plan.load(files[0]).measured.images == 5
    assert make_plans("photographs", tmp_path, tmp_path, [0.6]) == files and files[0].read_text() == made
    compare("photographs", tmp_path, tmp_path, [0.6], 5)
    lines = read(tmp_path / "planned.jsonl")
    kinds = {line["kind"] for line in lines}
    assert {"plan made on photographs", "published", "smaller image"} <= kinds
    mine = next(line for line in lines if line["kind"] == "plan made on photographs")
    other = next(line for line in lines if line["kind"] == "smaller image")
    gain = sum(mine["metrics"][k] - other["metrics"][k] for k in ("class_cosine", "patch_cosine")) / 2
    assert other["plan_minus_this"]["mean"] == pytest.approx(gain, abs=1e-5)
    assert other["plan_minus_this"]["low"] <= gain <= other["plan_minus_this"]["high"]
    varied = next(line for line in lines if line["kind"] == f"plan made on {planned.VARIED}")
    gain = sum(varied["metrics"][k] - other["metrics"][k] for k in ("class_cosine", "patch_cosine")) / 2
    assert other["varied_minus_this"]["mean"] == pytest.approx(gain, abs=1e-5)
    compare("photographs", tmp_path, tmp_path, [0.6], 5)
    assert read(tmp_path / "planned.jsonl") == lines
    table = write_planned(tmp_path)
    assert "| 0.6 | plan made on photographs | `" in table and "best of" in table


def test_paired_interval_covers_the_mean_and_knows_equal_settings():
    assert paired(np.array([0.2, 0.2]), np.array([0.2, 0.2])) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    found = paired(np.array([0.3, 0.4, 0.5]), np.array([0.1, 0.3, 0.2]))
    assert found["mean"] == pytest.approx(0.2) and 0.1 <= found["low"] < 0.2 < found["high"] <= 0.3
