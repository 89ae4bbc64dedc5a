"""``lift=True`` gives every patch, in the last tokens and in the hidden states of each layer."""

import pytest
import torch
from architectures import IMAGES, TRANSFORMERS, from_timm, from_torchvision, from_transformers
from dense_cases import dense
from needs import library
from strategies import paired
from torch.testing import assert_close

import tokengraph as tg

SETTINGS = {
    "tome": ("tome", {1: 0.5, 2: 0.25}),
    "topk": (tg.TopK(score="norm"), {1: 0.5}),
    "migration": ("token-migration", None),
}


def states_of(output):
    return output.hidden_states if hasattr(output, "hidden_states") else output[-1]


@pytest.mark.parametrize(("name", "setting"), paired(TRANSFORMERS, SETTINGS, 1))
def test_lift_gives_every_patch_of_every_hidden_state(name, setting):
    library("transformers")
    model = from_transformers(name, **TRANSFORMERS[name])
    more = {"noise": torch.arange(16.0).expand(2, -1)} if "MAE" in name else {}

    def run(**given):
        with torch.no_grad():
            return model(IMAGES, output_hidden_states=True, **more, **given)

    shape = states_of(run())[0].shape
    select, schedule = SETTINGS[setting]
    with tg.attach(model, select, schedule, lift=True):
        lifted = states_of(run())
        assert [h.shape for h in lifted] == [shape] * 4
        assert [h.shape for h in states_of(run(return_dict=False))] == [shape] * 4
    if setting == "migration" or "Backbone" in name:  # what comes back, and maps, are lifted anyway
        return
    with tg.attach(model, select, schedule) as handle:
        coarse = states_of(run())
        prefix = handle.trace.num_prefix
        for layer, (ours, theirs) in enumerate(zip(coarse[:-1], lifted, strict=False)):
            assert ours.size(1) == prefix + handle.trace.counts[layer]
            assert_close(handle.trace.lift(ours, layer=layer), theirs[:, prefix:])


def test_lift_gives_every_patch_of_the_encoder_of_torchvision():
    model, seen = from_torchvision(), []
    with tg.attach(model, "tome", {1: 0.5}, lift=True), torch.no_grad():
        model.encoder.register_forward_hook(lambda module, args, output: seen.append(output))
        model(IMAGES)
    with tg.attach(model, "tome", {1: 0.5}) as handle, torch.no_grad():
        model(IMAGES)
    assert seen[0].shape == (2, 17, 32) and seen[1].shape == (2, 9, 32)
    assert_close(handle.trace.lift(seen[1]), seen[0][:, 1:])


@pytest.mark.parametrize("name", ["qwen3_vit_88m", "Hiera (hiera_base_224, ...)"])
def test_intermediate_maps_of_encoders_that_need_their_grid_are_whole(name):
    case = dense()["timm", name]
    model, images = case.make(), case.inputs[0]
    core = getattr(model, "encoder", model)
    with torch.no_grad():
        plain, wanted = model(images), core.forward_intermediates(images, intermediates_only=True)
        with tg.attach(model, "tome", {1: 0.5, 2: 0.25}) as handle:
            maps = core.forward_intermediates(images, intermediates_only=True)
            assert [m.shape for m in maps] == [m.shape for m in wanted]
            assert model(images).shape == plain.shape
            assert handle.trace.output is not None
            last = handle.trace.lift(handle.trace.output)
    assert handle.trace.counts == [16, 8, 4, 4]
    if "Hiera" not in name:  # whose last stage comes behind these blocks
        assert_close(maps[-1], last.transpose(1, 2).unflatten(2, (4, 4)))


@pytest.mark.parametrize("name", ["vit_medium_patch16_gap_240", "vit_base_patch16_siglip_224"])
def test_heads_that_pool_patches_leave_dropped_ones_out_with_lift_too(name):
    """Zeros stand for dropped patches in ``forward_features``; a mean must not count them."""
    model, outs = from_timm(name), []
    with torch.no_grad():
        for lift in (False, True):
            with tg.attach(model, tg.TopK(score="norm"), {1: 0.5}, lift=lift):
                outs.append(model(IMAGES))
    assert_close(*outs)
