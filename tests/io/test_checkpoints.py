"""Checkpoints by name, and the report of what did not match."""

import pytest
import torch
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.io.checkpoints import load_checkpoint
from tokengraph.testing import tiny_vit

library("timm")


def _trained():
    model = tiny_vit(seed=5, num_classes=7)
    tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    return model


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (dict, ""),
        (lambda s: {"model": s, "epoch": 3}, " from 'model'"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ", prefix 'module.' taken off"),
    ],
)
def test_published_names_load_into_an_attached_model(wrap, said, tmp_path):
    trained = _trained()
    torch.save(wrap(trained.state_dict()), tmp_path / "checkpoint.pth")
    model = tiny_vit(num_classes=7)
    tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    report = load_checkpoint(model, tmp_path / "checkpoint.pth")
    assert report.complete and str(report) == f"loaded {len(trained.state_dict())} tensors{said}"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained(images))


def test_what_does_not_match_keeps_its_values_and_is_reported():
    model = tiny_vit(num_classes=3)
    tg.attach(model, tg.DynamicViT(0.5, layers=[1]))
    head = model.head.weight.clone()
    report = load_checkpoint(model, {"model": _trained().state_dict() | {"epoch": torch.ones(1)}})
    assert torch.equal(model.head.weight, head)
    assert [name for name, *_ in report.mismatched] == ["head.weight", "head.bias"]
    assert {k.split(".")[1] for k in report.unexpected if "." in k} == {"1"} and "epoch" in report.unexpected
    assert not report.missing and not report.complete
    assert "head.weight is [3, 32], checkpoint has [7, 32]" in str(report)


def test_a_model_without_predictors_reports_them_as_unknown():
    report = load_checkpoint(tiny_vit(num_classes=7), _trained().state_dict())
    assert all(k.startswith("score_predictor") for k in report.unexpected) and len(report.unexpected) == 20


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"optimizer": {}}, r"a state dict, or a dict with one of model, .* \(got \['optimizer'\]\)"),
        ({"other": torch.ones(1)}, "a checkpoint with names of Linear"),
    ],
)
def test_what_is_no_checkpoint_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(nn.Linear(2, 2), source)
