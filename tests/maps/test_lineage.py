"""Where tokens come from: one map after another, and the way back."""

import pytest
import torch

import tokengraph as tg
from tokengraph.flat.layout import Layout
from tokengraph.maps.lineage import Lineage


def pairs_of_four():
    """One image of four patches; tokens 0, 1 and then 2, 3 merge."""
    start = Layout(1, 4)
    return Lineage(start, start).step(tg.Assignment.from_dense(torch.tensor([[0, 0, 1, 1]]), 2), Layout(1, 2))


def rows(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_a_new_lineage_is_not_coarse_and_has_no_source():
    lineage = Lineage(Layout(1, 4), Layout(1, 4))
    assert not lineage.coarse and not lineage.merged and lineage.source is None
    assert lineage.sizes(None).tolist() == [[1.0] * 4]


def test_step_composes_hard_maps():
    lineage = pairs_of_four().step(tg.Assignment.from_dense(torch.tensor([[1, 0]]), 2), Layout(1, 2))
    assert len(lineage.maps) == 1 and lineage.source.cluster.tolist() == [1, 1, 0, 0]


def test_step_keeps_a_map_that_has_something_to_give_back():
    first = pairs_of_four()
    lineage = first.step(tg.Assignment.from_dense(torch.tensor([[0, -1]]), 1, drops=True), Layout(1, 1), rows(0, 7)[0])
    assert len(lineage.maps) == 2 and not lineage.merged
    assert lineage.lift(rows(5)).flatten().tolist() == [5, 5, 0, 0]
    assert lineage.lift(rows(5), replenish=True).flatten().tolist() == [5, 5, 7, 7]


def test_lift_fills_what_was_dropped():
    start = Layout(1, 3)
    lineage = Lineage(start, start).step(
        tg.Assignment.from_dense(torch.tensor([[0, -1, 1]]), 2, drops=True), Layout(1, 2)
    )
    assert lineage.lift(rows(1, 2), rows(9, 9, 9)[0]).flatten().tolist() == [1, 9, 2]


def test_lift_leaves_zeros_at_padding_of_the_input():
    start = Layout.of(2, 3, (2, 1), torch.device("cpu"))
    lineage = Lineage(start, start).step(tg.Assignment(torch.tensor([0, 0, 1]), 2), Layout(2, 1))
    assert lineage.lift(torch.tensor([[[1.0]], [[2.0]]])).flatten().tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("soft", [False, True])
def test_averaged_is_the_mean_over_the_patches_in_each_token(soft):
    lineage = pairs_of_four()
    if soft:
        lineage.maps = (tg.SoftAssignment.from_hard(lineage.maps[0]),)
    assert lineage.averaged(rows(1, 3, 5, 9)[0]).flatten().tolist() == [2, 7]
    assert lineage.sizes(None).tolist() == [[2.0, 2.0]]


def test_ancestor_follows_centers_as_long_as_every_map_has_them():
    start = Layout(1, 4)
    pick = tg.Assignment.from_dense(torch.tensor([[-1, 0, -1, 1]]), 2, drops=True, centers=torch.tensor([[1, 3]]))
    lineage = Lineage(start, start).step(pick, Layout(1, 2))
    assert lineage.ancestor.tolist() == [[1, 3]]
    last = tg.Assignment.from_dense(torch.tensor([[-1, 0]]), 1, drops=True, centers=torch.tensor([[1]]))
    assert lineage.step(last, Layout(1, 1)).ancestor.tolist() == [[3]]
    merged = pairs_of_four()
    assert merged.ancestor is None and merged.step(last, Layout(1, 1)).ancestor is None


def test_at_start_forgets_the_maps():
    start = pairs_of_four().at_start()
    assert not start.coarse and start.now is start.start and start.now.width == 4
