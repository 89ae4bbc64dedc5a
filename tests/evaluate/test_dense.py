"""Overlaps with masks."""

import numpy as np
import pytest
import torch

from tokengraph.evaluate.dense import boundary, mean_iou, overlaps, predicted


def test_boundary_is_what_lies_near_the_outside_or_the_edge():
    region = torch.zeros(1, 9, 9, dtype=torch.bool)
    region[0, 2:7, 2:7] = True
    ring = region.clone()
    ring[0, 3:6, 3:6] = False
    assert boundary(region, 1).tolist() == ring.tolist()
    whole = torch.ones(1, 5, 5, dtype=torch.bool)
    assert boundary(whole, 1)[0, 1:4, 1:4].any().item() is False and boundary(whole, 1).sum() == 16


def test_overlaps_counts_pixels_of_each_class():
    truth = torch.tensor([[[0, 0, 1, 255], [0, 0, 1, 255]]])
    guess = torch.tensor([[[0, 1, 1, 1], [0, 0, 0, 0]]])
    found = overlaps(guess, truth, 2)
    assert found["inter"].tolist() == [[3, 1]] and found["union"].tolist() == [[5, 3]]  # 255 counts nowhere
    assert mean_iou(found["inter"][0], found["union"][0]) == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert mean_iou(found["inter"][0], found["union"][0], [1]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="Expected masks with classes below 1 .got 1"):
        overlaps(guess, truth, 1)


def test_overlaps_takes_a_mask_that_is_all_ignored():
    found = overlaps(torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 255), 2)
    assert found["union"].sum() == 0 and mean_iou(found["inter"][0], found["union"][0]) == 0


def test_mean_iou_leaves_classes_out_that_nowhere_appear():
    assert mean_iou(np.array([2.0, 0.0]), np.array([4.0, 0.0])) == 0.5


def test_boundary_iou_is_stricter_on_shifted_edges():
    truth, guess = torch.zeros(1, 64, 64).long(), torch.zeros(1, 64, 64).long()
    truth[0, 16:48, 16:48], guess[0, 16:48, 17:49] = 1, 1
    found = overlaps(guess, truth, 2)
    area = mean_iou(found["inter"][0], found["union"][0], [1])
    edge = mean_iou(found["edge_inter"][0], found["edge_union"][0], [1])
    assert area == pytest.approx(31 / 33) and 0.3 < edge < area


def test_predicted_resizes_logits_and_reads_a_single_map_by_its_sign():
    one = torch.full((1, 1, 2, 2), -1.0)
    one[0, 0, :, 1] = 1
    assert predicted(one, 4)[0, 0].tolist() == [0, 0, 1, 1]
    assert predicted(torch.cat([-one, one], dim=1), 2)[0, 0].tolist() == [0, 1]
