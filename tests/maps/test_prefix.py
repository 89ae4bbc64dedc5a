import pytest
import torch
from torch.testing import assert_close

from tokengraph import Assignment, SoftAssignment
from tokengraph.maps.prefix import with_prefix

PATCHES = Assignment.from_dense(torch.tensor([[0, 1, 0], [1, 1, 0]]), 2)
DROPPING = Assignment.from_dense(torch.tensor([[0, -1, 0], [-1, 1, 0]]), 2, drops=True)


def soft(up: bool) -> SoftAssignment:
    """Two images of three tokens and two clusters; a weight of 0 lifts nothing, the own way back does."""
    ids, weight = torch.arange(6), torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0, 1.0])
    back = (ids, PATCHES.cluster, torch.full((6,), 3.0)) if up else None
    return SoftAssignment(ids, PATCHES.cluster, weight, 6, 4, False, back)


def test_with_prefix_puts_own_clusters_in_front_of_each_image():
    assert with_prefix(PATCHES, 2, 1).cluster.tolist() == [0, 1, 2, 1, 3, 5, 5, 4]


def test_with_prefix_moves_the_bin_behind_all_clusters():
    a = with_prefix(DROPPING, 2, 2)
    assert a.cluster.tolist() == [0, 1, 2, 8, 2, 4, 5, 8, 7, 6]
    assert (a.num_clusters, a.drops) == (8, True)


@pytest.mark.parametrize("assignment", [PATCHES, DROPPING, soft(False), soft(True)], ids=["hard", "drop", "soft", "up"])
@pytest.mark.parametrize("num_prefix", [1, 3])
def test_with_prefix_reduces_and_lifts_whole_sequences(assignment, num_prefix):
    sequence, size = torch.randn(2, num_prefix + 3, 4), torch.rand(2, num_prefix + 3) + 0.5
    whole = with_prefix(assignment, 2, num_prefix)
    pooled, new_size = whole.reduce(sequence.flatten(0, 1), size.flatten())
    patches, patch_size = assignment.reduce(sequence[:, num_prefix:].flatten(0, 1), size[:, num_prefix:].flatten())
    pooled, new_size = pooled.view(2, -1, 4), new_size.view(2, -1)
    assert torch.equal(pooled[:, :num_prefix], sequence[:, :num_prefix])
    assert torch.equal(new_size[:, :num_prefix], size[:, :num_prefix])
    assert_close(pooled[:, num_prefix:].flatten(0, 1), patches)
    assert_close(new_size[:, num_prefix:].flatten(), patch_size)
    lifted = whole.lift(pooled.flatten(0, 1)).view(2, -1, 4)
    assert torch.equal(lifted[:, :num_prefix], sequence[:, :num_prefix])
    assert_close(lifted[:, num_prefix:].flatten(0, 1), assignment.lift(patches))


def test_with_prefix_of_no_prefix_is_the_map_itself():
    assert with_prefix(PATCHES, 2, 0) is PATCHES
