"""BEiT and Data2Vec of transformers under a strategy: statistics beside the bias, maps, masks, weights of timm."""

import pytest
import torch
from architectures import SIZES
from beit_cases import ABSOLUTE, OWN, STRATEGIES, First, equal, make, run
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.adapters.transformers.beit import SharedBias

transformers = library("transformers")


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["beit_own", "beit_shared", "beit_both"])
def test_statistics_are_those_of_the_models_own_eager_attention(kind, images):
    select, model = First(), make(kind, attn_implementation="eager")
    with tg.attach(model, select, {1: 12, 2: 8}), torch.no_grad():
        maps = model(images, output_attentions=True).attentions
    if maps[0] is None:
        pytest.skip("this transformers has the older BEiT, which returns no maps while attached")
    for (_, row, sums, own), attention in zip(select.seen, maps, strict=False):
        assert_close(row, attention[:, :, 0, 1:])
        assert_close(sums, attention.sum(2)[..., 1:])
        assert_close(own, attention.diagonal(dim1=2, dim2=3)[..., 1:])
    assert [m.size(2) for m in maps] == [17, 13, 9]


@pytest.mark.parametrize("kind", ["timm_own", "timm_shared", "timm_both"])
def test_timm_and_transformers_of_the_same_weights_agree(kind, images):
    ours = make(kind, qkv_bias=True, init_values=0.5, mlp_ratio=2.0, drop_path_rate=0.0, use_abs_pos_emb=True)
    theirs = make(kind.replace("timm", "beit"), **ABSOLUTE, num_labels=5, use_mean_pooling=True, layer_norm_eps=1e-6)
    core = getattr(theirs, "beit", theirs)
    copied = {}
    for name, value in ours.state_dict().items():
        for a, b in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("blocks.", "layers."),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("attn.relative_position_bias_table", "relative_position_bias.relative_position_bias_table"),
            ("rel_pos_bias.relative", "shared_position_bias.relative"),
            ("attn.proj", "attention.o_proj"),
            ("attn.q_bias", "attention.q_proj.bias"),
            ("attn.v_bias", "attention.v_proj.bias"),
            ("attn.", "attention."),
            ("gamma_", "lambda_"),
            ("fc_norm", "pooler.layernorm"),
        ):
            name = name.replace(a, b)
        for part, rows in zip("qkv", value.chunk(3), strict=True) if "qkv" in name else [("", value)]:
            copied[name.replace("qkv", f"{part}_proj")] = rows
    if "layers.0.attention.o_proj.weight" not in core.state_dict():
        pytest.skip("this transformers has BEiT's parameters by other names")
    report = core.load_state_dict(copied, strict=False)
    unknown = {name for name in report.unexpected_keys if not name.endswith("relative_position_index")}  # a buffer
    assert not report.missing_keys and unknown == {"head.weight", "head.bias"}
    for select, schedule in ((None, None), *STRATEGIES.values()):
        if select is not None and select.learns:
            continue  # modules of its own
        for model in (ours, theirs) if select is not None else ():
            tg.attach(model, select, schedule)
        with torch.no_grad():
            pooled = ours.forward_head(ours.forward_features(images), pre_logits=True)
            assert_close(core(images).pooler_output, pooled, rtol=1e-4, atol=1e-4)
        for model in (ours, theirs):
            tg.detach(model)


@pytest.mark.parametrize("kind", ["beit_both", "data2vec_both"])
def test_heads_that_average_patches_see_each_with_its_clusters_features(kind, images):
    model = make(kind)
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        out = run(model, images)[0]
        mean = handle.trace.lift(handle.trace.output).mean(dim=1)
        core = model.beit if kind == "beit_both" else model.data2vec_vision
        assert_close(out, model.classifier(core.pooler.layernorm(mean)))
        before = handle.trace.output.mean(dim=1)
        assert not torch.allclose(mean, before[:, : mean.size(1)], rtol=1e-2)


def test_backbones_get_whole_feature_maps(images):
    config = transformers.BeitConfig(**SIZES, **OWN, out_features=["stage1", "stage3"], reshape_hidden_states=True)
    model = transformers.AutoBackbone.from_config(config).eval()
    with torch.no_grad():
        plain = model(images).feature_maps
        with tg.attach(model, "tome", 0):
            assert equal(list(model(images).feature_maps), list(plain))
        with tg.attach(model, "tome", 3):
            maps = model(images).feature_maps
    assert [m.shape for m in maps] == [p.shape for p in plain] == [(2, 32, 4, 4)] * 2
    assert all(m.flatten(2).unique(dim=2).size(2) < 16 for m in maps[1:])  # clusters


