"""The training loss of DynamicSpatial."""

import pytest
import torch
import torch.nn.functional as F
from quick import quick_only
from spatial_cases import FAMILIES
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.losses import ratio_loss, teacher_outputs
from tokengraph.spatial import DynamicSpatial, DynamicSpatialLoss, final_map


def test_the_loss_is_the_weighted_sum_of_its_parts():
    logits, theirs, target = torch.randn(2, 5), torch.randn(2, 5), torch.tensor([1, 4])
    decisions = [torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])]
    ours_map, their_map = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    criterion = DynamicSpatialLoss([0.5, 0.25])
    total, parts = criterion(logits, target, decisions, features=ours_map, teacher=(theirs, their_map))
    assert_close(parts["classification"], F.cross_entropy(logits, target))
    assert_close(parts["ratio"], torch.tensor((0.0 + 0.25 + 0.0625 + 0.0625) / 4))
    assert_close(parts["feature"], (ours_map - their_map).square().mean())
    kl = (theirs.softmax(1) * (theirs.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    assert_close(parts["distillation"], kl)
    weighted = parts["classification"] + 10 * parts["ratio"] + 0.5 * kl + 0.5 * parts["feature"]
    assert_close(total, weighted)


def test_without_a_teacher_its_terms_are_left_out():
    total, parts = DynamicSpatialLoss([0.5], weights={"ratio": 0})(torch.zeros(1, 2), torch.tensor([0]), [])
    assert list(parts) == ["classification"]
    assert_close(total, torch.tensor(2.0).log())


def test_soft_targets_are_taken():
    logits, soft = torch.randn(2, 5), torch.rand(2, 5).softmax(1)
    _, parts = DynamicSpatialLoss([0.5])(logits, soft, [torch.ones(2, 4)])
    assert_close(parts["classification"], F.cross_entropy(logits, soft))


@pytest.mark.parametrize(("features", "who"), [(None, "student"), (torch.zeros(1, 2, 3), "teacher")])
def test_a_missing_map_is_named(features, who):
    logits = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"features of the {who}"):
        DynamicSpatialLoss([0.5])(
            logits, torch.tensor([0]), [torch.ones(1, 4)], features=features, teacher=(logits, None)
        )


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="names of weights.*got 'token'"):
        DynamicSpatialLoss([0.5], weights={"token": 1.0})


def test_the_final_map_is_normalised_position_by_position(tiny):
    model = tiny()
    features = model.forward_features(torch.randn(2, 3, 64, 64))
    got = final_map(model, features)
    if "convnext" in tiny.__name__:
        norm = model.head.norm
        rows = features.flatten(2).transpose(1, 2)
        expected = F.layer_norm(rows, (16,), norm.weight, norm.bias, norm.eps)
    else:
        expected = features.flatten(1, 2)
    assert got.shape == expected.shape == (2, *got.shape[1:])
    assert_close(got, expected)


@pytest.mark.parametrize("tiny", quick_only(["convnext"], FAMILIES), indirect=True)
def test_training_meets_the_target_share_and_uses_both_paths(tiny):
    teacher = tiny()
    model = tiny()
    model.load_state_dict(teacher.state_dict())
    handle = tg.attach(model, DynamicSpatial(0.7))
    criterion = DynamicSpatialLoss(handle.select.ratios)
    own = {id(p) for p in handle.select.predictors.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in own], "lr": 3e-3},
        {"params": [p for p in model.parameters() if id(p) not in own], "lr": 1e-4},
    ]
    optimizer, x = torch.optim.AdamW(groups), torch.randn(16, 3, 64, 64)
    theirs = teacher_outputs(teacher, x)[0].detach()
    their_map = final_map(teacher, teacher.forward_features(x)).detach()
    model.train()
    for step in range(60):
        features = model.forward_features(x)
        logits = model.forward_head(features)
        decisions = handle.trace.decisions
        ours = final_map(model, features)
        loss, parts = criterion(logits, theirs.softmax(1), decisions, features=ours, teacher=(theirs, their_map))
        if step == 0:
            start = parts["ratio"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = torch.stack([d.mean() for d in decisions])
    assert_close(shares, torch.tensor(handle.select.ratios), atol=0.08, rtol=0)
    assert ratio_loss(decisions, handle.select.ratios) < start
    used = [p for parts in handle.select.fast for part in parts.values() for p in _parameters(part)]
    used += [p for name, p in model.named_parameters() if ".mlp." in name]
    assert all(p.grad.any() for p in used)


def _parameters(part):
    return [part] if isinstance(part, torch.nn.Parameter) else list(part.parameters())
