"""Heads that lay tokens out on a grid get every patch, attached as a whole or to the model inside.

Merging equal tokens changes nothing: a hook makes groups of four patches equal, a strategy merges each group, and the
head must give what it gives without.
"""

import pytest
import torch
from architectures import SIZES, spread
from fours import Fours, fours_made_equal
from needs import library
from quick import quick_only
from torch.testing import assert_close

import tokengraph as tg

transformers = library("transformers")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "mask_ratio": 0.0,
}
DPT = {
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "is_hybrid": False,
    "use_auxiliary_head": False,
}
MASKED = torch.zeros(2, 16, dtype=torch.bool)
HEADS = {  # name: options, the path of the model inside, more inputs, the output to compare
    "DPTForSemanticSegmentation": (DPT, "dpt", {}, "logits"),
    "DPTForDepthEstimation": (DPT, "dpt", {}, "predicted_depth"),
    "ViTForMaskedImageModeling": ({"encoder_stride": 8}, "vit", {"bool_masked_pos": MASKED}, "reconstruction"),
    "DeiTForMaskedImageModeling": ({"encoder_stride": 8}, "deit", {}, "reconstruction"),
    "BeitForMaskedImageModeling": (
        {"vocab_size": 30, "use_mask_token": True},
        "beit",
        {"bool_masked_pos": MASKED},
        "logits",
    ),
    "ViTMAEForPreTraining": (DECODER, "vit", {"noise": torch.arange(16.0).expand(2, -1)}, "logits"),
    "CLIPSegForImageSegmentation": (
        {"extract_layers": [0, 1, 2], "reduce_dim": 8, "decoder_num_attention_heads": 2},
        "clip.vision_model",
        {"input_ids": torch.tensor([[1, 2, 3]] * 2)},
        "logits",
    ),
}
for owl in ("OwlViT", "Owlv2"):
    HEADS[f"{owl}ForObjectDetection"] = (
        {"projection_dim": 32},
        f"{owl.lower()}.vision_model",
        {"input_ids": torch.tensor([[1, 2, 3]] * 2)},
        "pred_boxes",
    )
heads = pytest.mark.parametrize("name", HEADS)
SETTINGS = {
    "tome": ("tome", 3),
    "ailurus": ("ailurus", {1: 4}),  # a square: it could be taken for a smaller grid
    "topk": (tg.TopK(score="norm"), 3),
    "expedite": (tg.Expedite(clusters=(2, 2)), {1: "cluster"}),
    "grid-pool": ("grid-pool", {1: 0.25}),
    "migration": ("token-migration", None),
    "migration, nothing comes back": ("token-migration", {1: 0.7}),
}


def build(name):
    options = HEADS[name][0]
    stem = next(name.removesuffix(end) for end in (f"For{name.split('For')[1]}",))
    config = getattr(transformers, f"{stem}Config")
    if stem in ("CLIPSeg", "OwlViT", "Owlv2"):
        return spread(lambda: getattr(transformers, name)(config(text_config=TEXT, vision_config=SIZES, **options)))
    return spread(lambda: getattr(transformers, name)(config(**SIZES | options)))


def run(model, name):
    _, _, inputs, output = HEADS[name]
    with torch.no_grad():
        return getattr(model(pixel_values=IMAGES, **inputs), output)


def places(model, name):
    """The two models that one can attach to: the outer one, and the one inside it."""
    return model, model.get_submodule(HEADS[name][1])


@heads
def test_merging_equal_patches_changes_nothing_of_what_a_grid_head_gives(name):
    model = build(name)
    untouched = run(model, name)
    with fours_made_equal(model):
        plain = run(model, name)
        assert not torch.allclose(plain, untouched, rtol=1e-3, atol=1e-3)
        for place in places(model, name):
            with tg.attach(place, Fours(), {1: 4}) as handle:
                assert_close(run(model, name), plain, rtol=1e-4, atol=1e-4)
                assert handle.trace.counts[-1] == 4
    assert torch.equal(run(model, name), untouched)


@heads
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_model_inside_a_grid_head_gives_it_what_the_whole_gives(name, setting):
    model = build(name)
    plain, outs = run(model, name), []
    for place in places(model, name):
        with tg.attach(place, "tome", 0):
            assert torch.equal(run(model, name), plain)
        with tg.attach(place, *setting):
            outs.append(run(model, name))
    assert torch.equal(*outs) and outs[0].shape == plain.shape
    assert not torch.equal(outs[0], plain)


def test_the_model_inside_called_by_itself_keeps_its_coarse_tokens():
    model = build("ViTForMaskedImageModeling")
    with tg.attach(model.vit, "tome", 3) as handle, torch.no_grad():
        assert run(model, "ViTForMaskedImageModeling").shape == (2, 3, 32, 32)
        tokens = model.vit(IMAGES).last_hidden_state
        assert tokens.shape == (2, 8, 32) and handle.trace.lift(tokens).shape == (2, 16, 32)


def test_a_subclass_of_ones_own_is_served_like_its_parent():
    class Mine(transformers.ViTForMaskedImageModeling):
        pass

    model = spread(lambda: Mine(transformers.ViTConfig(**SIZES, encoder_stride=8)))
    for place in (model, model.vit):
        with tg.attach(place, "tome", 3), torch.no_grad():
            assert model(IMAGES).reconstruction.shape == (2, 3, 32, 32)


DPT = ["DPTForSemanticSegmentation", "DPTForDepthEstimation"]


@pytest.mark.parametrize("name", quick_only(DPT[1:], DPT))
def test_a_compiled_head_on_the_model_inside_gets_every_patch(name):
    torch.compiler.reset()
    model = build(name)
    with tg.attach(model.dpt, "ailurus", {1: 4}):
        eager = run(model, name)
        compiled = torch.compile(model, backend="eager")
        assert_close(run(compiled, name), eager, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_pixels_through_a_grid_head():
    model, images = build("DPTForDepthEstimation"), IMAGES.clone().requires_grad_()
    with tg.attach(model, "token-migration"):
        model(images).predicted_depth.square().sum().backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", [-1, -2, [-2, -1]])
def test_a_tower_of_llava_gives_every_patch_of_each_layer_with_lift(layer):
    text = {**TEXT, "model_type": "llama", "num_key_value_heads": 4}
    vision = {**SIZES, "model_type": "clip_vision_model"}
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=5, vision_feature_layer=layer
    )
    model = spread(lambda: transformers.LlavaForConditionalGeneration(config))
    inputs = {"input_ids": torch.tensor([[1, *[5] * 16, 2]] * 2), "pixel_values": IMAGES}
    tower = model.model.vision_tower
    with torch.no_grad(), fours_made_equal(tower):
        plain = model(**inputs).logits
        with tg.attach(tower, Fours(), {1: 4}, lift=True) as handle:
            assert_close(model(**inputs).logits, plain, rtol=1e-4, atol=1e-4)
            assert handle.trace.counts[-1] == 4
        with tg.attach(tower, Fours(), {1: 4}), pytest.raises(ValueError, match="tokens"):
            model(**inputs)  # 4 tokens for 16 places
