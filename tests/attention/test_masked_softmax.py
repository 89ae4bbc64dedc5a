"""The softmax over weighted edges against published values, and where the published form goes wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokengraph.nn import additive_mask, masked_softmax

FOLDER = Path(__file__).parent.parent / "reference" / "dynamicvit"


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "softmax_with_policy.npz", allow_pickle=False) as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file.files}
    return {k: v[..., 0] if k.startswith(("policy", "grad_policy")) else v for k, v in arrays.items()}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


def edges_out(keep: torch.Tensor) -> torch.Tensor:
    """Where a dropped key is another token's, ``[B, 1, N, N]``."""
    return (keep[:, None, None, :] == 0) & ~torch.eye(keep.size(1), dtype=torch.bool)


def test_official_form_gives_the_published_maps(case):
    p, keep = case["attn"], case["policy"]
    assert error(masked_softmax(p, keep, official=True), case["out"]) < 2e-5
    assert error(masked_softmax(p, keep, official=True, eps=0.0), case["out_eps0"]) < 2e-5
    assert error(masked_softmax(p, case["policy_soft"], official=True), case["out_soft"]) < 2e-5
    assert error(masked_softmax(p, torch.ones(2, 9), official=True), case["out_ones"]) < 2e-5
    for name in ("leak", "underflow"):
        got = masked_softmax(case[f"attn_{name}"], case["policy_underflow"], official=True)
        assert error(got, case[f"out_{name}"]) < 2e-5


def test_official_form_gives_the_published_gradients(case):
    p, keep = case["attn"].clone().requires_grad_(), case["policy"].clone().requires_grad_()
    masked_softmax(p, keep, official=True).backward(case["cotangent"])
    assert error(p.grad, case["grad_attn"]) < 2e-4
    assert error(keep.grad, case["grad_policy"]) < 2e-4


def test_official_form_in_half_precision_gives_the_published_map(case):
    got = masked_softmax(case["attn_fp16"], case["policy"].half(), official=True)
    assert got.dtype == torch.float16
    assert_close(got, case["out_fp16"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("scores", "keep", "exact"), [
    ("attn", "policy", "out_exact_fp64"),
    ("attn_leak", "policy_underflow", "out_leak_exact"),
    ("attn_underflow", "policy_underflow", "out_underflow_exact"),
])  # fmt: skip
def test_masked_softmax_is_exact_however_far_dropped_keys_lie_above(case, scores, keep, exact):
    p, keep = case[scores], case[keep]
    assert error(masked_softmax(p.double(), keep.double()), case[exact]) < 1e-12
    got = masked_softmax(p, keep)
    assert error(got.double(), case[exact]) < 2e-6
    assert not got[edges_out(keep).expand_as(got)].any()
    assert_close(got.sum(dim=-1), torch.ones(2, 3, 9))


def test_masked_softmax_in_half_precision_is_the_one_of_float32_rounded(case):
    got = masked_softmax(case["attn_fp16"], case["policy"])
    assert got.dtype == torch.float16
    assert torch.equal(got, masked_softmax(case["attn_fp16"].float(), case["policy"]).half())


def test_masked_softmax_of_a_full_mask_is_the_softmax(case):
    assert error(masked_softmax(case["attn"], torch.ones(2, 9)), case["out_softmax"]) < 2e-6


def test_masked_softmax_of_a_soft_mask_is_the_published_one_without_eps(case):
    got = masked_softmax(case["attn"].double(), case["policy_soft"].double())
    published = masked_softmax(case["attn"].double(), case["policy_soft"].double(), official=True, eps=0.0)
    assert_close(got, published)


def test_masked_softmax_has_the_published_gradients_on_ordinary_scores(case):
    p, keep = case["attn"].clone().requires_grad_(), case["policy"].clone().requires_grad_()
    masked_softmax(p, keep).backward(case["cotangent"])
    assert error(p.grad, case["grad_attn"]) < 1e-3
    assert error(keep.grad, case["grad_policy"]) < 1e-3


@pytest.mark.parametrize("above", [16.0, 88.0, 200.0, 1e4])
def test_masked_softmax_stays_finite_with_dropped_keys_far_above(case, above):
    p, keep = case["attn"].clone(), case["policy"].clone().requires_grad_()
    p[:, :, :, 2] += above
    p.requires_grad_()
    masked_softmax(p, keep).backward(case["cotangent"])
    assert p.grad.isfinite().all() and keep.grad.isfinite().all()
    assert keep.grad.abs().max() < 1e6 * 9 * 3 * float(case["cotangent"].abs().max())  # published bound: 1 / eps
    assert keep.grad[0, 2].abs() > 0


def test_masked_softmax_passes_gradcheck_in_scores_and_soft_masks():
    p = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    keep = (torch.rand(2, 4, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(masked_softmax, (p, keep))
    assert torch.autograd.gradcheck(lambda p, keep: masked_softmax(p, keep, official=True), (p, keep))


def test_masked_softmax_sends_the_gradient_that_a_dropped_edge_would_have():
    # By the definition: a dropped key's edge, made a little heavier.
    p, cotangent = torch.randn(1, 1, 3, 3, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    keep = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    masked_softmax(p, keep).backward(cotangent)
    step = torch.tensor([[0.0, 0.0, 1e-7]], dtype=torch.float64)
    slope = (masked_softmax(p, keep.detach() + step) - masked_softmax(p, keep.detach())) / 1e-7
    assert_close(keep.grad[0, 2], (slope * cotangent).sum(), atol=1e-5, rtol=1e-5)
    assert keep.grad[0, 2].abs() > 1e-2


def test_masked_softmax_of_one_kept_token_or_none_attends_to_itself_and_it():
    p = torch.randn(2, 1, 3, 3)
    got = masked_softmax(p, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert_close(got[1, 0], torch.eye(3))
    assert (got[0, 0] > 0).tolist() == [[True, False, False], [True, True, False], [True, False, True]]


def test_additive_mask_makes_the_plain_softmax_the_masked_one(case):
    for name in ("policy", "policy_soft"):
        got = (case["attn"] + additive_mask(case[name])).softmax(dim=-1)
        assert error(got, masked_softmax(case["attn"], case[name])) < 2e-6


def test_additive_mask_is_zero_or_minus_infinity_for_a_hard_mask():
    off = -torch.inf
    assert additive_mask(torch.tensor([[1, 0, 1]]))[0, 0].tolist() == [[0, off, 0], [0, 0, 0], [0, off, 0]]


def test_masked_softmax_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected scores of shape \[B, H, N, N\] \(got \[1, 1, 2, 3\]\)"):
        masked_softmax(torch.zeros(1, 1, 2, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\[B, N\] = \[1, 3\] \(got \[1, 2\]\). It covers prefix tokens too"):
        masked_softmax(torch.zeros(1, 1, 3, 3), torch.ones(1, 2))
