"""Packed images: attention within each image, by a nested tensor or by scores with a mask."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tokengraph.attention.jagged import Jagged

COUNTS = (5, 1, 7)
OFFSETS = torch.tensor([0, 5, 6, 13])


def heads(*, groups=1, dtype=torch.float32, width=6, value=6):
    draw = torch.Generator().manual_seed(0)
    sizes = ((4, width), (4 // groups, width), (4 // groups, value))
    return [torch.randn(1, h, sum(COUNTS), w, generator=draw).to(dtype) for h, w in sizes]


def bias():
    return torch.randint(1, 9, (1, 1, 1, sum(COUNTS)), generator=torch.Generator().manual_seed(1)).float().log()


def alone(q, k, v, own, scale=None):
    """Attention of one image after the other."""
    groups, out = q.size(1) // k.size(1), []
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    parts = zip(*(t.split(COUNTS, dim=2) for t in (q, k, v)), own.split(COUNTS, dim=3), strict=True)
    for a, b, c, sizes in parts:
        out.append(F.scaled_dot_product_attention(a, b, c, attn_mask=sizes, scale=scale))
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("width", "value"), [(6, 6), (8, 8), (6, 20)])
def test_packed_attention_is_that_of_each_image(scale, groups, sized, width, value):
    q, k, v = heads(groups=groups, width=width, value=value)
    own = bias() if sized else torch.zeros_like(bias())
    mask = Jagged(COUNTS, own if sized else None, torch.float32, OFFSETS)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=groups > 1)
    assert_close(found, alone(q, k, v, own, scale))


def test_scores_get_a_mask_between_images():
    q, k, v = heads()
    mask = Jagged(COUNTS, bias(), torch.float32, OFFSETS)
    scores = q @ k.transpose(2, 3) * 6**-0.5
    expected = alone(q, k, v, bias())
    assert_close((scores + mask).softmax(dim=-1) @ v, expected)
    assert_close((mask + scores).softmax(dim=-1) @ v, expected)
    assert_close(torch.add(scores, mask).softmax(dim=-1) @ v, expected)
    assert mask.shape == (1, 1, 1, 13) and mask.size(3) == 13 and mask.dim() == 4 and mask.float() is mask


def test_gradients_reach_heads_and_bias():
    given = [t.requires_grad_() for t in (*heads(), bias())]
    *parts, own = given
    mask = Jagged(COUNTS, own, torch.float32, OFFSETS)
    ours = torch.autograd.grad(F.scaled_dot_product_attention(*parts, attn_mask=mask).square().sum(), given)
    theirs = torch.autograd.grad(alone(*given).square().sum(), given)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_half():
    q, k, v = heads(dtype=torch.bfloat16)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=Jagged(COUNTS, bias(), torch.bfloat16, OFFSETS))
    exact = alone(*(t.float() for t in (q, k, v)), bias())
    assert found.dtype == torch.bfloat16 and (found.float() - exact).abs().max() < 0.03


def test_the_first_nested_tensor_warns_no_user():
    code = (
        "import torch, torch.nn.functional as F; from tokengraph.attention.jagged import Jagged; "
        "mask = Jagged((1, 2), None, torch.float32, torch.tensor([0, 1, 3])); x = torch.ones(1, 1, 3, 4); "
        "F.scaled_dot_product_attention(x, x, x, attn_mask=mask)"
    )
    subprocess.run([sys.executable, "-W", "error:The PyTorch API of nested", "-c", code], check=True)
