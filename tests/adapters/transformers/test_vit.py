"""transformers' vision models under a strategy: every strategy on every kind, statistics, maps, what is refused.

The laws that every model keeps are in ``test_architectures.py``.
"""

import pytest
import torch
from architectures import SIZES
from needs import library
from quick import quick_only
from strategies import STRATEGIES, check_alone, paired
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.adapters.base import strided_grid
from tokengraph.testing import tiny_vit
from tokengraph.testing.model_case import tensors

transformers = library("transformers")

KINDS = {
    "vit": ("ViTModel", "ViTConfig", {}),
    "vit_dropout": ("ViTModel", "ViTConfig", {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}),
    "vit_classifier": ("ViTForImageClassification", "ViTConfig", {"num_labels": 5}),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {"drop_path_rate": 0.2}),
    "dinov2_swiglu": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov2_classifier": ("Dinov2ForImageClassification", "Dinov2Config", {"num_labels": 5}),
    "dinov2_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 2}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}),
}


def make(kind, **more):
    name, config, options = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, name)(getattr(transformers, config)(**SIZES | options | more)).eval()


def run(model, x):
    torch.manual_seed(7)
    in_order = {"noise": torch.arange(16.0).expand(len(x), -1)} if "MAE" in type(model).__name__ else {}
    with torch.no_grad():
        return tensors(model(x, **in_order))


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "strategy"), paired(KINDS, STRATEGIES))
def test_every_strategy_runs_and_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]) as handle:
        together = run(model, images)[0]
        assert together.isfinite().all() and min(handle.trace.counts + handle.trace.counts_inside) < 16
        check_alone(together, [run(model, image[None])[0] for image in images], rtol=1e-4, atol=1e-5)


def own_name(name, model):
    """The name of a parameter in the model; transformers 5.0 to 5.8 use another one."""
    if name in model.state_dict():
        return name
    for a, b in (
        ("layers.", "encoder.layer."),
        *((f"attention.{part[0]}_proj", f"attention.attention.{part}") for part in ("query", "key", "value")),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(a, b)
    return name


@pytest.mark.parametrize("strategy", ["tome", "topk", "gtp", "gtp-sparse", "dpc-knn", "expedite"])
def test_a_vit_with_the_weights_of_timm_gives_what_timm_gives(strategy, images):
    library("timm")
    ours = tiny_vit(embed_dim=32, num_heads=4, mlp_ratio=2.0, num_classes=0)
    theirs = make("vit", layer_norm_eps=1e-6)
    copied = {}
    for name, value in ours.state_dict().items():
        for a, b in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("blocks.", "layers."),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("attn.proj", "attention.o_proj"),
            ("attn.", "attention."),
        ):
            name = name.replace(a, b)
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        for part, rows in zip("qkv", value.chunk(3), strict=True) if "qkv" in name else [("", value)]:
            copied[own_name(name.replace("qkv", f"{part}_proj"), theirs)] = rows
    report = theirs.load_state_dict(copied, strict=False)
    assert not report.unexpected_keys and all("pooler" in k for k in report.missing_keys), report
    with tg.attach(ours, *STRATEGIES[strategy]), tg.attach(theirs, *STRATEGIES[strategy]), torch.no_grad():
        assert_close(theirs(images).last_hidden_state, ours.forward_features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "dinov3", "clip"])
def test_statistics_are_those_of_the_models_own_eager_attention(kind, images):
    seen = {}

    class Spy(tg.Select):
        def __call__(self, tokens, budget):
            stats = tokens.attention
            seen[tokens.layer] = stats.class_row(), stats.column_sums(), stats.diagonal()
            return tg.topk(tokens.x.sum(dim=2), budget)

        merges = False

    model = make(kind, attn_implementation="eager")
    with tg.attach(model, Spy(), {1: 12}), torch.no_grad():
        maps = model(images, output_attentions=True).attentions
    prefix = maps[0].size(2) - 16
    wanted = maps[0][:, :, 0, prefix:], maps[0].sum(2)[..., prefix:], maps[0].diagonal(dim1=2, dim2=3)[..., prefix:]
    for ours, theirs in zip(seen[0], wanted, strict=True):
        assert_close(ours, theirs)
    assert [m.size(2) - prefix for m in maps] == [16, 12, 12]


@pytest.mark.parametrize("kind", ["vit", "dinov2", "siglip", "dinov3"])
def test_open_maps_are_edited_alike_by_eager_and_fused_attention(kind, images):
    outs = []
    for implementation in ("sdpa", "eager"):
        model = make(kind, attn_implementation=implementation)
        with tg.attach(model, tg.GTP(sparsity=0.6), {1: 12, 3: 9}), torch.no_grad():
            outs.append(model(images, output_attentions=implementation == "eager"))
    assert_close(outs[0].last_hidden_state, outs[1].last_hidden_state, rtol=1e-4, atol=1e-5)
    if outs[1].attentions is None:
        pytest.skip("layers of this older kind return no maps where a mask is added")
    zeros = [(m == 0).float().mean().item() for m in outs[1].attentions]
    assert zeros == pytest.approx([0.4, 0.0, 0.4], abs=0.03)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "siglip", "dinov3"])
