"""Maps of images with different numbers of clusters that do not say how many."""

import pytest
import torch

import tokengraph as tg
from tokengraph.maps.counts import with_counts

VALID = torch.arange(64) < torch.tensor([[64], [40]])


def naflex_map(**options):
    """Pairs of neighbours of two images with 64 and 40 patches."""
    cluster = torch.arange(104) // 2
    return tg.Assignment(cluster, 52, ptr=torch.tensor([0, 64, 104]), **options)


def test_with_counts_reads_cluster_ptr():
    made = with_counts(naflex_map(cluster_ptr=torch.tensor([0, 32, 52])), 2, VALID)
    assert made.counts == (32, 20)


def test_with_counts_reads_the_map_itself():
    assert with_counts(naflex_map(), 2, VALID).counts == (32, 20)
    soft = tg.SoftAssignment.from_hard(naflex_map())
    assert with_counts(soft, 2, VALID).counts == (32, 20)


def test_with_counts_leaves_equal_images_alone():
    equal = tg.Assignment.from_dense(torch.arange(8).expand(2, -1) // 2, 4)
    assert with_counts(equal, 2) is equal


def test_with_counts_refuses_a_cluster_ptr_that_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected cluster_ptr to rise from 0 to K=52 .*got \[0, 52\]"):
        with_counts(naflex_map(cluster_ptr=torch.tensor([0, 52])), 2, VALID)


def test_with_counts_refuses_an_empty_cluster_without_counts():
    empty = tg.Assignment(torch.zeros(104, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="Expected a map that says how many clusters each image has"):
        with_counts(empty, 2, VALID)


class Halves(tg.Select):
    """Pairs neighbours and gives cluster_ptr, without counts."""

    def __call__(self, tokens, budget):
        mask = torch.ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask
        counts = mask.sum(dim=1).tolist()
        made = [(n + 1) // 2 for n in counts]
        ends = torch.tensor([0, *made]).cumsum(0)
        rows = [torch.arange(n) // 2 + start for n, start in zip(counts, ends.tolist(), strict=False)]
        return tg.Assignment(torch.cat(rows), sum(made), cluster_ptr=ends)


def test_attach_keeps_images_apart_that_differ_in_shape():
    from naflex_cases import SHAPES, batch, make

    model = make()
    with tg.attach(model, Halves(), {1: 0.5}) as handle, torch.no_grad():
        model(**batch())
        counts = [handle.trace.counts_per_image(layer) for layer in (0, 1)]
    assert counts[0] == [h * w for h, w in SHAPES]
    assert counts[1] == [(n + 1) // 2 for n in counts[0]]
