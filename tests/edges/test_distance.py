import pytest
import torch
from torch.testing import assert_close

from tokengraph.edges.distance import origin, recentre, squared_distance, squared_norm


def test_origin_is_the_token_nearest_the_mean():
    x = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [0.0, 4.0]], [[5.0, 5.0]] * 4])
    assert origin(x).tolist() == [[[2.0, 1.0]], [[5.0, 5.0]]]


def test_origin_does_not_look_at_padding():
    x = torch.tensor([[[9.0], [8.0], [8.5], [0.0], [0.0], [0.0], [0.0]]])
    assert origin(x).item() == 0.0
    assert origin(x, torch.tensor([[True] * 3 + [False] * 4])).item() == 8.5


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_recentre_keeps_differences(offset):
    x = torch.randn(3, 20, 6) + offset
    moved = recentre(x)
    assert_close(moved[:, :1] - moved, x[:, :1] - x, atol=1e-3 if offset else 1e-6, rtol=0)
    assert moved.norm(dim=2).amax() < 20


def test_recentre_makes_equal_tokens_exact_zeros():
    assert not recentre(torch.full((2, 7, 3), 0.37)).any()


def test_recentre_keeps_whole_numbers_whole():
    moved = recentre(torch.randint(-9, 10, (4, 11, 3)).float())
    assert torch.equal(moved, moved.round())


def test_recentre_makes_padding_zero_and_treats_tokens_as_without_it():
    x = torch.randn(2, 9, 4) + 3
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None]
    x[1, 5:] = torch.nan
    moved = recentre(x, mask)
    assert not moved[1, 5:].any()
    assert_close(moved[0], recentre(x[:1])[0])
    assert_close(moved[1, :5], recentre(x[1:, :5])[0])


def test_recentre_takes_images_without_tokens():
    assert recentre(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    mask = torch.tensor([[False, False], [True, True]])
    assert recentre(torch.ones(2, 2, 3), mask).isfinite().all()


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_recentre_works_in_float32_or_wider(dtype, wide):
    assert recentre(torch.randn(1, 4, 3).to(dtype)).dtype == wide


def test_recentre_leaves_its_input_alone():
    x = torch.randn(2, 5, 3)
    before = x.clone()
    recentre(x)
    recentre(x, torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(x, before)


def test_squared_norm_is_exact_for_whole_numbers():
    assert squared_norm(torch.tensor([[3.0, 4.0], [1001.0, 7.0]])).tolist() == [25.0, 1002050.0]


def test_squared_distance_equals_cdist():
    a, b = torch.randn(3, 7, 5), torch.randn(3, 9, 5)
    expected = torch.cdist(a.double(), b.double()).square()
    assert_close(squared_distance(a, b, squared_norm(a), squared_norm(b)).double(), expected, atol=1e-5, rtol=1e-5)


def test_squared_distance_is_never_negative():
    x = torch.randn(1, 50, 64) * 100
    assert squared_distance(x, x, squared_norm(x), squared_norm(x)).min() >= 0