def test_hidden_states_shrink_as_the_tokens_do(kind, images):
    model = make(kind)
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
        prefix = states[0].size(1) - 16
        assert [h.size(1) - prefix for h in states[:4]] == handle.trace.counts
        assert handle.trace.as_map(states[2], layer=2).shape == (2, 32, 4, 4)


def test_lift_gives_every_patch_again(images):
    model = make("vit")
    with tg.attach(model, "tome", 3, lift=True), torch.no_grad():
        assert model(images).last_hidden_state.shape == (2, 17, 32)
        assert model(images, return_dict=False)[0].shape == (2, 17, 32)


def test_a_classifier_that_averages_patches_sees_each_with_its_clusters_features(images):
    model = make("dinov2_classifier")
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        logits = model(images).logits
        tokens = model.dinov2.layernorm(handle.trace.output)
        mean = handle.trace.lift(tokens).mean(dim=1)
        assert_close(logits, model.classifier(torch.cat([tokens[:, 0], mean], dim=1)))


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_backbones_give_whole_feature_maps(name, images):
    config = getattr(transformers, f"{name}Config")(**SIZES, out_features=["stage1", "stage3"])
    model = transformers.AutoBackbone.from_config(config).eval()
    with torch.no_grad():
        plain = model(images).feature_maps
        with tg.attach(model, "tome", 0):
            assert all(map(torch.equal, model(images).feature_maps, plain))
        with tg.attach(model, "tome", 3):
            maps = model(images).feature_maps
    assert [m.shape for m in maps] == [p.shape for p in plain] == [(2, 32, 4, 4)] * 2


def test_rotary_tables_follow_the_tokens(images):
    model = make("dinov3")
    with tg.attach(model, tg.TopK(score="norm"), {1: 7}) as handle, torch.no_grad():
        out = model(images).last_hidden_state
        patch = handle.trace.lineage(1).ancestor
    with torch.no_grad():
        hidden, tables = model.embeddings(images), model.rope_embeddings(images)
        layers = getattr(model, "model", model).layer  # the model itself in transformers 5.0
        hidden = layers[0](hidden, position_embeddings=tables)
        for b in range(2):  # by hand, one image at a time
            own = torch.cat([hidden[b, :3], hidden[b, 3:][patch[b]]])[None]
            for layer in layers[1:]:
                own = layer(own, position_embeddings=tuple(t[patch[b]] for t in tables))
            assert_close(out[b], model.norm(own)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", quick_only(["gtp-sparse"], ["topk", "dynamicvit", "gtp-sparse"]))
@pytest.mark.parametrize("kind", quick_only(["dinov2_registers"], ["vit", "dinov2_registers", "siglip"]))
def test_compiles_in_one_graph_with_the_eager_result(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]), torch.no_grad():
        eager = tensors(model(images))[0]
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(tensors(compiled(images))[0], eager)


@pytest.mark.slow  # tests/adapters/timm/test_compile.py has it for timm
def test_other_image_sizes_compile_in_a_graph_each(images):
    """Budgets of symbolic sizes would take minutes to simplify."""
    model = make("dinov2")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        for height in (32, 48):
            x = images.repeat_interleave(2, dim=2)[:, :, :height]
            assert_close(tensors(compiled(x))[0], tensors(model(x))[0])
            assert handle.trace.grid == (height // 8, 4)


def test_patches_that_mae_shuffles_have_no_grid(images):
    model = make("mae")
    with tg.attach(model, "tome", 0) as handle, torch.no_grad():
        run(model, images)
        assert handle.trace.as_map().shape == (2, 32, 4, 4)
        tensors(model(images))
        with pytest.raises(ValueError, match="Expected patches in row-major order"):
            handle.trace.as_map()
    with tg.attach(model, "ailurus", {1: 0.5}), pytest.raises(ValueError, match="shuffled as in ViTMAE"):
        model(images)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 4}, {"stride": 4, "padding": 2}, {"padding": "valid"}, {"dilation": 2, "stride": 3}]
)
def test_patches_are_counted_as_the_convolution_does(options, images):
    convolution = torch.nn.Conv2d(3, 2, 8, **{"stride": 8} | options)
    x = images[:, :, :30]
    assert strided_grid(convolution, x) == convolution(x).shape[2:]


def test_learned_pruning_trains(images):
    for implementation in ("sdpa", "eager"):
        model = make("vit_classifier", attn_implementation=implementation).train()
        handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
        loss = model(images, labels=torch.tensor([1, 2])).loss + handle.trace.decisions[-1].mean()
        loss.backward()
        core = model.vit
        assert all(p.grad is not None and p.grad.isfinite().all() for p in core.score_predictor.parameters())
        handle.remove()


def test_a_graph_is_made_from_a_model(images):
    graph = tg.TokenGraph.from_model(make("dinov2_registers"), images, layer=1)
    assert graph.num_nodes == 32 and graph.grid == (4, 4) and graph.x.shape == (32, 32)


def test_what_cannot_be_served_is_refused_by_name(images):
    patches = make("siglip")
    getattr(patches, "vision_model", patches).embeddings.patch_embedding = torch.nn.Linear(192, 32)
    with pytest.raises(ValueError, match="a model of images .*patches of images of any shape"):
        tg.attach(patches, "tome", 3)
    with pytest.raises(ValueError, match="a model with a class token"):
        tg.attach(make("siglip"), tg.TopK(), 3)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="Expected a supported model"):
        tg.attach(text, "tome", 3)
