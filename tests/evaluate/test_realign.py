"""A linear map of features: exact where one exists, chosen by leaving images out, folded into a head."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.evaluate.probe import Protocol


def features(count=60, channels=6, seed=0):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Cosine(nn.Linear):
    """A head that is not linear."""

    def forward(self, x):
        return super().forward(nn.functional.normalize(x, dim=-1))


def moved(dense, noise=0.0, seed=3):
    """The features after a fixed invertible map and a shift, with noise."""
    draw = torch.Generator().manual_seed(1)
    turn = torch.eye(dense.size(1), dtype=dense.dtype)
    turn = turn + 0.3 * torch.randn(turn.shape, generator=draw, dtype=dense.dtype)
    spread = torch.randn(dense.shape, generator=torch.Generator().manual_seed(seed), dtype=dense.dtype)
    return dense @ turn + 2.0 + noise * spread


def test_realign_finds_the_map_where_there_is_one():
    dense, fresh = features(), features(seed=9)
    found = tg.realign(moved(dense), dense)
    assert found.left < 1e-3
    assert_close(found(moved(fresh)), fresh, rtol=0, atol=0.02)
    assert_close(found(moved(fresh).float()), fresh.float(), rtol=0, atol=0.02)


def test_what_is_left_holds_for_new_images():
    dense, fresh = features(200, 20), features(2000, 20, seed=9)
    coarse, other = moved(dense, 0.5), moved(fresh, 0.5, seed=4)
    found = tg.realign(coarse, dense)
    truth = (found(other) - fresh).square().sum() / (other - fresh).square().sum()
    assert 0.02 < found.left < 0.5 and abs(found.left / float(truth) - 1) < 0.15


def test_leaving_one_out_equals_fitting_without_it():
    dense = features(12, 4)
    coarse = moved(dense, 0.5)
    found = tg.realign(coarse, dense)
    error, unit = 0.0, float((coarse - coarse.mean(0)).square().sum()) / 12
    for i in range(12):
        kept = torch.arange(12) != i
        x, y = coarse[kept], dense[kept]
        z = x - x.mean(0)
        wanted = (y - y.mean(0)) - z
        ridge = z.T @ z + found.strength * unit * torch.eye(4, dtype=z.dtype)
        weight = torch.eye(4, dtype=z.dtype) + torch.linalg.solve(ridge, z.T @ wanted)
        error += float(((coarse[i] - x.mean(0)) @ weight + y.mean(0) - dense[i]).square().sum())
    assert abs(error / float((coarse - dense).square().sum()) / found.left - 1) < 1e-6


def test_a_shift_is_found_and_large_numbers_are_taken():
    draw = torch.Generator().manual_seed(7)
    coarse = features(40, 30)
    dense = coarse + 3.0 + 0.1 * torch.randn(coarse.shape, generator=draw, dtype=coarse.dtype)
    for scale in (1.0, 1e160, 1e-170):
        found = tg.realign(coarse * scale, dense * scale)
        assert_close(found(coarse * scale).mean(0) / scale, dense.mean(0))
        assert found.left < 0.01


def test_a_map_that_would_do_harm_is_none():
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(3, 64, generator=draw)
    found = tg.realign(dense + 0.3 * torch.randn(3, 64, generator=draw), dense)
    assert found.left == 1 and found.strength == torch.inf
    assert_close(found(dense), dense, rtol=0, atol=0)


def test_equal_features_and_constant_ones_give_a_map_without_nan():
    dense = features(5)
    same = tg.realign(dense, dense)
    assert_close(same(dense), dense)
    flat = tg.realign(torch.full((5, 6), 9.0), dense.float())
    assert_close(flat(torch.full((5, 6), 9.0)), dense.mean(0).expand(5, 6).float())
    assert flat.strength == torch.inf and flat.left < 0.1


def test_a_head_is_folded_with_the_map():
    dense = features().float()
    found, head = tg.realign(moved(dense), dense), nn.Linear(6, 3)
    fresh = moved(features(seed=5).float())
    for given in (head, nn.Linear(6, 3, bias=False)):
        assert_close(found.fold(given)(fresh), given(found(fresh)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Expected a head that takes 6 features .got 7"):
        found.fold(nn.Linear(7, 3))
    with pytest.raises(TypeError, match=r"Expected a head of kind nn.Linear .got ReLU"):
        found.fold(nn.ReLU())
    with pytest.raises(TypeError, match="got Cosine.. Give its linear layer"):
        found.fold(Cosine(6, 3))
    head.weight.requires_grad_(False)
    before = torch.get_rng_state()
    assert not found.fold(head).weight.requires_grad and torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"Expected floats \[..., 6\] .got torch.int64"):
        found(torch.ones(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Expected floats \[..., 6\]"):
        found(torch.ones(2, 7))


def test_wrong_features_are_named():
    dense = features()
    with pytest.raises(ValueError, match="Expected features of the same images and width"):
        tg.realign(dense[:5], dense)
    with pytest.raises(ValueError, match="Expected at least 3 images .got 2"):
        tg.realign(dense[:2], dense[:2])
    with pytest.raises(ValueError, match="NaN or infinity in dense"):
        tg.realign(dense, dense / 0)
    with pytest.raises(ValueError, match=r"Expected coarse of shape \[images, channels\]"):
        tg.realign(dense[None], dense)
    with pytest.raises(TypeError, match="Expected dense as a tensor of floats"):
        tg.realign(dense, dense.long())


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_of_dense_features_serves_mapped_ones(kind):
    labels = np.arange(90) % 3
    dense = torch.eye(3, dtype=torch.float64)[labels] + 0.2 * features(90, 3)
    coarse = 4 - dense[:, [1, 2, 0]]  # far from dense, and as far apart as before
    fold = np.arange(90) // 3 % 5
    how = {"l2": 0.01, "neighbors": 5, "classes": 3}
    folds = Protocol(kind, dense.numpy(), labels, fold, **how)
    test = coarse.numpy()
    assert (folds.answers(test)[:, 0] == labels).mean() < 0.7
    assert (folds.answers(folds.mapped(test))[:, 0] == labels).mean() > 0.9
    halves = Protocol(kind, dense[:45].numpy(), labels[:45], None, **how)
    mapped = halves.mapped(test[45:], test[:45])
    assert (halves.answers(mapped)[:, 0] == labels[45:]).mean() > 0.9


def test_few_images_are_not_mapped():
    labels = np.arange(6) % 2
    assert Protocol("knn", np.eye(6), labels, np.arange(6) % 2, l2=0.1, neighbors=1, classes=2).can_map
    assert not Protocol("knn", np.eye(4), labels[:4], np.arange(4) % 2, l2=0.1, neighbors=1, classes=2).can_map
    assert not Protocol("knn", np.eye(2), labels[:2], None, l2=0.1, neighbors=1, classes=2).can_map


def test_the_map_is_fitted_on_at_most_so_many_images():
    labels, dense = np.arange(90) % 3, features(90, 3)
    coarse = moved(dense, 0.5).numpy()
    given = {"l2": 0.01, "neighbors": 5, "classes": 3}
    whole, few = (Protocol("knn", dense.numpy(), labels, None, map_images=n, **given) for n in (90, 4))
    expected = tg.realign(torch.from_numpy(coarse[[0, 30, 59, 89]]), dense[[0, 30, 59, 89]])
    assert_close(torch.from_numpy(few.mapped(coarse, coarse)), expected(torch.from_numpy(coarse)))
    error = {p: np.square(p.mapped(coarse, coarse) - dense.numpy()).mean() for p in (whole, few)}
    assert error[whole] < error[few]
