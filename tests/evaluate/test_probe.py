"""Probes: deterministic, by both protocols."""

import numpy as np
import pytest
import torch

from tokengraph.evaluate.probe import Protocol, fit_linear, folds_of, probe


def clouds(count=60, classes=3, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return (np.eye(classes)[labels] + spread * rng.standard_normal((count, classes))).astype(np.float32), labels


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_probe_separates_clouds_and_repeats_itself(kind):
    train, labels = clouds()
    test, truth = clouds(seed=1)
    one, two = (probe(kind, train, labels, test, l2=0.01, neighbors=5, classes=3) for _ in range(2))
    assert (one == two).all() and (one[:, 0] == truth).mean() > 0.85 and one.shape == (60, 3)


def test_fit_linear_reaches_the_minimum():
    train, labels = clouds()
    x, y = torch.from_numpy(train).double(), torch.from_numpy(labels)
    weight, bias = (v.requires_grad_() for v in fit_linear(x, y, 3, 0.1))
    loss = torch.nn.functional.cross_entropy(x @ weight + bias, y) + 0.05 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-5 and bias.grad.abs().max() < 1e-5


def test_probe_takes_constant_features_and_classes_without_training_images():
    train, labels = clouds()
    train[:, 1] = 5.0
    found = probe("linear", train, labels, train, l2=0.01, neighbors=5, classes=7)
    assert found.shape == (60, 5) and found[:, 0].max() < 3
    with pytest.raises(ValueError, match="Expected probe to be one of linear, knn .got 'svm'"):
        probe("svm", train, labels, train, l2=0.01, neighbors=5, classes=3)


def test_folds_of_spread_classes_evenly():
    labels = np.array([0] * 25 + [1] * 10)
    fold = folds_of(labels, 5, 0)
    assert all((fold[labels == 0] == k).sum() == 5 and (fold[labels == 1] == k).sum() == 2 for k in range(5))
    assert (fold == folds_of(labels, 5, 0)).all()
    with pytest.raises(ValueError, match="Expected at least 5 images for 5 folds .got 3"):
        folds_of(labels[:3], 5, 0)


def test_protocol_keeps_the_dense_probe_or_fits_again():
    dense, labels = clouds()
    test, truth = clouds(seed=1)
    moved_train, moved = -dense, -test  # features that moved, and can be told apart as well as before
    both = Protocol("linear", dense, labels, None, l2=0.01, neighbors=5, classes=3)
    assert (both.answers(test)[:, 0] == truth).mean() > 0.85
    assert (both.answers(moved)[:, 0] == truth).mean() < 0.2
    assert (both.answers(moved, moved_train)[:, 0] == truth).mean() > 0.85


def test_protocol_predicts_no_image_by_a_probe_that_saw_it():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((40, 64)).astype(np.float32), rng.integers(0, 2, 40)  # nothing to learn
    folds = Protocol("linear", features, labels, folds_of(labels, 5, 0), l2=1e-3, neighbors=5, classes=2)
    seen = Protocol("linear", features, labels, None, l2=1e-3, neighbors=5, classes=2)
    assert (seen.answers(features)[:, 0] == labels).mean() == 1.0
    assert (folds.answers(features)[:, 0] == labels).mean() < 0.8
