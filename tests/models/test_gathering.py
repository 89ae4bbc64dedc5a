"""Gathering attention: windows, hubs, and the same numbers over the edges of a graph."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.models.gathering import TokenGathering, full_attention, gathering_attention, make_windows
from tokengraph.models.gathering_graph import edge_attention, gathering_edges


def qkv(images: int, nodes: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, images, nodes, 2, 4, dtype=dtype)


def over_edges(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    return edge_attention(*x.flatten(1, 2), edges).view_as(x[0])


def some_ids(images: int, positions: int, left: int) -> torch.Tensor:
    return torch.stack([torch.randperm(positions)[:left].sort().values for _ in range(images)])


def test_windows_list_the_cells_of_each_window():
    windows = make_windows((4, 4), (2, 2))
    assert windows.token.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    assert windows.filled is None and windows.slot[0, :8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_windows_at_the_border_are_smaller():
    windows = make_windows((2, 3), (2, 2))
    assert windows.token[0][0].tolist() == [0, 1, 3, 4]
    assert windows.token[0, 1][windows.filled[0, 1]].tolist() == [2, 5]


def test_windows_of_the_tokens_that_are_left_follow_their_grid_ids():
    windows = make_windows((2, 4), (2, 2), torch.tensor([[0, 3, 5, 7], [1, 2, 3, 6]]))
    found = [[row[fill].tolist() for row, fill in zip(*pair, strict=True)]
             for pair in zip(windows.token, windows.filled, strict=True)]  # fmt: skip
    assert found == [[[0, 2], [1, 3]], [[0], [1, 2, 3]]]


@pytest.mark.parametrize("window", [(4, 4), (3, 3), (2, 5), (9, 9)])
@pytest.mark.parametrize("hubs", [0, 3])
@pytest.mark.parametrize("left", [None, 30, 5, 1])
def test_the_dense_form_equals_attention_over_edges(window, hubs, left):
    ids = None if left is None else some_ids(2, 48, left)
    x = qkv(2, (left or 48) + hubs)
    edges = gathering_edges((6, 8), window, hubs, ids=torch.arange(48).expand(2, -1) if ids is None else ids)
    assert_close(gathering_attention(*x, make_windows((6, 8), window, ids)), over_edges(x, edges), atol=1e-12, rtol=0)


def test_one_window_without_hubs_is_full_attention():
    x = qkv(2, 48)
    assert_close(gathering_attention(*x, make_windows((6, 8), (6, 8))), full_attention(*x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("left", [None, 20])
def test_a_key_bias_acts_on_every_window_and_on_hubs(left):
    ids = None if left is None else some_ids(2, 48, left)
    n = left or 48
    x, size = qkv(2, n + 2), torch.randint(1, 5, (2, n + 2)).double()
    windows = make_windows((6, 8), (3, 3), ids)
    own = windows.slot // windows.token.size(2)
    joined = torch.nn.functional.pad(own[:, :, None] == own[:, None], (0, 2, 0, 2), value=True)
    mask = torch.where(joined.expand(2, -1, -1), size.log()[:, None], -torch.inf)[:, None]
    assert_close(gathering_attention(*x, windows, size.log()), full_attention(*x, mask), atol=1e-12, rtol=0)


def test_edge_counts_are_those_of_the_definition(vectors):
    assert gathering_edges((8, 8), None).size(1) == 4096
    arrays = vectors("fast_itpn", "own_token_gathering")
    for name, window, hubs in (("window", 4, 0), ("gather", 4, 4), ("gather_ragged", 3, 2)):
        edges = gathering_edges((8, 8), (window, window), hubs)
        assert edges.size(1) == int(arrays[f"{name}/edges_1"])
        theirs = torch.stack([arrays[f"{name}/edge_src_1"], arrays[f"{name}/edge_dst_1"]]).long()
        assert set(map(tuple, edges.T.tolist())) == set(map(tuple, theirs.T.tolist()))


def test_images_do_not_hear_each_other_over_edges():
    source, target = gathering_edges((2, 2), (2, 2), 1, ids=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert torch.equal(source // 4, target // 4) and source.numel() == 32


def test_windows_without_any_token_give_finite_gradients():
    ids = torch.tensor([[0, 1, 2]])  # most windows of 4 x 4 are empty, and nothing gathers
    x = qkv(1, 3, torch.float32).requires_grad_()
    gathering_attention(*x, make_windows((8, 8), (2, 2), ids)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad[2].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_near_double(dtype):
    x = qkv(2, 22)
    windows = make_windows((5, 8), (3, 3), some_ids(2, 40, 20))
    out = gathering_attention(*x.to(dtype), windows)
    assert out.dtype == dtype
    assert_close(out.double(), gathering_attention(*x, windows), atol=0.05, rtol=0)


def test_gathering_compiles_to_one_graph_with_and_without_ids():
    x, ids = qkv(2, 22, torch.float32), some_ids(2, 40, 20)

    def run(x, ids):
        return gathering_attention(*x, make_windows((5, 8), (3, 3), ids))

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert_close(compiled(x, ids), run(x, ids))
    full = qkv(1, 40, torch.float32)
    assert_close(compiled(full, None), run(full, None))


@pytest.mark.parametrize(("grid", "window"), [(14, 7), (32, 8), (64, 16), (4, 7)])
def test_the_automatic_window_is_a_quarter_of_the_grid_and_at_least_seven(grid, window):
    assert TokenGathering().window_on((grid, grid)) == (window, window)


def test_pooled_hubs_start_from_the_mean_of_overlapping_cells():
    gathering = TokenGathering(hubs=(1, 2))
    x = torch.tensor([[[0.0], [3.0], [6.0]]])
    assert gathering.start(x, (1, 3), torch.tensor([[0.0], [1.0]])).squeeze().tolist() == [1.5, 5.5]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"None or 'auto' \(got 'big'\)"):
        TokenGathering(window="big")
    with pytest.raises(ValueError, match="rows >= 1"):
        TokenGathering(window=0)
    with pytest.raises(ValueError, match="hub_rows >= 1"):
        TokenGathering(hubs=(0, 2))
