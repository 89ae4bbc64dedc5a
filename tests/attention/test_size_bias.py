"""The size bias, folded into the heads or as a mask: one attention."""

import pytest
import torch
import torch.nn.functional as F
from needs import library

import tokengraph as tg
from tokengraph.attention.size_bias import SizeBias, SizeRule, folded_attention
from tokengraph.testing import tiny_vit

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def inputs(width=16, dtype=torch.float32, value_width=None):
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, 3, 7, width, generator=g).to(dtype) for _ in range(2))
    v = torch.randn(2, 3, 7, value_width or width, generator=g).to(dtype)
    return q, k, v, torch.randint(1, 50, (2, 1, 1, 7), generator=g).float().log()


def timm_vit(**options):
    library("timm")
    return tiny_vit(**options)


def eva():
    timm = library("timm")
    return timm.models.eva.Eva(32, 8, embed_dim=32, depth=3, num_heads=4, num_classes=5, use_rot_pos_emb=True).eval()


def transformers_vit(attention="sdpa", model="ViT"):
    transformers = library("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{model}Config")(
        **sizes, image_size=32, patch_size=8, attn_implementation=attention
    )
    return getattr(transformers, f"{model}Model")(config).eval()


MODELS = {
    "timm": timm_vit,
    "timm-eva": eva,
    "transformers-sdpa": transformers_vit,
    "transformers-rotary": lambda: transformers_vit(model="DINOv3ViT"),
    "transformers-eager": lambda: transformers_vit("eager"),
}


def features(model, images):
    out = model.forward_features(images) if hasattr(model, "forward_features") else model(images).last_hidden_state
    return out.float()


@pytest.mark.parametrize(("width", "scale"), [(16, None), (15, None), (6, 0.3), (64, 0.125)])
def test_folded_attention_equals_the_mask(width, scale):
    q, k, v, bias = inputs(width, value_width=5)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    torch.testing.assert_close(folded_attention(q, k, v, bias, scale=scale), expected)


def test_folded_attention_gives_the_kernel_no_mask_and_a_width_it_likes(monkeypatch):
    asked, plain = [], F.scaled_dot_product_attention

    def note(q, k, v, attn_mask=None, **options):
        asked.append((q.size(-1), k.size(-1), v.size(-1), attn_mask))
        return plain(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    folded_attention(*inputs(64))
    assert asked == [(72, 72, 72, None)]


def test_folded_attention_is_nearer_to_float32_than_a_mask_in_bfloat16():
    q, k, v, bias = inputs(16, torch.bfloat16)
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias)
    folded = (folded_attention(q, k, v, bias).float() - exact).abs().max()
    masked = (F.scaled_dot_product_attention(q, k, v, attn_mask=bias.bfloat16()).float() - exact).abs().max()
    assert folded < masked < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_barred_keys_stay_barred_in_value_and_gradient(dtype):
    q, k, v, bias = inputs(16, dtype)
    bias[..., 3] = -torch.inf
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out = folded_attention(q, k, v, bias)
    out.float().square().sum().backward()
    others = [0, 1, 2, 4, 5, 6]
    alone = folded_attention(q, k[:, :, others], v[:, :, others], bias[..., others])
    torch.testing.assert_close(out, alone, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-5)
    assert k.grad[:, :, 3].abs().max() == 0 and v.grad[:, :, 3].abs().max() == 0
    assert all(t.grad.isfinite().all() for t in (q, k, v))


def test_gradients_are_those_of_the_mask_that_of_the_bias_included():
    grads = []
    for attend in (folded_attention, lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)):
        leaves = [t.clone().requires_grad_() for t in inputs()]
        attend(*leaves).square().sum().backward()
        grads.append([t.grad for t in leaves])
    for folded, masked in zip(*grads, strict=True):
        torch.testing.assert_close(folded, masked)


def test_fewer_key_heads_than_queries_are_served():
    q, k, v, bias = inputs()
    expected = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], attn_mask=bias, enable_gqa=True)
    torch.testing.assert_close(folded_attention(q, k[:, :1], v[:, :1], bias, enable_gqa=True), expected)


def test_bias_of_another_shape_is_refused():
    q, k, v, bias = inputs()
    with pytest.raises(ValueError, match=r"Expected a bias of shape \[B, 1, 1, 7\] \(got \[2, 1, 1, 6\]\)"):
        folded_attention(q, k, v, bias[..., :6])


