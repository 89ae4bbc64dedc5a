import pytest
import torch

from tokengraph.errors import check_finite, check_grid, check_positive, check_ptr, check_sorted, check_tokens

NAN, INF = float("nan"), float("inf")


def test_check_tokens_names_every_shape_it_takes():
    check_tokens(torch.zeros(1, 2, 3), dims=(2, 3))
    with pytest.raises(
        ValueError, match=r"Expected keys of shape \[M, C\] or \[B, N, C\] or \[B, C, H, W\] \(got \[5\]\)"
    ):
        check_tokens(torch.zeros(5), dims=(2, 3, 4), name="keys")


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex64])
def test_check_tokens_refuses_what_is_not_floating_point(dtype):
    with pytest.raises(TypeError, match=rf"Expected floating-point x \(got {dtype}\)\. Convert with .float\(\) first"):
        check_tokens(torch.zeros(1, 2, 3, dtype=dtype))


@pytest.mark.parametrize("rows", [[NAN, 0.0], [INF, 0.0], [INF, -INF], [-INF, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_check_finite_counts_the_bad_rows(rows, dtype):
    x = torch.zeros(4, 2, dtype=dtype)
    x[1] = x[3] = torch.tensor(rows, dtype=dtype)
    with pytest.raises(ValueError, match=r"Expected finite tokens \(got NaN or infinity in 2 rows\)\. Clean or mask"):
        check_finite(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_check_finite_takes_the_largest_numbers_there_are(dtype):
    check_finite(torch.full((50, 3), torch.finfo(dtype).max, dtype=dtype))
    check_finite(torch.full((50, 3), torch.finfo(dtype).min, dtype=dtype))
    check_finite(torch.zeros(0, 3, dtype=dtype))


def test_check_positive_names_the_argument():
    check_positive(k=1, lam=50)
    with pytest.raises(ValueError, match=r"Expected lam >= 1 \(got lam=0\)"):
        check_positive(k=1, lam=0)
    with pytest.raises(TypeError, match=r"Expected k to be an int \(got True\)"):
        check_positive(k=True)


def test_check_ptr_takes_empty_images():
    check_ptr(torch.tensor([0, 0, 3, 3]), 3)
    check_ptr(torch.tensor([0]), 0)
    with pytest.raises(ValueError, match=r"ptr of shape \[B\+1\] and dtype int64 \(got \[0\], torch.int64\)"):
        check_ptr(torch.tensor([], dtype=torch.long), 0)


def test_check_sorted_takes_gaps_and_repeats_but_no_fall():
    check_sorted(torch.tensor([0, 0, 2, 5]))
    check_sorted(torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match=r"order = batch.argsort\(stable=True\)"):
        check_sorted(torch.tensor([0, 1, 0]))


def test_check_grid_gives_two_ints():
    assert check_grid([2, 3], 6) == (2, 3) and check_grid(torch.Size([0, 5]), 0) == (0, 5)
    with pytest.raises(ValueError, match=r"Expected a grid of N=5 patches \(got 2 x 3 = 6\)\. Count only patch tokens"):
        check_grid((2, 3), 5)
