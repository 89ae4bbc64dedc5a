"""The fused masked attention equals the explicit formula, forward and gradients, alone and in stock blocks."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from needs import library
from torch import Tensor
from torch.testing import assert_close

from tokengraph.attention import edge_gradient
from tokengraph.nn import KeepMask, gumbel_keep, masked_attention, masked_softmax
from tokengraph.testing import tiny_vit


def explicit(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, scale: float = 0.5, official: bool = False) -> Tensor:
    return masked_softmax(q @ k.transpose(-2, -1) * scale, keep, official=official) @ v


def make(kind: str = "hard", dtype: torch.dtype = torch.float64, far: float = 0.0) -> tuple[Tensor, ...]:
    """q, k, v as views of one projection, as stock blocks have them, D = 4; and a keep mask."""
    q, k, v = torch.randn(3, 7, 3, 2, 4, dtype=torch.float64).permute(2, 0, 3, 1, 4)
    keep = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.float64)
    if kind == "soft":
        keep = (torch.rand(3, 7, dtype=torch.float64) * keep).clone()
    elif kind == "none":
        keep = torch.zeros(3, 7, dtype=torch.float64)
    if far:  # makes key 2 lie about that far above the others
        q, k = q.clone(), k.clone()
        q[..., 0], k[..., 0] = 1.0, 0.0
        k[:, :, 2, 0] = 2 * far
    return tuple(t.to(dtype).detach().requires_grad_() for t in (q, k, v, keep))


def gradients(attend, inputs: tuple[Tensor, ...], cotangent: Tensor) -> list[Tensor]:
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, cotangent.to(out.dtype))]


@pytest.mark.parametrize("far", [0.0, 16.0, 88.0, 200.0])
@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
def test_masked_attention_is_the_explicit_formula_forward_and_backward(kind, far):
    inputs, cotangent = make(kind, far=far), torch.randn(3, 2, 7, 4)
    ours = gradients(masked_attention, inputs, cotangent)
    theirs = gradients(explicit, inputs, cotangent)
    for got, want in zip(ours, theirs, strict=True):
        assert got.isfinite().all()
        assert_close(got, want, atol=1e-10 * float(want.abs().max()), rtol=1e-9)
    assert ours[-1].abs().max() > 1e-3


@pytest.mark.parametrize("far", [0.0, 16.0, 200.0])
def test_masked_attention_is_the_explicit_formula_in_float32(far):
    inputs, cotangent = make(far=far), torch.randn(3, 2, 7, 4)
    ours = gradients(masked_attention, tuple(t.float() for t in inputs), cotangent)
    for got, want in zip(ours, gradients(explicit, inputs, cotangent), strict=True):
        assert_close(got.double(), want, atol=1e-5 * float(want.abs().max()), rtol=0)


@pytest.mark.parametrize("bytes_", [1, 3 * 49 * 8, 1 << 20])
def test_masked_attention_has_the_same_gradients_in_pieces_of_any_size(monkeypatch, bytes_):
    inputs, cotangent = make(), torch.randn(3, 2, 7, 4)
    whole = gradients(explicit, inputs, cotangent)
    monkeypatch.setattr(edge_gradient, "CACHE", bytes_)
    for got, want in zip(gradients(masked_attention, inputs, cotangent), whole, strict=True):
        assert_close(got, want)


def test_masked_attention_of_a_soft_mask_passes_gradcheck():
    q, k, v, keep = make("soft")
    keep = (keep.detach() * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(masked_attention, (q[:1], k[:1], v[:1], keep[:1]))


def test_masked_attention_takes_values_of_another_width_and_a_scale():
    q, k, _, keep = make()
    v, cotangent = torch.randn(3, 2, 7, 5, dtype=torch.float64), torch.randn(3, 2, 7, 5)
    ours = gradients(lambda *t: masked_attention(*t, scale=0.2), (q, k, v, keep), cotangent)
    for got, want in zip(ours, gradients(lambda *t: explicit(*t, scale=0.2), (q, k, v, keep), cotangent), strict=True):
        assert_close(got, want)


def test_masked_attention_in_the_official_form_is_its_formula():
    inputs, cotangent = make(), torch.randn(3, 2, 7, 4)
    ours = gradients(lambda *t: masked_attention(*t, official=True), inputs, cotangent)
    theirs = gradients(lambda *t: explicit(*t, official=True), inputs, cotangent)
    for got, want in zip(ours, theirs, strict=True):
        assert_close(got, want)
    assert not torch.equal(ours[0], masked_attention(*inputs))


def test_masked_attention_of_a_full_mask_is_plain_attention():
    q, k, v, _ = make()
    assert_close(masked_attention(q, k, v, torch.ones(3, 7)), F.scaled_dot_product_attention(q, k, v))


def test_masked_attention_without_gradient_of_keep_gives_the_same_and_takes_bool():
    q, k, v, keep = make()
    want = masked_attention(q, k, v, keep)
    assert_close(masked_attention(q, k, v, keep.detach()), want)  # other kernels, so up to rounding
    assert_close(masked_attention(q, k, v, keep > 0), want)
    with torch.no_grad():
        assert_close(masked_attention(q, k, v, keep), want)


def test_features_of_a_dropped_token_reach_no_other_token():
    q, k, v, keep = make()
    moved = [t.detach().clone() for t in (q, k, v)]
    for t in moved:
        t[0, :, 2] += 100.0
    others = [i for i in range(7) if i != 2]
    assert torch.equal(masked_attention(*moved, keep)[0, :, others], masked_attention(q, k, v, keep)[0, :, others])
    grads = torch.autograd.grad(masked_attention(q, k, v, keep)[0, :, others].sum(), (q, k, v))
    for grad in grads:
        assert not grad[0, :, 2].any()
        assert grad[0, :, 3].any() or grad is grads[0]


def test_masked_attention_of_a_batch_is_that_of_each_image():
    inputs, cotangent = make(), torch.randn(3, 2, 7, 4)
    together = gradients(masked_attention, inputs, cotangent)
    for i in range(3):
        alone = gradients(masked_attention, tuple(t[i : i + 1] for t in inputs), cotangent[i : i + 1])
        for got, want in zip(together, alone, strict=True):
            assert_close(got[i : i + 1], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masked_attention_in_half_precision_keeps_to_float32_within_its_rounding(dtype):
    *qkv, keep = make(far=16.0)  # the gradient of keep is then beyond the range of float16; decisions are float32
    inputs, cotangent = (*(t.to(dtype) for t in qkv), keep.float()), torch.randn(3, 2, 7, 4).to(dtype)
    ours = gradients(masked_attention, inputs, cotangent)
    theirs = gradients(explicit, tuple(t.double() for t in inputs), cotangent.double())
    assert [t.dtype for t in ours] == [dtype, dtype, dtype, dtype, torch.float32]
    for got, want in zip(ours, theirs, strict=True):
        assert_close(got.double(), want, atol=8 * torch.finfo(dtype).eps * float(want.abs().max()), rtol=0)


def test_masked_attention_under_autocast_has_finite_gradients_in_the_inputs_dtype():
    inputs, cotangent = tuple(t.float() for t in make()), torch.randn(3, 2, 7, 4)

    def attend(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return masked_attention(*inputs)

    for got, want in zip(gradients(attend, inputs, cotangent), gradients(explicit, inputs, cotangent), strict=True):
        assert_close(got.float(), want, atol=0.03 * float(want.abs().max()), rtol=0)


def test_dropout_leaves_edges_out_and_is_right_on_average():
    q, k, v, keep = make()
    mean = torch.stack([masked_attention(q, k, v, keep, dropout_p=0.5) for _ in range(4000)]).mean(dim=0)
    assert_close(mean, masked_attention(q, k, v, keep), atol=0.15, rtol=0)
    assert not torch.equal(masked_attention(q, k, v, keep, dropout_p=0.5), masked_attention(q, k, v, keep))


def test_masked_attention_of_no_images_or_no_tokens_is_empty():
    for shape in [(0, 2, 3, 4), (2, 2, 0, 4)]:
        q = torch.zeros(shape, requires_grad=True)
        keep = torch.ones(shape[0], shape[2], requires_grad=True)
        out = masked_attention(q, q, q, keep)
        out.sum().backward()
        assert out.shape == q.grad.shape == shape


def test_masked_attention_refuses_what_does_not_fit():
    q = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match=r"\[B, N\] = \[1, 3\] \(got \[1, 2\]\). It covers prefix tokens too"):
        masked_attention(q, q, q, torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"Expected q, k and v of shape \[B, H, N, D\]"):
        masked_attention(q, q[:, :, :2], q, torch.ones(1, 3))


# A keep mask where a stock attention expects a tensor.


def test_keep_mask_turns_stock_attention_into_masked_attention():
    inputs, cotangent = make(), torch.randn(3, 2, 7, 4)

    def fused(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=KeepMask(keep), dropout_p=0.0)  # type: ignore[arg-type]

    def plain(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * 0.5 + KeepMask(keep)).softmax(dim=-1) @ v  # type: ignore[operator]

    want = gradients(explicit, inputs, cotangent)
    for attend in (fused, plain):
        for got, expected in zip(gradients(attend, inputs, cotangent), want, strict=True):
            assert_close(got, expected)


def test_keep_mask_is_taken_by_every_way_to_add_and_normalise():
    _, _, _, keep = make()
    scores, mask = torch.randn(3, 2, 7, 7), KeepMask(keep)
    want = masked_softmax(scores, keep)
    assert torch.equal(torch.softmax(torch.add(scores, mask), dim=-1), want)  # type: ignore[arg-type]
    assert torch.equal(F.softmax(mask + scores, dim=3, dtype=torch.float32), want)  # type: ignore[arg-type]
    assert torch.equal(scores.add(mask).softmax(-1), want)  # type: ignore[arg-type]


def test_keep_mask_makes_its_additive_mask_once_for_all_blocks():
    q, k, v, keep = make()
    mask = KeepMask(keep)
    F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # type: ignore[arg-type]
    first = mask.additive()
    F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # type: ignore[arg-type]
    assert mask.additive() is first


def test_keep_mask_raises_where_its_gradient_would_be_lost():
    mask, scores = KeepMask(torch.ones(1, 3)), torch.zeros(1, 1, 3, 3)
    with pytest.raises(TypeError, match=r"scaled_dot_product_attention, or scores \+ mask \(got mul\)"):
        torch.mul(scores, mask)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected a softmax of masked scores \(got exp\)"):
        torch.exp(scores + mask)  # type: ignore[operator]
    with pytest.raises(ValueError, match="Expected a softmax over keys"):
        (scores + mask).softmax(dim=2)  # type: ignore[operator]
    with pytest.raises(ValueError, match="Expected is_causal=False"):
        F.scaled_dot_product_attention(scores, scores, scores, mask, 0.0, True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected keep of shape \[B, N\] \(got \[3\]\)"):
        KeepMask(torch.ones(3))


@pytest.fixture
def block() -> torch.nn.Module:
    library("timm")
    return tiny_vit().blocks[0].train()


def block_gradients(block: torch.nn.Module, x: Tensor, keep: Tensor, **how: bool) -> list[Tensor]:
    x, keep = x.clone().requires_grad_(), keep.clone().requires_grad_()

    def run(x: Tensor, keep: Tensor) -> Tensor:
        return block(x, attn_mask=KeepMask(keep))

    out = torch.utils.checkpoint.checkpoint(run, x, keep, use_reentrant=how["reentrant"]) if how else run(x, keep)
    wanted = [x, keep, *block.parameters()]
    for t in wanted:
        t.grad = None
    out.square().sum().backward()
    return [out.detach(), *(t.grad for t in wanted)]


def test_a_stock_block_takes_a_keep_mask_fused_or_not(block):
    channels = block.norm1.weight.numel()
    x, keep = torch.randn(2, 6, channels), torch.tensor([[1.0, 0, 1, 1, 0, 1], [1.0, 1, 0, 0, 0, 0]])
    plain = copy.deepcopy(block)
    block.attn.fused_attn, plain.attn.fused_attn = True, False
    ours = block_gradients(block, x, keep)
    for got, want in zip(ours, block_gradients(plain, x, keep), strict=True):
        assert_close(got, want, atol=2e-5 * float(want.abs().max()), rtol=0)
    assert ours[2].abs().min() > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_stock_block_under_checkpointing_has_the_same_gradients(block, reentrant):
    x, keep = torch.randn(2, 6, block.norm1.weight.numel()), torch.tensor([[1.0, 0, 1, 1, 0, 1]] * 2)
    got = block_gradients(block, x, keep, reentrant=reentrant)
    for a, b in zip(got, block_gradients(block, x, keep), strict=True):
        assert torch.equal(a, b)


def test_a_stock_block_with_one_token_left_out_equals_the_block_without_it(block):
    x, keep = torch.randn(1, 6, block.norm1.weight.numel()), torch.tensor([[1.0, 1, 0, 1, 1, 1]])
    there = [0, 1, 3, 4, 5]
    assert_close(block(x, attn_mask=KeepMask(keep))[:, there], block(x[:, there]), atol=1e-5, rtol=0)


def test_masked_attention_and_keep_masks_compile_to_one_graph():
    inputs, cotangent = tuple(t.float() for t in make()), torch.randn(3, 2, 7, 4)

    def stock(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=KeepMask(keep))  # type: ignore[arg-type]

    for attend in (masked_attention, stock):
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        for got, want in zip(gradients(compiled, inputs, cotangent), gradients(attend, inputs, cotangent), strict=True):
            assert_close(got, want)


def test_the_signal_through_attention_reaches_newly_dropped_tokens_and_none_dropped_earlier():
    q, k, v, _ = make()
    logp = torch.randn(3, 7, 2, dtype=torch.float64).log_softmax(dim=-1).requires_grad_()
    previous = torch.tensor([[1, 1, 0, 1, 0, 1, 1]] * 3, dtype=torch.float64)
    keep = gumbel_keep(logp, previous, generator=torch.Generator().manual_seed(0))
    masked_attention(q, k, v, keep).square().sum().backward()
    signal = logp.grad.abs().sum(dim=-1)
    newly = (previous > 0) & (keep == 0)
    assert newly.sum() >= 3
    assert (signal[newly] > 0).all()
    assert not signal[previous == 0].any()


@pytest.mark.parametrize("cap", [1.0, 10.0, 1e6])
def test_a_cap_bounds_the_gradient_of_sharp_attention_and_changes_no_output(cap):
    torch.manual_seed(0)
    q, k, v = (8 * torch.randn(2, 3, 9, 4, dtype=torch.float64) for _ in range(3))
    keep = torch.ones(2, 9, dtype=torch.float64)
    keep[:, 3:6] = 0
    outs, grads = [], []
    for fused in (True, False):
        own = keep.clone().requires_grad_()
        mask = KeepMask(own, cap=cap)
        if fused:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            out = (q @ k.transpose(2, 3) / 2 + mask).softmax(dim=-1) @ v
        out.square().sum().backward()
        outs.append(out.detach())
        grads.append(own.grad)
    assert_close(*outs)
    assert_close(*grads)
    assert_close(outs[0], masked_attention(q, k, v, keep))
    largest = grads[0][:, 3:6].abs().max()
    assert largest < 3e4 * cap and (cap < 1e6 or largest > 1e5)