def test_causal_attention_is_refused():
    q, k, v, bias = inputs()
    with pytest.raises(ValueError, match="Expected is_causal=False"):
        F.scaled_dot_product_attention(q, k, v, attn_mask=SizeBias(bias, torch.float32), is_causal=True)  # type: ignore


def test_size_bias_adds_to_scores_on_either_side():
    scores, bias = torch.randn(2, 3, 7, 7), inputs()[3]
    assert torch.equal(scores + SizeBias(bias, torch.float32), scores + bias)
    assert torch.equal(torch.add(SizeBias(bias, torch.float32), scores), scores + bias)


@pytest.mark.parametrize("rule", ["log", "half-log", "inverse"])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_folding_gives_what_the_mask_gives_in_a_model(build, rule):
    torch.manual_seed(0)
    model, outputs = build(), []
    with torch.no_grad():
        for way in ("mask", "fold"):
            with tg.attach(model, "grid-pool", {1: 0.25}, prop_attn=rule, size_bias=way):
                outputs.append(features(model, IMAGES))
        with tg.attach(model, "grid-pool", {1: 0.25}, prop_attn="none"):
            plain = features(model, IMAGES)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert (outputs[0] - plain).abs().max() > 10 * (outputs[0] - outputs[1]).abs().max()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_folding_gives_what_the_mask_gives_in_bfloat16(build):
    torch.manual_seed(0)
    model, outputs = build(), []
    with torch.no_grad():
        with tg.attach(model, "grid-pool", {1: 0.25}):
            exact = features(model, IMAGES)
        model.bfloat16()
        for way in ("mask", "fold"):
            with tg.attach(model, "grid-pool", {1: 0.25}, size_bias=way):
                outputs.append(features(model, IMAGES.bfloat16()))
    errors = [torch.linalg.vector_norm(out - exact) / torch.linalg.vector_norm(exact) for out in outputs]
    assert max(errors) < 0.02 and errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("strategy", [tg.ToMe(), tg.GTP(), tg.GTP(sparsity=0.8)], ids=["keys", "fused", "open"])
def test_strategies_that_read_attention_choose_the_same_under_a_folded_bias(strategy):
    model, outputs = timm_vit(), []
    for way in ("mask", "fold"):
        with tg.attach(model, strategy, 3, prop_attn="log", size_bias=way) as handle, torch.no_grad():
            outputs.append((model(IMAGES), handle.trace.as_map(), handle.trace.size()))
    for masked, folded in zip(*outputs, strict=True):
        torch.testing.assert_close(folded, masked, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_folded_bias_compiles_in_one_graph_with_the_eager_result():
    model = timm_vit()
    with tg.attach(model, "tome", 3, size_bias="fold"), torch.no_grad():
        expected = model(IMAGES)
        torch._dynamo.reset()
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(IMAGES)
    torch.testing.assert_close(got, expected)


def test_auto_is_the_mask_on_cpu():
    rule = SizeRule.of("log", "auto")
    assert not rule.folds(torch.device("cpu")) and SizeRule.of("log", "fold").folds(torch.device("cpu"))


def test_true_and_false_are_log_and_none():
    assert SizeRule.of(True) == SizeRule.of("log") and SizeRule.of(False) == SizeRule.of("none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prop_attn": "logarithm"}, "Expected prop_attn to be log, half-log, none, inverse, True or False"),
        ({"size_bias": "folded"}, "Expected size_bias to be auto, mask or fold"),
    ],
)
def test_unknown_words_are_refused_before_anything_is_changed(options, message):
    model = timm_vit()
    kind = type(model)
    with pytest.raises(ValueError, match=message):
        tg.attach(model, "tome", 2, **options)
    assert type(model) is kind


def test_torchvision_folds_sizes_too():
    torchvision = library("torchvision")
    model = torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64).eval()
    for layer in model.encoder.layers:  # whose weights are drawn so small that sizes would hardly count
        torch.nn.init.normal_(layer.self_attention.in_proj_weight, std=0.5)
    torch.nn.init.normal_(model.heads.head.weight)
    outs = []
    for way, power in (("mask", "half-log"), ("fold", "half-log"), ("fold", "log")):
        with torch.no_grad(), tg.attach(model, "tome", 4, size_bias=way, prop_attn=power):
            outs.append(model(IMAGES))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outs[0], outs[2], rtol=1e-3, atol=1e-3)
