"""transformers models that need all their tokens are refused by name, and stay unchanged."""

import inspect

import pytest
import torch
from architectures import SIZES, spread
from needs import library
from quick import quick_only
from torch import nn
from torch.testing import assert_close

import tokengraph as tg

transformers = library("transformers")

TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30}
REFUSED = {
    "BlipVisionModel": ("BlipVisionConfig", {}),
    "GraniteDoclingVisionModel": ("GraniteDoclingVisionConfig", {"image_size": 64}),
    "EomtForUniversalSegmentation": ("EomtConfig", {"num_blocks": 3, "num_queries": 4, "num_upscale_blocks": 1}),
}
NAMED = {  # where another name says more
    "EomtForUniversalSegmentation": "in front of the queries of EomtForUniversalSegmentation .*num_blocks=3 of 3",
    "BlipVisionModel": "q_proj, k_proj and v_proj .*BlipAttention",
    "GraniteDoclingVisionModel": "leaves tokens as they are .*GraniteDoclingVisionModel with a connector",
}


def build(name, config, options):
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    return getattr(transformers, name)(getattr(transformers, config)(**SIZES | options)).eval()


def clip_of(kind):
    return spread(lambda: getattr(transformers, f"{kind}Model")(two(kind)))


def two(kind, **more):
    return getattr(transformers, f"{kind}Config")(text_config=TEXT, vision_config=SIZES, **more)