@pytest.mark.parametrize("name", ["Beit", "Data2VecVision"])
def test_segmenters_get_whole_feature_maps(name, images):
    config = getattr(transformers, f"{name}Config")(
        **SIZES | {"num_hidden_layers": 4}, **OWN, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], num_labels=3
    )
    model = getattr(transformers, f"{name}ForSemanticSegmentation")(config).eval()
    plain = run(model, images)
    with tg.attach(model, "tome", 3):
        logits = run(model, images)
    assert logits[0].shape == plain[0].shape and logits[0].isfinite().all() and not equal(logits, plain)


@pytest.mark.parametrize("kind", ["beit_own", "beit_shared", "data2vec_own", "data2vec_shared"])
def test_other_image_sizes_are_served_as_the_model_takes_them(kind):
    wide = torch.randn(2, 3, 40, 24)
    model = make(kind)
    plain = run(model, wide)
    with tg.attach(model, "tome", 0):
        assert equal(run(model, wide), plain)
    with tg.attach(model, "tome", 3) as handle:
        together = run(model, wide)[0]
        assert handle.trace.counts == [15, 12, 9, 6] and handle.trace.grid == (5, 3)
        assert_close(together, torch.cat([run(model, image[None])[0] for image in wide]), rtol=1e-4, atol=1e-5)
        try:  # the size is followed with and without
            again = run(model, wide, interpolate_pos_encoding=True)[0]
        except ValueError as error:  # the older anatomy of a shared bias
            assert "interpolate_pos_encoding=False (got True" in str(error) and "shared" in kind
        else:
            assert_close(again, together)


@pytest.mark.parametrize("kind", ["beit_own", "beit_shared", "beit_both"])
def test_a_users_mask_bars_patches_beside_the_bias(kind, images):
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 5:9] = 0
    other = images.clone()
    other[:, :, 8:16] += 1.0  # the second row of patches, 4 to 7
    model = make(kind, attn_implementation="eager")
    if kind == "beit_both":
        model = model.beit
    plain = run(model, images, attention_mask=mask)
    if equal(plain, run(model, images)):
        pytest.skip("this transformers has the older BEiT, which takes no mask")
    with tg.attach(model, "tome", 0):
        assert equal(run(model, images, attention_mask=mask), plain)
    with tg.attach(model, First(), {1: 12, 2: 10}):
        ours, theirs = (run(model, x, attention_mask=mask)[0] for x in (images, other))
        seen = [0, 1, 2, 3, 4, 9, 10]  # the class token and patches that are not barred
        assert_close(ours[:, seen], theirs[:, seen])
        assert not torch.allclose(ours[:, seen], run(model, images)[0][:, seen], rtol=1e-3)
    model = make(kind)
    with tg.attach(model, First(), {1: 12}), pytest.raises(ValueError, match="attn_implementation='eager'"):
        getattr(model, "beit", model)(images, attention_mask=mask)


def test_a_mask_that_is_there_already_stays_when_another_is_added_to_the_shared_bias():
    bias, one, two = torch.randn(3, 1, 2, 5, 5).unbind(0)
    assert_close((SharedBias(bias) + one + two).tensor(), bias + one + two)


MAPS = {"tome": ("tome", 3), "topk": ("topk", 3), "gtp": (tg.GTP(sparsity=0.6), {1: 12, 3: 9}), "nothing": ("tome", 0)}


@pytest.mark.parametrize("size_bias", ["mask", "fold"])
@pytest.mark.parametrize("setting", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("kind", ["data2vec_own", "data2vec_shared"])
def test_data2vec_returns_the_maps_of_its_attention(kind, setting, size_bias, images):
    eager, fused = (make(kind, attn_implementation=name) for name in ("eager", "sdpa"))
    fused.load_state_dict(eager.state_dict())
    with torch.no_grad():
        plain = eager(images, output_attentions=True).attentions
        with tg.attach(eager, *setting, size_bias=size_bias) as handle:
            out = eager(images, output_attentions=True)
            assert_close(eager(images).last_hidden_state, out.last_hidden_state, rtol=1e-4, atol=1e-4)
        with tg.attach(fused, *setting, size_bias=size_bias):
            asked = fused(images, output_attentions=True)
    assert_close(asked.last_hidden_state, out.last_hidden_state, rtol=1e-4, atol=1e-4)
    assert asked.attentions == (None, None, None)  # as a fused attention without a strategy
    acts_inside = [handle.trace.counts[layer] for layer in range(3)]
    assert [m.size(2) - 1 for m in out.attentions] == acts_inside
    assert all(torch.allclose(m.sum(3), torch.ones(())) for m in out.attentions if handle.select.name != "gtp")
    assert_close(out.attentions[0] if handle.select.name != "gtp" else plain[0], plain[0])
    if handle.trace.counts[-1] == 16:
        assert all(map(torch.equal, out.attentions, plain))
