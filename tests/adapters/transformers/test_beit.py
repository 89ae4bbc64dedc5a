"""BEiT and Data2Vec of transformers under a strategy: statistics beside the bias, maps, masks, weights of timm."""

import pytest
import torch
from architectures import SIZES
from beit_cases import ABSOLUTE, OWN, STRATEGIES, TRANSFORMERS, First, OpenFirst, Uneven, equal, make, run
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing.model_case import tensors

try:
    from tokengraph.compat import transformers
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_every_strategy_runs_and_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]) as handle:
        together = run(model, images)[0]
        assert together.isfinite().all() and min(handle.trace.counts) < 16
        alone = torch.cat([run(model, image[None])[0] for image in images])
        assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_statistics_are_those_of_the_map_that_weighs_the_values(kind, images):
    seen = []
    for select in (First(), OpenFirst()):
        with tg.attach(make(kind), select, {1: 12, 2: 8}) as handle:
            run(handle.model, images)
        seen.append([t for step in select.seen for t in step])
    for ours, theirs in zip(*seen, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


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
    assert not report.missing_keys and set(report.unexpected_keys) == {"head.weight", "head.bias"}
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


@pytest.mark.parametrize("strategy", ["tome", "topk-class", "expedite"])
@pytest.mark.parametrize("kind", ["beit_both", "data2vec_both"])
def test_tables_of_the_bias_get_their_gradients_under_checkpointing(kind, strategy, images):
    grads = []
    for checkpointed in (False, True):
        model = make(kind, drop_path_rate=0.0).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with tg.attach(model, *STRATEGIES[strategy]):
            tensors(model(images))[0].square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    tables = [grad for name, grad in grads[0].items() if "relative_position_bias_table" in name]
    assert len(tables) == 4 and all(grad.abs().sum() > 0 for grad in tables)
    assert grads[0].keys() == grads[1].keys()
    for name, plain in grads[0].items():
        assert_close(plain, grads[1][name])


@pytest.mark.parametrize("kind", ["beit_own", "beit_both", "data2vec_own"])
def test_is_exported_with_the_eager_result(kind, images):
    model = make(kind)
    for strategy in ("tome", "topk-class"):
        with tg.attach(model, *STRATEGIES[strategy]), torch.no_grad():
            program = torch.export.export(model, (images,))
            assert_close(tensors(program.module()(images))[0], tensors(model(images))[0])


@pytest.mark.parametrize("kind", ["beit_both", "data2vec_own"])
def test_autocast_and_half_precision_stay_near(kind, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES["grid-pool"]):
        wanted = run(model, images)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(run(model, images)[0].float(), wanted, rtol=0.1, atol=0.1)
        assert_close(run(model.bfloat16(), images.bfloat16())[0].float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["beit_both", "data2vec_both"])
def test_learned_pruning_trains_beside_the_bias(kind, images):
    for implementation in ("sdpa", "eager"):
        model = make(kind, attn_implementation=implementation).train()
        handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
        (tensors(model(images))[0].square().mean() + handle.trace.decisions[-1].mean()).backward()
        named = dict(model.named_parameters())
        learned = [p for n, p in named.items() if "score_predictor" in n or "relative_position_bias_table" in n]
        assert len(learned) > 4 and all(p.grad is not None and p.grad.isfinite().all() for p in learned)
        handle.remove()


@pytest.mark.parametrize("kind", ["beit_own", "data2vec_shared"])
def test_folding_the_size_bias_gives_what_the_mask_gives(kind, images):
    model = make(kind)
    with tg.attach(model, "tome", 3):
        masked = run(model, images)[0]
    with tg.attach(model, "tome", 3, size_bias="fold"):
        assert_close(run(model, images)[0], masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [tg.ToMe(), tg.TopK(score="norm"), tg.TopK(score="norm", fuse=True)], ids=repr)
@pytest.mark.parametrize("kind", ["beit_both", "data2vec_own"])
def test_images_with_different_numbers_of_tokens_are_what_they_are_alone(kind, inner):
    images = torch.randn(4, 3, 32, 32) * torch.tensor([0.1, 1.0, 3.0, 10.0]).view(4, 1, 1, 1)
    model = make(kind)
    with tg.attach(model, Uneven(inner), [4, 3, 2]) as handle:
        together = run(model, images)[0]
        counts = [handle.trace.counts_per_image(layer) for layer in range(4)]
        assert any(len(set(c)) > 1 for c in counts)
        for b, image in enumerate(images):
            alone = run(model, image[None])[0][0]
            mine = together[b] if alone.dim() == 1 else together[b, : len(alone)]
            assert_close(mine, alone, rtol=1e-4, atol=1e-5)


def test_a_graph_is_made_from_a_model(images):
    for kind in ("beit_own", "data2vec_own"):
        graph = tg.TokenGraph.from_model(make(kind), images, layer=1)
        assert graph.num_nodes == 32 and graph.grid == (4, 4) and graph.x.shape == (32, 32)
