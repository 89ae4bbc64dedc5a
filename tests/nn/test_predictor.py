"""The prediction module: published values and gradients, ragged batches, and what must not go wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokengraph.nn import TokenPredictor
from tokengraph.nn.predictor import _mean, _segment_mean

FOLDER = Path(__file__).parent.parent / "reference" / "dynamicvit"


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "predictor_lg.npz", allow_pickle=False) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


@pytest.fixture
def published(case) -> TokenPredictor:
    predictor = TokenPredictor(48)
    predictor.load_state_dict({k[3:]: v for k, v in case.items() if k.startswith("sd.")})  # strict: the names agree
    return predictor


def test_predictor_gives_the_published_log_probabilities(case, published):
    assert error(published(case["x"], case["policy"][..., 0]), case["out"]) < 2e-5
    assert error(published.in_conv(case["x"]), case["in_conv"]) < 2e-5


def test_predictor_in_double_gives_the_published_double_values(case, published):
    got = published.double()(case["x"].double(), case["policy"][..., 0].double())
    assert got.dtype == torch.float64
    assert error(got, case["out_fp64"]) < 1e-12


def test_predictor_gives_the_published_gradients(case, published):
    x, keep = case["x"].clone().requires_grad_(), case["policy"][..., 0].clone().requires_grad_()
    published(x, keep).backward(case["cotangent"])
    assert error(x.grad, case["grad_x"]) < 2e-4
    assert error(keep.grad, case["grad_policy"][..., 0]) < 2e-4
    names = [name for name, _ in published.named_parameters()]
    assert len(names) == 10
    for name, parameter in published.named_parameters():
        assert error(parameter.grad, case[f"grad.{name}"]) < 2e-4, name


def test_predictor_is_finite_where_no_token_is_kept(case, published):
    x, keep = case["x"].clone().requires_grad_(), case["policy_zero"][..., 0].clone().requires_grad_()
    out = published(x, keep)
    assert case["out_policy_zero"][0].isnan().all()  # what the published module gives
    assert error(out[1:], case["out_policy_zero"][1:]) < 2e-5
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all() and keep.grad.isfinite().all()


def test_predictor_without_a_mask_takes_the_mean_over_all_tokens(case, published):
    assert_close(published(case["x"]), published(case["x"], torch.ones(3, 20)))
    plain = TokenPredictor(48, pooling="mean")
    plain.load_state_dict(published.state_dict())
    assert torch.equal(plain(case["x"], case["policy"][..., 0]), published(case["x"]))


def test_predictor_of_a_ragged_batch_equals_each_image_alone(case, published):
    counts, x, keep = [20, 7, 0, 1], case["x"].flatten(0, 1)[:28], case["policy"].flatten()[:28]
    keep[20:27:2] = 0
    ptr = torch.tensor([0, *counts]).cumsum(0)
    got = published(x, keep, ptr)
    for start, end in zip(ptr.tolist(), ptr.tolist()[1:], strict=False):
        assert_close(got[start:end], published(x[start:end], keep[start:end]), atol=1e-6, rtol=0)
        if end > start:
            assert_close(got[start:end], published(x[None, start:end], keep[None, start:end])[0], atol=1e-6, rtol=0)
    assert_close(published(x, None, ptr)[20:27], published(x[20:27]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_predictor_of_a_batch_equals_each_image_alone(case, published, images):
    x, keep = case["x"][:images], case["policy"][:images, :, 0]
    for i, got in enumerate(published(x, keep)):
        assert_close(got, published(x[i : i + 1], keep[i : i + 1])[0], atol=1e-6, rtol=0)


def test_predictor_follows_a_permutation_of_tokens(case, published):
    order = torch.randperm(20)
    x, keep = case["x"], case["policy"][..., 0]
    assert_close(published(x[:, order], keep[:, order]), published(x, keep)[:, order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("tokens", [1, 3, 49, 50])
def test_predictor_takes_any_number_of_tokens(published, tokens):
    out = published(torch.randn(2, tokens, 48))
    assert_close(out.exp().sum(dim=-1), torch.ones(2, tokens))


def test_predictor_returns_probabilities_in_float32_in_half_precision(published):
    x = torch.randn(2, 5, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = published(x, torch.ones(2, 5))
    half = published.bfloat16()(x.bfloat16(), torch.ones(2, 5, dtype=torch.bfloat16))
    for out in (mixed, half):
        assert out.dtype == torch.float32
        assert_close(out.exp().sum(dim=-1), torch.ones(2, 5))


@pytest.mark.parametrize("flat", [False, True])
def test_predictor_takes_the_masked_mean_in_float32_whatever_autocast_says(flat):
    h, keep = torch.randn(300, 4).bfloat16(), torch.ones(300)
    keep[257:] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = _segment_mean(h, keep, torch.zeros(300).long(), torch.tensor([0, 300])) if flat else _mean(h, keep)
    assert got.dtype == torch.float32
    assert_close(got, h[:257].float().mean(dim=0, keepdim=True), atol=1e-6, rtol=0)


def test_predictor_starts_with_small_truncated_weights_from_its_generator():
    a, b = (TokenPredictor(64, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    for (name, one), other in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(one, other)
        if name.endswith("bias"):
            assert not one.any(), name
    weight = a.in_conv[1].weight.detach()
    assert 0.018 < float(weight.std()) < 0.022
    a.reset_parameters(torch.Generator().manual_seed(4))
    assert not torch.equal(a.in_conv[1].weight, b.in_conv[1].weight)


def test_predictor_compiles_to_one_graph(published):
    x, keep = torch.randn(2, 5, 48), torch.ones(2, 5)
    compiled = torch.compile(published, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, keep), published(x, keep))


def test_predictor_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected channels to be a positive multiple of 4 \(got channels=6\)"):
        TokenPredictor(6)
    with pytest.raises(TypeError, match=r"Expected channels to be an int \(got 8.0\)"):
        TokenPredictor(8.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected pooling to be one of masked, mean \(got 'max'\)"):
        TokenPredictor(8, pooling="max")
    predictor = TokenPredictor(8)
    with pytest.raises(ValueError, match=r"Expected x with C=8 channels \(got 4\)"):
        predictor(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"Expected keep of shape \[1, 2\] \(got \[1, 3\]\)"):
        predictor(torch.zeros(1, 2, 8), torch.ones(1, 3))
    with pytest.raises(ValueError, match="Expected ptr with a flat x"):
        predictor(torch.zeros(1, 2, 8), None, torch.tensor([0, 2]))
