"""Strategies that store removed tokens: maps of every layer are full, and the norm comes after lifting.

A law over all families that return maps. The reference is made of the blocks' own outputs: each is lifted,
with the stored tokens, then goes through the model's final norm.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from architectures import IMAGES, SIZES, cases, from_open_clip, spread
from needs import library, made
from strategies import paired
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.adapters import find_adapter

CASES = cases()
# Hiera takes images of its own size, and Qwen3's last block gives every patch itself: a test of its own is below.
APART = ("Hiera (hiera_base_224, ...)", "qwen3_vit_88m")
TIMM = [name for origin, name in CASES if origin == "timm" and name not in APART]
BACKBONES = ["Dinov2Backbone", "Dinov2WithRegistersBackbone", "DINOv3ViTBackbone", "PixioBackbone"]


@dataclass(frozen=True)
class Lossless(tg.ToMe):
    """ToMe that stores how far each token lies from its cluster's mean."""

    @property
    def stores(self):
        return True

    @property
    def restores(self):
        return True

    def residue(self, x, assignment):
        return x - assignment.lift(assignment.reduce(x)[0])


SETTINGS = {
    "migration": (tg.TokenMigration(), None),
    "migration, nothing comes back": (tg.TokenMigration(), {1: 0.7, 2: 0.5}),
    "migration, delta": (tg.TokenMigration(replenish="twin_delta"), {1: 0.7, 2: 0.5}),
    "a strategy of one's own": (Lossless(), 3),
}
settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
PAIRS = paired(TIMM, SETTINGS)
model_of = cache(lambda name: made(CASES[name]))


def outputs_of_blocks(model, run):
    """The output of each block in a run, ``[B, P+n, C]``."""
    core, adapter = find_adapter(model)
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in adapter.blocks(core)
    ]
    got = run()
    for hook in hooks:
        hook.remove()
    return got, seen


def rows_of(trace, tokens, layer):
    """Every patch, with the stored tokens."""
    return trace.lift(tokens, layer=layer, replenish=True)


def check_map(got, rows):
    """The map ``[B, C, H, W]`` has no holes and is made of these rows ``[B, N, C]``."""
    assert (got != 0).any(dim=1).all()
    assert_close(got.flatten(2).transpose(1, 2), rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "setting"), [(name, SETTINGS[s]) for name, s in PAIRS], ids=map("/".join, PAIRS))
def test_intermediates_of_timm_are_whole_before_and_behind_the_norm(name, setting):
    model = model_of(("timm", name))
    with tg.attach(model, *setting) as handle, torch.no_grad():
        for norm in (False, True):
            got, seen = outputs_of_blocks(
                model, lambda norm=norm: model.forward_intermediates(IMAGES, norm=norm, intermediates_only=True)
            )
            for layer, (each, tokens) in enumerate(zip(got, seen, strict=True), start=1):
                rows = rows_of(handle.trace, tokens, layer)
                check_map(each, model.norm(rows) if norm else rows)


@settings
def test_intermediates_of_qwen3_have_the_stored_tokens(setting):
    model = model_of(("timm", "qwen3_vit_88m"))
    with tg.attach(model, *setting) as handle, torch.no_grad():
        got, seen = outputs_of_blocks(model, lambda: model.forward_intermediates(IMAGES, intermediates_only=True))
        last = len(seen)
        for layer, (each, tokens) in enumerate(zip(got, seen, strict=True), start=1):
            check_map(each, tokens if layer == last else rows_of(handle.trace, tokens, layer))


@settings
def test_the_stage_behind_the_coarse_one_of_hiera_gets_every_token_with_what_was_stored(setting):
    case = CASES["timm", "Hiera (hiera_base_224, ...)"]
    model = model_of(("timm", "Hiera (hiera_base_224, ...)"))
    with tg.attach(model, *setting) as handle, torch.no_grad():
        _, seen = outputs_of_blocks(model, lambda: model.forward_features(*case.inputs))
        assert seen[-1].size(1) == 16 and (seen[-1] != 0).any(dim=2).all()
        assert handle.trace.counts[-1] == (16 if handle.select.stores else 7)
        assert seen[-1][0].unique(dim=0).size(0) > min(handle.trace.counts)  # no copies of the tokens that worked


def test_prefix_tokens_beside_a_map_are_normed_too():
    model = model_of(("timm", "vit_base_patch16_224"))
    asked = {"norm": True, "intermediates_only": True, "return_prefix_tokens": True, "output_fmt": "NLC"}
    with tg.attach(model, "token-migration") as handle, torch.no_grad():
        got, seen = outputs_of_blocks(model, lambda: model.forward_intermediates(IMAGES, **asked))
        by_name = model.forward_intermediates(IMAGES, **asked, output_dict=True)
        layers = model.get_intermediate_layers(IMAGES, n=3, norm=True, return_prefix_tokens=True)
        for i, ((rows, prefix), tokens) in enumerate(zip(got, seen, strict=True)):
            assert_close(prefix, model.norm(tokens[:, :1]))
            assert_close(rows, model.norm(rows_of(handle.trace, tokens, i + 1)))
            assert_close(by_name["image_intermediates"][i], rows)
            assert_close(by_name["image_intermediates_prefix"][i], prefix)
            assert_close(layers[i][0], rows)


