"""Open attention: the map of a stock block, made, edited and left by an attention mask."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tokengraph.attention.keep_mask import KeepMask, masked_attention
from tokengraph.attention.open_map import OpenMap
from tokengraph.attention.size_bias import SizeBias


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 5, 8, generator=generator) for _ in range(3)]


def biases():
    generator = torch.Generator().manual_seed(1)
    row = torch.randn(2, 1, 1, 5, generator=generator)
    barred = torch.randn(2, 1, 5, 5, generator=generator) < 1
    barred[..., 0] = True
    return {"none": None, "row": row, "full": torch.randn(1, 4, 5, 5, generator=generator), "bool": barred}


@pytest.mark.parametrize("kind", biases())
def test_fused_attention_gives_what_it_gives_with_the_bias_alone(kind, qkv):
    bias, seen = biases()[kind], {}
    out = F.scaled_dot_product_attention(*qkv, attn_mask=OpenMap(seen, bias=bias), scale=0.3)
    assert_close(out, F.scaled_dot_product_attention(*qkv, attn_mask=bias, scale=0.3))
    assert_close(seen["map"].sum(dim=-1), torch.ones(2, 4, 5))
    assert_close(seen["map"] @ qkv[2], out)


@pytest.mark.parametrize("kind", biases())
def test_plain_attention_gives_the_same_map(kind, qkv):
    q, k, _ = qkv
    bias, fused, plain = biases()[kind], {}, {}
    F.scaled_dot_product_attention(*qkv, attn_mask=OpenMap(fused, bias=bias))
    scores = q @ k.transpose(2, 3) * 8**-0.5
    attention = (scores + OpenMap(plain, bias=bias)).softmax(dim=-1)
    assert plain["map"] is attention
    assert_close(attention, fused["map"])
    assert_close(F.softmax(OpenMap(bias=bias) + scores, dim=-1, dtype=torch.float64), attention.double())


def test_what_the_edit_returns_weighs_the_values(qkv):
    seen = {}
    out = F.scaled_dot_product_attention(*qkv, attn_mask=OpenMap(seen, lambda a: a * (a > 0.2)))
    plain = (qkv[0] @ qkv[1].transpose(2, 3) * 8**-0.5).softmax(dim=-1)
    assert_close(seen["map"], plain * (plain > 0.2))
    assert (seen["map"] == 0).any()
    assert_close(out, seen["map"] @ qkv[2])


def test_dropout_comes_after_the_edit(qkv):
    seen = {}
    torch.manual_seed(0)
    out = F.scaled_dot_product_attention(*qkv, attn_mask=OpenMap(seen), dropout_p=0.5)
    torch.manual_seed(0)
    assert_close(out, F.dropout(seen["map"], 0.5) @ qkv[2])
    assert (seen["map"] > 0).all()


def test_keep_decisions_and_folded_sizes_are_biases_too(qkv):
    keep = torch.tensor([[1.0, 0, 1, 1, 0], [1, 1, 1, 0, 1]])
    assert_close(
        F.scaled_dot_product_attention(*qkv, attn_mask=OpenMap(bias=KeepMask(keep))), masked_attention(*qkv, keep)
    )
    row = biases()["row"]
    folded = OpenMap(bias=SizeBias(row, torch.float32))
    assert_close(
        F.scaled_dot_product_attention(*qkv, attn_mask=folded), F.scaled_dot_product_attention(*qkv, attn_mask=row)
    )


def test_fewer_heads_of_keys_are_repeated(qkv):
    q, k, v = qkv[0], qkv[1][:, :2], qkv[2][:, :2]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=OpenMap(), enable_gqa=True)
    assert_close(out, F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


def test_gradients_are_those_of_plain_attention(qkv):
    grads = []
    for mask in (OpenMap(bias=biases()["row"]), biases()["row"]):
        leaves = [t.clone().requires_grad_() for t in qkv]
        F.scaled_dot_product_attention(*leaves, attn_mask=mask).square().sum().backward()
        grads.append([t.grad for t in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiles_in_one_graph(qkv):
    def fused(q, k, v, bias):
        seen = {}
        return F.scaled_dot_product_attention(q, k, v, attn_mask=OpenMap(seen, torch.relu, bias)), seen["map"]

    def plain(q, k, v, bias):
        seen = {}
        return (q @ k.transpose(2, 3) * 8**-0.5 + OpenMap(seen, torch.relu, bias)).softmax(dim=-1) @ v, seen["map"]

    for function in (fused, plain):
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        for ours, theirs in zip(compiled(*qkv, biases()["row"]), function(*qkv, biases()["row"]), strict=True):
            assert_close(ours, theirs)


def test_anything_else_is_refused(qkv):
    with pytest.raises(TypeError, match="scaled_dot_product_attention, or scores . mask.*got matmul"):
        torch.matmul(qkv[0], OpenMap())
    with pytest.raises(ValueError, match="over keys, dim=-1 .got dim=2"):
        (qkv[0] + OpenMap()).softmax(dim=2)
    with pytest.raises(ValueError, match="is_causal=False"):
        F.scaled_dot_product_attention(*qkv, attn_mask=OpenMap(), is_causal=True)
