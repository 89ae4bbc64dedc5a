"""Token migration's pure functions: who leaves, and what they come back with."""

import math

import pytest
import torch
from torch.testing import assert_close

from tokengraph.select.migration.redundancy import (
    Departure,
    Redundant,
    departures,
    redundant_tokens,
    replenish,
    tokens_to_drop,
)


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "removed"),
    [(10, 0.9, 1), (10, 0.7, 3), (64, 0.75, 16), (7, 0.5, 3), (7, 0.2, 4), (1, 0.1, 0), (5, 0, 3), (10, 1, 0),
     (196, 0.7, 58), (10, 1.5, 0), (2, -1.0, 1)],
)  # fmt: skip
def test_tokens_to_drop_follows_the_ratio_up_to_half(num_tokens, ratio, removed):
    assert tokens_to_drop(num_tokens, ratio) == removed


@pytest.mark.parametrize("case", range(7))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_redundant_tokens_gives_the_reference_choice(vectors, case, dtype):
    arrays = vectors("fast_itpn", "own_select_redundant")
    own = {k.removeprefix(f"{case}/"): v for k, v in arrays.items() if k.startswith(f"{case}/")}
    out = redundant_tokens(own["keys"][None].to(dtype), int(own["r"]))
    assert out.keep[0].tolist() == own["keep"].tolist()
    if case == 1 and dtype == torch.float32:  # ties, which rounding orders anew
        assert set(out.dropped[0].tolist()) == set(own["dropped"].tolist())
    else:
        assert out.dropped[0].tolist() == own["dropped"].tolist()
        assert out.twin[0].tolist() == own["twin"].tolist()
    assert_close(out.score[0], own["score"].to(dtype), atol=1e-9 if dtype == torch.float64 else 2e-5, rtol=0)


def test_redundant_tokens_equals_a_search_over_all_pairs():
    keys = torch.randn(3, 11, 2, 5, dtype=torch.float64)
    out = redundant_tokens(keys, 4)
    for image, mean in enumerate(keys.mean(dim=2)):
        cosine = torch.nn.functional.cosine_similarity(mean[:, None], mean[None], dim=-1)
        best = {i: max((float(cosine[i, j]), -j) for j in range(1, 11, 2)) for i in range(0, 11, 2)}
        order = sorted(best, key=lambda i: (-best[i][0], i))[:4]
        assert out.dropped[image].tolist() == order
        assert out.twin[image].tolist() == [-best[i][1] for i in order]
        assert out.keep[image].tolist() == [i for i in range(11) if i not in order]


def test_ties_go_to_the_lower_place_for_leaving_and_for_the_twin():
    out = redundant_tokens(torch.ones(1, 6, 2), 2)
    assert (out.dropped.tolist(), out.twin.tolist(), out.keep.tolist()) == ([[0, 2]], [[1, 1]], [[1, 3, 4, 5]])


def test_a_zero_key_resembles_nothing():
    out = redundant_tokens(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]), 2)
    assert out.dropped.tolist() == [[2, 0]] and out.score[0, 1] == 0.0


def test_a_checkerboard_lets_black_cells_leave():
    x = torch.randn(2, 12, 4)
    out = redundant_tokens(x, 6, grid=(3, 4))
    assert sorted(out.dropped[0].tolist()) == [0, 2, 5, 7, 8, 10]
    assert all((t // 4 + t % 4) % 2 for t in out.twin.flatten().tolist())


def test_redundant_tokens_refuses_what_it_cannot_do():
    x = torch.randn(1, 5, 4)
    with pytest.raises(ValueError, match=r"0 <= removed <= 3 of n=5 \(got 4\)"):
        redundant_tokens(x, 4)
    with pytest.raises(ValueError, match=r"a grid of n=5 tokens \(got 2 x 3\)"):
        redundant_tokens(x, 1, grid=(2, 3))
    with pytest.raises(ValueError, match="Expected finite keys"):
        redundant_tokens(x * math.nan, 1)
    with pytest.raises(TypeError, match="floating-point keys"):
        redundant_tokens(x.long(), 1)


def steps() -> tuple[torch.Tensor, torch.Tensor, tuple[Departure, ...]]:
    """Six tokens: 0 leaves for 3, then 3 leaves for 5. What stays ends with 100 more."""
    first = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]])
    second = first[:, 1:] + 10
    one = Redundant(*(torch.tensor([t]) for t in ([1, 2, 3, 4, 5], [0], [3])), torch.ones(1, 1))
    two = Redundant(*(torch.tensor([t]) for t in ([0, 1, 3, 4], [2], [4])), torch.ones(1, 1))
    taken = (Departure(1, one, torch.arange(6)[None], first), Departure(2, two, torch.arange(1, 6)[None], second))
    ids = torch.tensor([[1, 2, 4, 5]])
    return ids[..., None] + 110.0, ids, taken


@pytest.mark.parametrize(
    ("rule", "zero", "three"),
    [("identity", 0.0, 13.0), ("zero", 0.0, 0.0), ("twin_copy", 115.0, 115.0), ("twin_delta", 110.0, 113.0)],
)
def test_replenish_settles_the_twins_of_later_steps_first(rule, zero, three):
    out = replenish(*steps(), rule)
    assert out.squeeze().tolist() == [zero, 111.0, 112.0, three, 114.0, 115.0]


def test_departures_name_the_layer_and_the_twin():
    _, ids, taken = steps()
    left_at, twin = departures(taken, ids, 6)
    assert left_at.tolist() == [[1, 0, 0, 2, 0, 0]] and twin.tolist() == [[3, -1, -1, 5, -1, -1]]


def test_replenish_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match=r"replenish to be one of identity, zero.* \(got 'mean'\)"):
        replenish(*steps(), "mean")
