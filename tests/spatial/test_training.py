"""A few epochs of real training on small data."""

import pytest
import torch
import torch.nn.functional as F
from needs import library

import tokengraph as tg
from tokengraph.losses import teacher_outputs
from tokengraph.spatial import DynamicSpatial, DynamicSpatialLoss, final_map

timm = library("timm")


def small_convnext():
    return timm.models.ConvNeXt(
        depths=(1, 1, 4, 1), dims=(16, 32, 48, 64), patch_size=2, num_classes=10, ls_init_value=0.5
    )


def small_swin():
    return timm.models.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=24, depths=(1, 1, 4, 1), num_heads=(1, 2, 3, 6), window_size=4,
        num_classes=10,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_convnext, small_swin])
def test_digits_are_learned_with_the_target_share_slow(make):
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = (torch.from_numpy(a) for a in datasets.load_digits(return_X_y=True))
    x = F.interpolate((x.float().view(-1, 1, 8, 8) / 8 - 1).expand(-1, 3, -1, -1), size=32, mode="nearest")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    model = make().train()
    _epochs(model, x[train], y[train], 4, lambda logits, features, images, target: F.cross_entropy(logits, target))
    dense = _accuracy(model, x[test], y[test])
    teacher = make()
    teacher.load_state_dict(model.state_dict())
    handle = tg.attach(model, DynamicSpatial(0.7))
    criterion = DynamicSpatialLoss(handle.select.ratios)

    def loss(logits, features, images, target):
        ours, (theirs, _) = final_map(model, features), teacher_outputs(teacher, images)
        with torch.no_grad():
            their_map = final_map(teacher, teacher.forward_features(images))
        return criterion(logits, target, handle.trace.decisions, features=ours, teacher=(theirs, their_map))[0]

    _epochs(model, x[train], y[train], 4, loss)
    with torch.no_grad():
        model(x[train][:256])
    shares = [d.mean().item() for d in handle.trace.decisions]
    assert shares == pytest.approx(handle.select.ratios, abs=0.06)
    sparse = _accuracy(model, x[test], y[test])
    assert dense > 0.8 and sparse > dense - 0.03
    # What is slow depends on the image.
    assert all(not (mask == mask[:1]).all() for mask in handle.trace.masks)


def _epochs(model, x, y, epochs, loss):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(50):
            features = model.forward_features(x[batch])
            optimizer.zero_grad()
            loss(model.forward_head(features), features, x[batch], y[batch]).backward()
            optimizer.step()


def _accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        right = (model(x).argmax(dim=1) == y).float().mean().item()
    model.train()
    return right