@settings
def test_intermediates_of_open_clip_are_whole_before_and_behind_the_norm(setting):
    model = from_open_clip()
    with tg.attach(model, *setting) as handle, torch.no_grad():
        for norm in (False, True):
            got, seen = outputs_of_blocks(
                model, lambda norm=norm: model.forward_intermediates(IMAGES, normalize_intermediates=norm)
            )
            for layer, (each, tokens) in enumerate(zip(got["image_intermediates"], seen, strict=True), start=1):
                rows = rows_of(handle.trace, tokens, layer)
                check_map(each, model.ln_post(rows) if norm else rows)


@settings
@pytest.mark.parametrize("apply_norm", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_feature_maps_of_backbones_are_whole(name, apply_norm, setting):
    transformers = library("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    stages = [f"stage{i}" for i in (1, 2, 3)]
    config = getattr(transformers, name.replace("Backbone", "Config"))(
        **SIZES, out_features=stages, apply_layernorm=apply_norm
    )
    model = spread(lambda: getattr(transformers, name)(config))
    with tg.attach(model, *setting) as handle, torch.no_grad():
        got, seen = outputs_of_blocks(model, lambda: model(IMAGES).feature_maps)
        norm = getattr(model, "layernorm", None) or model.norm
        for layer, (each, tokens) in enumerate(zip(got, seen, strict=True), start=1):
            rows = rows_of(handle.trace, tokens, layer)
            normed = apply_norm or (name.startswith("DINOv3") and layer == 3)  # its last map always is
            check_map(each, norm(rows) if normed else rows)


@settings
@pytest.mark.parametrize("name", ["BeitModel", "Data2VecVisionModel", "ViTModel", "DINOv3ViTModel", "ViTMAEModel"])
def test_lift_gives_whole_tokens_and_hidden_states(name, setting):
    """Hidden states are from before the norm; if transformers puts the normed one last, that is full as well."""
    model = model_of(("transformers", name))
    with tg.attach(model, *setting, lift=True) as handle, torch.no_grad():
        got, seen = outputs_of_blocks(model, lambda: model(IMAGES, output_hidden_states=True))
        prefix = handle.trace.num_prefix
        rows = [rows_of(handle.trace, tokens, layer) for layer, tokens in enumerate(seen, start=1)]
        states = got.hidden_states[1:]
        for state, each in zip(states[:-1], rows[:-1], strict=True):
            assert_close(state[:, prefix:], each)
        assert all((state != 0).any(dim=2).all() and state.size(1) == prefix + 16 for state in states)
        assert (got.last_hidden_state != 0).any(dim=2).all()
        assert got.last_hidden_state.size(1) == prefix + 16


@pytest.mark.parametrize(("name", "setting"), [(name, SETTINGS[s]) for name, s in PAIRS], ids=map("/".join, PAIRS))
def test_lift_gives_whole_features_behind_the_norm(name, setting):
    model = model_of(("timm", name))
    with tg.attach(model, *setting, lift=True) as handle, torch.no_grad():
        got, seen = outputs_of_blocks(model, lambda: model.forward_features(IMAGES))
        assert handle.trace.counts[-1] == (16 if handle.select.stores else 7)
        assert_close(got, model.norm(seen[-1]))
        assert got.size(1) == handle.trace.num_prefix + 16


@settings
@pytest.mark.parametrize("kind", ["Beit", "Data2VecVision"])
def test_segmenters_get_whole_states_with_what_was_stored(kind, setting):
    transformers = library("transformers")
    options = {"out_indices": [1, 2, 3, 4], "use_auxiliary_head": False, "num_hidden_layers": 4, "num_labels": 3}
    config = getattr(transformers, f"{kind}Config")(**SIZES | options, use_relative_position_bias=True)
    model = spread(lambda: getattr(transformers, f"{kind}ForSemanticSegmentation")(config))
    schedule = {1: 0.7, 2: 0.5} if isinstance(setting[1], dict) else setting[1]
    with tg.attach(model, setting[0], schedule) as handle, torch.no_grad():
        got, seen = outputs_of_blocks(model, lambda: model(IMAGES, output_hidden_states=True))
        for layer, (state, tokens) in enumerate(zip(got.hidden_states[1:], seen, strict=True), start=1):
            assert_close(state[:, 1:], rows_of(handle.trace, tokens, layer))