def refuses(model, match):
    types = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=match):
        tg.attach(model, "tome", 3)
    assert [type(m) for m in model.modules()] == types
    assert not any("_tokengraph" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_need_the_grid_are_refused_by_name(name):
    refuses(build(name, *REFUSED[name]), NAMED.get(name, name))


def test_layers_of_another_order_of_inputs_are_refused():
    if not hasattr(transformers, "MLCDVisionModel"):
        pytest.skip("this transformers has no MLCD")
    refuses(build("MLCDVisionModel", "MLCDVisionConfig", {}), "attention_mask before position_embeddings .*MLCD")


def older(model):
    """Returns whether the layers are those of transformers before 5.9."""
    layer = next(m for m in model.modules() if type(m).__name__.endswith("Layer"))
    inner = getattr(getattr(layer, "attention", None), "attention", None)
    return hasattr(inner, "query") or "causal_attention_mask" in inspect.signature(layer.forward).parameters


def test_a_tower_with_a_mask_of_patches_is_served():
    idefics = pytest.importorskip("transformers.models.idefics3")
    config = idefics.configuration_idefics3.Idefics3VisionConfig(**SIZES)
    model = idefics.modeling_idefics3.Idefics3VisionTransformer(config).eval()
    images, present = torch.randn(2, 3, 32, 32), torch.ones(2, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        plain = model(images).last_hidden_state
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(images, patch_attention_mask=present).last_hidden_state, plain)
        with tg.attach(model, "tome", {1: 8}, lift=True) as handle:
            assert model(images, patch_attention_mask=present).last_hidden_state.shape == plain.shape
            assert handle.trace.counts[-1] == 8
            present[0, -1] = False
            with pytest.raises(ValueError, match="mask"):
                model(images, patch_attention_mask=present)


def test_a_whole_language_model_gets_every_patch_back():
    pytest.importorskip("transformers", minversion="5.18")  # 5.0 records hidden states behind the hooks that lift them
    text = {**TEXT, "model_type": "llama", "num_key_value_heads": 4}
    vision = {**SIZES, "model_type": "clip_vision_model"}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    inputs = {"input_ids": torch.tensor([[1, *[5] * 16, 2]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad(), tg.attach(model.model.vision_tower, "tome", {1: 8}, lift=True):
        wanted = model(**inputs).logits
    for whole in (model, model.model, nn.Sequential(model)):
        with torch.no_grad(), tg.attach(whole, "tome", {1: 8}) as handle:
            assert torch.equal(model(**inputs).logits, wanted)
            assert handle.trace.counts[-1] == 8


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_dual_encoders_are_served(kind):
    model, images = clip_of(kind), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model.get_image_features(images)
        with tg.attach(model, "tome", 0):
            same = model.get_image_features(images)
        with tg.attach(model, "tome", 3) as handle:
            model.get_image_features(images)
            assert handle.trace.counts == [16, 13, 10, 7]
    same, plain = (getattr(x, "pooler_output", x) for x in (same, plain))
    assert torch.equal(same, plain)


def test_modules_of_ones_own_around_a_model_and_subclasses_are_served():
    class Segmenter(transformers.ViTPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.vit, self.decoder = transformers.ViTModel(config), nn.Linear(32, 3)

        def forward(self, images):
            return self.decoder(self.vit(images).last_hidden_state[:, 1:])

    config, images = transformers.ViTConfig(**SIZES), torch.randn(2, 3, 32, 32)
    with tg.attach(Segmenter(config).eval(), "tome", 3, lift=True) as handle, torch.no_grad():
        assert handle(images).shape == (2, 16, 3)


def test_a_depth_estimator_on_a_backbone_gets_whole_maps():
    backbone = transformers.Dinov2Config(
        **SIZES, out_features=["stage1", "stage2", "stage3"], reshape_hidden_states=False
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=32,
        reassemble_factors=[2, 1, 1],
        neck_hidden_sizes=[8, 8, 8],
        fusion_hidden_size=8,
        head_in_index=-1,
        head_hidden_size=8,
    )
    model, images = spread(lambda: transformers.DepthAnythingForDepthEstimation(config)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(images).predicted_depth
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(images).predicted_depth, plain)
        with tg.attach(model, tg.TokenMigration(), {1: 0.5, 3: "reconstruct"}):
            assert model(images).predicted_depth.shape == plain.shape


@pytest.mark.parametrize("kind", ["Beit", "Data2VecVision"])
def test_segmenters_that_ask_for_hidden_states_get_whole_ones(kind):
    options = {"use_relative_position_bias": True, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False}
    options["num_hidden_layers"] = 4
    config = getattr(transformers, f"{kind}Config")(**SIZES | options, num_labels=3)
    model, images = (
        spread(lambda: getattr(transformers, f"{kind}ForSemanticSegmentation")(config)),
        torch.ones(2, 3, 32, 32),
    )
    images[1] = torch.randn(3, 32, 32)
    with torch.no_grad():
        plain = model(images).logits
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(images).logits, plain)
        with tg.attach(model, "tome", 3) as handle:
            assert model(images).logits.shape == plain.shape and handle.trace.counts[-1] == 4


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_2", "kernels-community/flash-attn"])
@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "SiglipVision", "Beit"])
def test_attention_that_takes_no_mask_of_any_values_is_refused(kind, name):
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SIZES)).eval()
    if older(model):
        pytest.skip("attention of layers of before 5.9 is computed by the adapter where a mask is added")
    model.config._attn_implementation = name
    refuses(model, rf"'sdpa' or 'eager' \(got '{name}'.*set_attn_implementation")


@pytest.mark.parametrize("kind", quick_only(["Beit"], ["ViT", "Beit"]))
def test_attention_that_changes_after_attach_is_refused_once_a_mask_is_added(kind):
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    model, images = getattr(transformers, f"{kind}Model")(config).eval(), torch.randn(2, 3, 32, 32)
    if older(model):
        pytest.skip("attention of layers of before 5.9 is computed by the adapter where a mask is added")
    with tg.attach(model, "tome", 3), torch.no_grad():
        first = model(images).last_hidden_state
        model.config._attn_implementation = "eager"
        assert_close(model(images).last_hidden_state, first, rtol=1e-4, atol=1e-5)
        model.config._attn_implementation = "flex_attention"
        with pytest.raises(ValueError, match="'sdpa' or 'eager' .*got 'flex_attention'"):
            model(images)
