"""The record of the last run's decisions."""

import copy

import torch

from tokengraph.nn.slow_fast import split_by_count
from tokengraph.spatial import SpatialRecord


def _record():
    record = SpatialRecord()
    record.begin((1, 2))
    score = torch.tensor([[[0.0, -9.0], [-1.0, -0.5]], [[-2.0, -0.1], [-1.0, -0.5]]])
    record.add(score, None)
    record.add(score, split_by_count(score[..., 0], 1))
    record.add(score, torch.tensor([[0.0, 1.0], [1.0, 1.0]], requires_grad=True))
    return record


def test_every_kind_of_decision_becomes_a_mask():
    record = _record()
    assert [d.tolist() for d in record.decisions] == [
        [[1.0, 1.0], [1.0, 1.0]],
        [[1.0, 0.0], [0.0, 1.0]],
        [[0.0, 1.0], [1.0, 1.0]],
    ]
    assert record.counts == [[2, 2], [1, 1], [1, 2]]
    assert record.masks[1].tolist() == [[[True, False]], [[False, True]]]
    assert record.decisions[2].requires_grad and not record.masks[2].requires_grad


def test_a_new_run_overwrites_the_one_before():
    record = _record()
    before = record.stages
    record.begin((2, 2))
    assert record.decisions == [] and len(before) == 3


def test_copies_start_empty():
    assert copy.deepcopy(_record()).decisions == [] and copy.deepcopy(_record()).grid is None
