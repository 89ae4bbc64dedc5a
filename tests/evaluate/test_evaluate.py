"""tg.evaluate: what a report holds, and what is skipped, refused or tried again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tokengraph as tg
from tokengraph.evaluate import forms
from tokengraph.evaluate.config import DataConfig, config_of_model
from tokengraph.evaluate.images import Arrays, Images
from tokengraph.evaluate.source import Source
from tokengraph.evaluate.transform import to_input
from tokengraph.testing import tiny_vit


def same(a, b):
    """Whether two reports hold the same rows, times left out."""
    return [replace(r, ms={}, speed=None, over_ideal=None, peak=None) for r in a.rows] == [
        replace(r, ms={}, speed=None, over_ideal=None, peak=None) for r in b.rows
    ]


def test_evaluate_puts_the_dense_model_first_and_compares_with_it(pictures, quick):
    report = tg.evaluate(tiny_vit(), ["tome:4", "dense", "tome:4"], pictures, controls=False, options=quick)
    dense, tome = report.rows
    assert (dense.name, dense.kind, dense.cost) == ("dense", "dense", 1.0) and dense.metrics["agreement"] == 1
    assert dense.metrics["class_cosine"] == pytest.approx(1) and dense.metrics["kl"] == 0 and not dense.differences
    assert (tome.name, tome.kind, tome.counts) == ("tome:4", "setting", (16, 12, 8, 4))
    assert 0.5 < tome.cost < 0.7 and 0.9 < tome.metrics["class_cosine"] < 1 and tome.metrics["kl"] > 0
    assert tome.metrics["class_worst"] <= tome.metrics["class_cosine"]
    assert tome.differences["top1"].value == pytest.approx(tome.metrics["top1"] - dense.metrics["top1"])
    assert tome.differences["top1"].p is not None and "+" in report.markdown()


def test_evaluate_gives_the_accuracy_that_a_loop_gives(pictures, quick):
    model = tiny_vit()
    images = torch.stack([to_input(pictures.image(i), config_of_model(model)) for i in range(20)])
    labels = torch.tensor([pictures.label(i) for i in range(20)])
    with torch.no_grad():
        plain = model(images)
        with tg.attach(model, "tome", 4):
            coarse = model(images)
    report = tg.evaluate(model, ["tome:4"], pictures, controls=False, options=quick)
    for row, logits in zip(report.rows, (plain, coarse), strict=True):
        assert row.metrics["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert row.metrics["top5"] == 1
    assert report.row("tome:4").metrics["agreement"] == pytest.approx(
        (plain.argmax(1) == coarse.argmax(1)).float().mean()
    )
    kl = nn.functional.kl_div(coarse.log_softmax(1), plain.log_softmax(1), log_target=True, reduction="batchmean")
    assert report.row("tome:4").metrics["kl"] == pytest.approx(
        kl.item(), rel=1e-3, abs=1e-7
    )  # of logits near 1 in float32


def test_evaluate_adds_controls_at_the_cost_of_each_setting(pictures, quick):
    report = tg.evaluate(tiny_vit(), ["ailurus:{1: 0.5}", "resolution:24"], pictures, options=quick)
    kinds = {row.name: row.kind for row in report.rows}
    assert kinds == {
        "dense": "dense",
        "ailurus:{1: 0.5}": "setting",
        "resolution:24": "setting",  # also its control: named once
        "random:{1: 0.5}": "control",
        "grid-pool:{1: 8}": "control",
    }
    cost = {row.name: row.cost for row in report.rows}
    assert abs(cost["grid-pool:{1: 8}"] - cost["ailurus:{1: 0.5}"]) < 0.1 and 0.5 < cost["resolution:24"] < 0.6
    assert len(tg.evaluate(tiny_vit(), ["ailurus:{1: 0.5}"], pictures, controls=False, options=quick).rows) == 2


def test_evaluate_gives_a_failing_setting_a_row_with_its_reason(pictures, quick):
    wrong = ["tome:{9: 0.5}", "resolution:27", "ailurus:{1: 0.5},lambda=2", "model:no_such_model", "gtp:{1: 0.01}"]
    report = tg.evaluate(tiny_vit(), [*wrong, "tome:4"], pictures, options=quick)
    reasons = {row.name: row.reason for row in report.rows}
    assert "Expected layers in [0, 3] (got 9)" in reasons["tome:{9: 0.5}"]
    assert "multiple of the patch size 8 (got 27)" in reasons["resolution:27"]
    assert "Expected options of AiluRus" in reasons["ailurus:{1: 0.5},lambda=2"]
    assert "Expected a model name that timm knows" in reasons["model:no_such_model"]
    assert reasons["tome:4"] == reasons["dense"] == "" and report.row("tome:4").metrics
    assert "| tome:{9: 0.5} | ValueError: Expected layers" in report.markdown()


def test_evaluate_reports_files_that_cannot_be_read_and_loses_no_other(folder, quick):
    whole = tg.evaluate(tiny_vit(), ["tome:4"], folder, controls=False, options=quick)
    (folder / "class 0" / "empty.png").write_bytes(b"")
    (folder / "class 0" / "text.jpg").write_text("no image at all")
    (folder / "class 1" / "folder.png").mkdir()
    (folder / "class 1" / "link.png").symlink_to(folder / "nowhere.png")
    good = (folder / "class 2" / "02.png").read_bytes()
    (folder / "class 3" / "cut.png").write_bytes(good[: len(good) // 2])
    report = tg.evaluate(tiny_vit(), ["tome:4"], folder, controls=False, options=quick)
    reasons = dict(report.skipped)
    assert set(reasons) == {"class 0/empty.png", "class 0/text.jpg", "class 1/link.png", "class 3/cut.png"}
    assert reasons["class 0/empty.png"] == "empty file" and "No such file" in reasons["class 1/link.png"]
    assert report.facts["images"] == 20
    for key in ("top1", "class_cosine", "patch_cosine"):
        assert report.row("tome:4").metrics[key] == pytest.approx(whole.row("tome:4").metrics[key], abs=1e-9)
    assert "4 images could not be read" in report.markdown()


def test_evaluate_says_so_where_no_image_can_be_read(tmp_path, quick):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Expected images that can be read \(got none of 1; first: .*empty file"):
        tg.evaluate(tiny_vit(), [], tmp_path, options=quick)


def test_evaluate_takes_a_whole_chunk_of_unreadable_files(folder, quick):
    for i in range(9):
        (folder / "class 0" / f"a{i}.png").write_bytes(b"")  # more than one chunk of 8
    report = tg.evaluate(tiny_vit(), ["tome:4"], folder, controls=False, options=quick)
    assert len(report.skipped) == 9 and report.facts["images"] == 20


class Counting(Images):
    """Counts how often an image is read; stops at the eleventh."""

    has_labels = True

    def __init__(self, whole, stop=10**6):
        self.whole, self.stop, self.reads = whole, stop, 0

    def __len__(self):
        return len(self.whole)

    def image(self, index):
        self.reads += 1
        if self.reads > self.stop:
            raise KeyboardInterrupt
        return self.whole.image(index)

    def label(self, index):
        return self.whole.label(index)

    def stamp(self, index):
        return self.whole.stamp(index)


def test_evaluate_goes_on_where_it_was_stopped_with_the_same_figures(pictures, quick, tmp_path):
    whole = tg.evaluate(tiny_vit(), ["tome:4", "topk:{2: 0.5}"], pictures, options=quick)
    with pytest.raises(KeyboardInterrupt):
        tg.evaluate(tiny_vit(), ["tome:4"], Counting(pictures, 17), out=tmp_path, options=quick)
    images = Counting(pictures)
    resumed = tg.evaluate(tiny_vit(), ["tome:4", "topk:{2: 0.5}"], images, out=tmp_path, options=quick)
    assert same(whole, resumed)
    images.reads = 0
    again = tg.evaluate(tiny_vit(), ["tome:4", "topk:{2: 0.5}"], images, out=tmp_path, options=quick)
    assert images.reads == 0 and same(whole, again)


def test_evaluate_tries_failed_settings_again(pictures, quick, tmp_path, monkeypatch):
    def fails(self, tokens, budget):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(tg.ToMe, "__call__", fails)
        report = tg.evaluate(tiny_vit(), ["tome:4"], pictures, out=tmp_path, controls=False, options=quick)
        assert report.row("tome:4").reason == "RuntimeError: out of memory"
    report = tg.evaluate(tiny_vit(), ["tome:4"], pictures, out=tmp_path, controls=False, options=quick)
    assert report.row("tome:4").reason == "" and report.row("tome:4").metrics


@pytest.mark.parametrize("change", ["model", "images", "pixel", "chunk", "size"])
def test_evaluate_refuses_a_folder_of_another_run(pictures, quick, tmp_path, change):
    tg.evaluate(tiny_vit(), [], pictures, out=tmp_path, options=quick)
    model = tiny_vit(seed=1) if change == "model" else tiny_vit()
    if change == "size":
        model = Source("VisionTransformer", lambda size: tiny_vit(), DataConfig(32, crop_pct=0.5))
    images = Arrays(np.zeros((3, 8, 8), np.uint8), [0, 1, 2]) if change == "images" else pictures
    if change == "pixel":
        images = Arrays([pictures.image(i) ^ (i == 3) for i in range(20)], [pictures.label(i) for i in range(20)])
    options = replace(quick, chunk=4) if change == "chunk" else quick
    with pytest.raises(ValueError, match="Expected a folder of the same run to resume"):
        tg.evaluate(model, [], images, out=tmp_path, options=options)


def test_evaluate_runs_no_model_again_for_other_labels(pictures, quick, tmp_path):
    one = tg.evaluate(tiny_vit(), ["tome:4"], pictures, probe="knn", out=tmp_path, controls=False, options=quick)
    other = Arrays([pictures.image(i) for i in range(20)], [0] * 19 + [1], name="one apart")
    reads = Counting(other)
    two = tg.evaluate(tiny_vit(), ["tome:4"], reads, probe="knn", out=tmp_path, controls=False, options=quick)
    assert reads.reads == 0 and two.rows[0].metrics["probe_refit"] != one.rows[0].metrics["probe_refit"]


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_evaluate_probes_by_every_protocol(pictures, quick, probe):
    model, quick = tiny_vit(num_classes=0), replace(quick, neighbors=3)
    report = tg.evaluate(model, ["tome:4", "resolution:24"], pictures, probe=probe, controls=False, options=quick)
    dense = report.rows[0].metrics
    assert dense["probe_as_is"] == dense["probe_refit"] > 0.5 and "top1" not in dense and "agreement" not in dense
    assert {"probe_as_is", "probe_mapped", "probe_refit"} <= set(report.row("resolution:24").metrics)
    assert dense["probe_mapped"] == dense["probe_as_is"]
    assert "probe_mapped" in report.row("resolution:24").differences
    train = Arrays([pictures.image(i) for i in range(10)], [pictures.label(i) for i in range(10)])
    split = tg.evaluate(model, ["tome:4"], pictures, probe=probe, train=train, controls=False, options=quick)
    assert split.rows[0].metrics["probe_as_is"] > 0.5 and "probe_mapped" in split.row("tome:4").metrics
    again = tg.evaluate(model, ["tome:4"], pictures, probe=probe, train=train, controls=False, options=quick)
    assert same(split, again)


def test_evaluate_scores_masks_by_a_head_on_patch_maps(quick):
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 32, 32), dtype=np.uint8)
    masks[:, 8:24, 8:24] = 1
    images = (rng.integers(0, 40, (6, 32, 32, 3)) + 180 * masks[..., None]).astype(np.uint8)
    data = Arrays(images, masks=masks, scored=(1,))

    class Head(nn.Module):
        def forward(self, maps):
            return maps[:, :1] - maps[:, :1].mean(dim=(2, 3), keepdim=True)

    report = tg.evaluate(tiny_vit(), ["tome:4", "resolution:24"], data, decode=Head(), controls=False, options=quick)
    for row in report.rows:
        assert 0 <= row.metrics["biou"] <= 1 and row.metrics["miou"] > 0 and not row.reason
        assert row.intervals["miou"][0] <= row.metrics["miou"] <= row.intervals["miou"][1]
    assert report.row("tome:4").differences["miou"].p is None


def test_evaluate_skips_a_mask_of_another_size(quick):
    masks = [np.zeros((32, 32), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((32, 32, 3), np.uint8)]
    data = Arrays(np.zeros((3, 32, 32, 3), np.uint8), masks=masks)
    report = tg.evaluate(tiny_vit(), [], data, decode=lambda maps: maps[:, :2], options=quick)
    assert [key for key, _ in report.skipped] == [
        "1",
        "2",
    ] and "of the image's size (32, 32) (got (9, 9))" in report.skipped[0][1]


def test_evaluate_says_what_masks_need(pictures, quick):
    data = Arrays(np.zeros((1, 32, 32, 3), np.uint8), masks=np.zeros((1, 32, 32), np.uint8))
    with pytest.raises(ValueError, match="Expected class maps for images with masks .*Give decode="):
        tg.evaluate(tiny_vit(), [], data, options=quick)


def test_evaluate_needs_no_labels(quick):
    data = Arrays(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    report = tg.evaluate(tiny_vit(), ["tome:4"], data, controls=False, options=quick)
    assert set(report.row("tome:4").metrics) == {
        "agreement", "kl", "class_cosine", "class_worst", "patch_cosine", "patch_worst",
    }  # fmt: skip


def test_evaluate_measures_time_and_memory(pictures, quick, tmp_path):
    options = replace(quick, time=True, memory=True, time_rounds=3, time_batch=2)
    report = tg.evaluate(
        tiny_vit(), ["tome:4", "resolution:24"], pictures, out=tmp_path, controls=False, options=options
    )
    dense, tome, smaller = report.rows
    assert set(dense.ms) == set(smaller.ms) == {"plain"} and set(tome.ms) == {"attached", "ideal"}
    assert dense.speed == (1.0, 1.0, 1.0) and tome.over_ideal[0] > 1 and tome.peak > 0 and smaller.peak < dense.peak
    again = tg.evaluate(
        tiny_vit(), ["tome:4", "resolution:24"], pictures, out=tmp_path, controls=False, options=options
    )
    assert again == report  # the same times: they are kept with the predictions
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["rows"][1]["name"] == "tome:4" and data["facts"]["images"] == 20


def test_evaluate_compares_with_another_model(pictures, quick, monkeypatch):
    def other(name, **how):
        return Source(name, lambda size: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), DataConfig(32))

    monkeypatch.setattr(forms, "source_of", other)
    report = tg.evaluate(tiny_vit(), ["model:other"], pictures, options=quick)
    row = report.row("model:other")
    assert row.cost is None and "class_cosine" not in row.metrics and {"top1", "agreement"} <= set(row.metrics)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"settings": ["tomme:4"]}, ValueError, "Did you mean 'tome'"),
        ({"probe": "svm"}, ValueError, "Expected probe as 'linear' or 'knn'"),
        ({"model": 3}, TypeError, "Expected a model as name, nn.Module or Source .got int"),
        ({"model": "no_such_model"}, ValueError, "Expected a model name that timm knows"),
        ({"data": "nowhere"}, ValueError, "Expected a folder of images"),
        ({"data": Arrays([])}, ValueError, "Expected at least one image"),
        ({"data": Arrays(np.zeros((1, 8, 8), np.uint8)), "probe": "knn"}, ValueError, "images with labels for a probe"),
        (
            {"train": Arrays(np.zeros((1, 8, 8), np.uint8), [0])},
            ValueError,
            "Expected train images with labels, beside",
        ),
        ({"data": Arrays(np.zeros((1, 8, 8), np.uint8), [7])}, ValueError, "head's 5 classes .got 8 classes"),
        (
            {"settings": [{"strategy": "tome", "schedule": r, "label": "x"} for r in (1, 2)]},
            ValueError,
            "got 'x' for two",
        ),
        (
            {"data": Arrays(np.zeros((1, 8, 8), np.uint8), [0], classes=["cat", "dog"])},
            ValueError,
            "Expected images of the head's 5 classes .got 2 classes.*--num-classes N.*--probe linear",
        ),
    ],
)
def test_evaluate_refuses_before_it_runs(pictures, quick, arguments, error, message):
    given = {"model": tiny_vit(), "settings": [], "data": pictures, "options": quick, **arguments}
    with pytest.raises(error, match=message):
        tg.evaluate(given.pop("model"), given.pop("settings"), given.pop("data"), **given)


def test_evaluate_leaves_the_model_as_it_was(pictures, quick):
    model = tiny_vit()
    kinds, weights = [type(m) for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    tg.evaluate(model, ["tome:4", "resolution:24", "tome:{9: 0.5}"], pictures, options=quick)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_images_are_read_once_a_chunk_whatever_the_settings(pictures, quick):
    images = Counting(pictures)
    tg.evaluate(tiny_vit(), ["tome:4", "resolution:24"], images, options=quick)
    assert images.reads == 20


def test_a_picture_of_one_pixel_is_an_image(quick, tmp_path):
    Image.new("L", (1, 1), 9).save(tmp_path / "dot.png")
    report = tg.evaluate(tiny_vit(), ["tome:4"], tmp_path, controls=False, options=quick)
    assert not report.skipped and report.rows[1].metrics["agreement"] == 1


def test_evaluate_takes_strategies_that_learn_with_their_weights(pictures, quick, tmp_path):
    trained = tiny_vit(seed=1)
    handle = tg.attach(trained, tg.DynamicViT(), {1: 0.5})
    for parameter in handle.select.modules["score_predictor"].parameters():
        nn.init.normal_(parameter, std=0.5)
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    expected = tg.evaluate(tiny_vit(seed=1), [], pictures, options=quick).rows[0].metrics["top1"]
    settings = ["dynamicvit:{1: 0.5}", f"dynamicvit:{{1: 0.5}},weights={tmp_path / 'trained.pt'}", "tome:4"]
    one, two = (tg.evaluate(tiny_vit(), settings, pictures, controls=False, options=quick) for _ in range(2))
    dense, bare, learned, _ = one.rows
    assert "Expected trained weights for DynamicViT, which learns" in bare.reason and one == two
    assert dense.metrics["top1"] != expected or dense.metrics != learned.metrics  # the dense model stays untouched
    images = torch.stack([to_input(pictures.image(i), config_of_model(trained)) for i in range(20)])
    with torch.no_grad():
        right = trained(images).argmax(1) == torch.tensor([pictures.label(i) for i in range(20)])
    assert learned.metrics["top1"] == pytest.approx(right.float().mean().item())
    again = tg.evaluate(tiny_vit(), [], pictures, options=quick)
    assert again.rows[0] == dense


def test_evaluate_refuses_an_attached_model_as_the_dense_one(pictures, quick):
    model = tiny_vit()
    handle = tg.attach(model, "tome", 4)
    with pytest.raises(ValueError, match=r"got one with a strategy attached.*tg.fidelity\(model, images, handle\)"):
        tg.evaluate(model, ["resolution:24"], pictures, options=quick)
    with handle.paused():
        dense = tg.evaluate(model, [], pictures, options=quick).rows[0]
    assert dense.counts == (16, 16, 16, 16)
    assert handle.trace.counts == [16, 12, 8, 4]


def test_controls_of_strategies_by_threshold_keep_as_many_tokens_as_the_images_did(pictures, quick):
    settings = ["mpm,layers=(1, 2)", "g2tm,tau=0.1,layer=1", "algm:{1: 4},tau=0.1"]
    report = tg.evaluate(tiny_vit(), settings, pictures, options=quick)
    controls = [row for row in report.rows if row.kind == "control" and row.name.startswith("random")]
    for name in settings:
        row = report.row(name)
        assert not row.reason and 1 < row.counts[-1] < 16 and 0 < row.cost < 1
        assert any(all(abs(a - b) <= 0.5 for a, b in zip(c.counts, row.counts, strict=True)) for c in controls), name


def test_controls_of_strategies_ahead_of_blocks_have_their_counts(pictures, quick):
    report = tg.evaluate(tiny_vit(), ["mctf:3,ahead=True"], pictures, options=quick)
    assert report.row("mctf:3,ahead=True").counts == report.row("random:[0, 3, 3]").counts == (16, 16, 13, 10)
