"""ToFu by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import tofu
from tokengraph.testing import tiny_vit


def test_tofu_chooses_as_tome_and_names_the_receiving_token():
    x = torch.randn(3, 21, 8)
    for prefix in (0, 1, 2, 5):
        a = tofu(x, 14, num_prefix=prefix)
        assert torch.equal(a.cluster, tg.tome(x, 14, num_prefix=prefix).cluster)
        place = a.centers % 21 + prefix
        merged = torch.bincount(a.cluster) > 1
        assert (place[merged] % 2 == 1).all()  # in B
        assert torch.equal(a.cluster[a.centers], torch.arange(a.num_clusters))


def test_pruning_leaves_rows_bit_for_bit():
    x = torch.randn(2, 20, 8)
    a = tofu(x, 12)
    rows, _ = a.reduce(x.flatten(0, 1), reduce="center")
    assert torch.equal(rows, x.flatten(0, 1)[a.centers])


def test_mlerp_has_the_length_of_the_longest_member():
    x = torch.randn(2, 20, 8)
    a = tofu(x, 12)
    rows, _ = a.reduce(x.flatten(0, 1), reduce="mlerp")
    length = x.flatten(0, 1).norm(dim=1)
    longest = torch.stack([length[a.cluster == k].max() for k in range(a.num_clusters)])
    torch.testing.assert_close(rows.norm(dim=1), longest)


def test_opposite_rows_give_zero_and_finite_gradients():
    x = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]], requires_grad=True)
    rows, _ = tofu(torch.ones(1, 2, 3), 1).reduce(x.flatten(0, 1), reduce="mlerp")
    rows.sum().backward()
    assert rows.tolist() == [[0.0, 0.0]] and x.grad.isfinite().all()


def test_released_reduction_of_a_zero_center_is_finite():
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    a = tofu(torch.ones(1, 2, 3), 1)
    assert a.centers.tolist() == [1]
    assert a.reduce(x, reduce="released-mlerp")[0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("reduce", ["center", "mean", "mlerp", "released-mlerp"])
def test_tokens_that_stay_alone_stay_as_they_are(reduce):
    x = torch.randn(2, 20, 8)
    a = tofu(x, 15)
    rows, _ = a.reduce(x.flatten(0, 1), reduce=reduce)
    alone = torch.bincount(a.cluster)[a.cluster] == 1
    torch.testing.assert_close(a.lift(rows)[alone], x.flatten(0, 1)[alone])


def test_with_a_mask_equals_each_image_alone():
    x, counts, keep = torch.randn(4, 20, 8), [20, 13, 6, 1], [15, 7, 6, 1]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    whole = tofu(x, keep, mask=mask, num_prefix=1)
    for b, (n, k) in enumerate(zip(counts, keep, strict=True)):
        alone = tofu(x[b : b + 1, :n], k, num_prefix=1)
        first = whole.cluster_ptr[b]
        assert torch.equal(whole.cluster[whole.ptr[b] : whole.ptr[b + 1]] - first, alone.cluster)
        assert torch.equal(whole.centers[first : whole.cluster_ptr[b + 1]] - whole.ptr[b], alone.centers)


def test_blocks_up_to_the_middle_prune():
    bound, _ = tg.ToFu().bind(64, 12, 8)
    assert [bound.reduction_at(i) for i in (0, 6, 7, 11)] == ["center", "center", "mlerp", "mlerp"]
    assert tg.ToFu().reduction_at(-1) == "mlerp"
    assert tg.ToFu(until=0, reduce="released").reduction_at(1) == "released-mlerp"
    assert tg.ToFu.published().bind(64, 12, 8)[0].reduction_at(7) == "released-mlerp"
    assert tg.ToFu(reduce="prune").reduction_at(11) == "center"


def test_published_schedule_counts_the_class_token():
    counts = tg.schedule.tokens_per_layer(tg.ToFu.published_schedule(0.9), 3, 196)
    assert counts == [196, 177, 160, 144]  # of 197, 178, 161: 19, 17, 16


def test_pruned_patches_have_rows_when_lifted():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), tg.attach(model, tg.ToFu(), 4) as handle:
        model(images)
        lifted = handle.trace.lift(handle.trace.output)
        assert handle.trace.counts[-1] < 16 and lifted.shape[1] == 16 and (lifted.norm(dim=2) > 0).all()


def test_other_reductions_are_refused():
    with pytest.raises(ValueError, match="Expected reduce to be one of mlerp, mean, released, prune .got 'max'"):
        tg.ToFu(reduce="max")
    with pytest.raises(ValueError, match="Expected a map with centers to reduce by 'released-mlerp'"):
        tg.tome(torch.randn(1, 4, 2), 3).reduce(torch.randn(4, 2), reduce="released-mlerp")
