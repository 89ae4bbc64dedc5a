"""All classes of transformers that take ``pixel_values``, tiny: refused by name, or merging equal patches is exact.

Models with a language model are refused as a whole; attached inside with ``lift=True``, and without it where their
projector folds a grid, they get the features of every patch.
"""

import inspect
from contextlib import suppress

import pytest
import torch
from architectures import spread
from fours import Fours, fours_made_equal
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.adapters import find_adapter

transformers = library("transformers")
pytestmark = pytest.mark.slow

SMALL = {
    **dict.fromkeys("hidden_size d_model embed_dim encoder_hidden_size out_hidden_size embedding_size".split(), 32),
    **dict.fromkeys("text_embed_dim vision_embed_dim vision_hidden_size decoder_hidden_size image_size".split(), 32),
    **dict.fromkeys("num_hidden_layers depth num_layers encoder_layers decoder_layers num_experts".split(), 2),
    **dict.fromkeys("num_attention_heads num_key_value_heads num_heads encoder_attention_heads".split(), 4),
    **dict.fromkeys("decoder_attention_heads decoder_num_attention_heads num_query_tokens".split(), 4),
    **dict.fromkeys("intermediate_size mlp_dim encoder_ffn_dim decoder_ffn_dim decoder_intermediate_size".split(), 64),
    **dict.fromkeys("decoder_num_hidden_layers cross_attention_frequency num_hidden_groups".split(), 1),
    "patch_size": 8, "vocab_size": 100, "projection_dim": 16, "head_dim": 8, "qk_rope_head_dim": 4,
    "num_local_experts": 2, "moe_intermediate_size": 32, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
SERVED_AT_LEAST = 40  # of transformers 5.23 56 run; of an older one fewer


def shrink(config):
    """Sets small sizes in a config, and in configs inside it, under these names."""
    for name, value in SMALL.items():
        now = config.__dict__.get(name)
        if isinstance(now, int | float) and not isinstance(now, bool):
            with suppress(Exception):
                setattr(config, name, value)
        elif isinstance(now, list | tuple) and name in ("image_size", "patch_size"):
            setattr(config, name, type(now)([value] * len(now)))
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:2]
    for part in list(config.__dict__.values()):
        if isinstance(part, transformers.PreTrainedConfig):
            shrink(part)
    return config


def classes():
    for name in sorted(dir(transformers)):
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) and kind.config_class is not None:
            with suppress(Exception):
                if "pixel_values" in inspect.signature(kind.forward).parameters:
                    yield name, kind


def tiny(kind):
    """An instance with weights, or ``None`` if its config cannot be made small this way."""
    try:
        config = shrink(kind.config_class())
        with torch.device("meta"):
            model = kind(config)
        if sum(p.numel() for p in model.parameters()) > 10**8:
            return None
        find_adapter(model)  # no need to make the others
        return spread(lambda: kind(config))
    except Exception:
        return None


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    parts = list(output.values()) if isinstance(output, dict) else output
    return [t for part in parts for t in tensors(part)] if isinstance(parts, list | tuple) else []


def grid_and_images(model):
    core, adapter = find_adapter(model)
    side = core.config.image_size
    side = side if isinstance(side, int) else side[0]
    height, width = adapter.grid(core)
    return core, height * width, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def exact(model, kind):
    """Returns whether merging equal patches is exact; ``None`` if the class takes other inputs, or is refused."""
    try:
        core, patches, images = grid_and_images(model)
        inputs = {"pixel_values": images}
        takes = inspect.signature(kind.forward).parameters
        if "input_ids" in takes:
            inputs["input_ids"] = torch.tensor([[1, 2, 3, 49]] * 2)
        if "noise" in takes:
            core.config.mask_ratio, inputs["noise"] = 0.0, torch.arange(float(patches)).expand(2, -1)
        with torch.no_grad(), fours_made_equal(model):
            plain = tensors(model(**inputs))
    except Exception:
        return None
    try:
        handle = tg.attach(model, Fours(), {1: patches // 4})
    except (ValueError, TypeError) as error:
        assert "Expected" in str(error)
        return None
    with torch.no_grad(), fours_made_equal(model), handle:
        out = tensors(model(**inputs))
        prefix = handle.trace.num_prefix
    coarse, fine = prefix + patches // 4, prefix + patches
    pairs = list(zip(out, plain, strict=True))
    names = [name for name, _ in (*core.named_modules(), *core.named_parameters())]
    rotary = any("rope" in n or "rotary" in n or "mid_position" in n for n in names)  # where equal patches differ
    return all(close(a, b) or rotary or (a.size(1), b.size(1)) == (coarse, fine) for a, b in pairs)


def test_every_class_that_is_served_gives_what_it_gives_without_for_equal_patches():
    ran, wrong = 0, []
    for name, kind in classes():
        model = tiny(kind)
        verdict = None if model is None else exact(model, kind)
        ran += verdict is not None
        wrong += [name] if verdict is False else []
    assert not wrong
    assert ran >= SERVED_AT_LEAST


def features(model, images):
    """The image features for the language model."""
    with torch.no_grad():
        return tensors(model.get_image_features(pixel_values=images))


def speaker(kind):
    """A tiny model of the class, its supported tower, patches and images; ``None`` if it is of another kind."""
    with suppress(Exception):
        model = tiny(kind)
        if isinstance(getattr(model, "language_model", None), nn.Module):
            core, patches, images = grid_and_images(model)
            tg.attach(core, Fours(), {1: patches // 4}).remove()
            features(model, images)
            return model, core, patches, images
    return None


def fewer_or_equal(coarse, plain, patches, prefix):
    """Compares features of groups with those of their first patches, or, where every patch is there, all features."""
    for ahead in (0, prefix):  # some leave the class token out
        if coarse.size(-2) == ahead + patches // 4 and plain.size(-2) == ahead + patches:
            return close(coarse[..., ahead:, :], plain[..., ahead::4, :])
    return close(coarse, plain)


def test_every_language_model_gets_the_grid_that_its_projector_folds():
    seen, wrong = set(), []
    for name, kind in classes():
        if not hasattr(kind, "get_image_features") or (made := speaker(kind)) is None:
            continue
        model, core, patches, images = made
        seen.add(name)
        with fours_made_equal(core):
            plain = features(model, images)
            with tg.attach(model, Fours(), {1: patches // 4}):
                if not all(map(close, features(model, images), plain)):
                    wrong.append((name, "whole"))
            with tg.attach(core, Fours(), {1: patches // 4}, lift=True):
                if not all(map(close, features(model, images), plain)):
                    wrong.append((name, "lift"))
            with tg.attach(core, Fours(), {1: patches // 4}) as handle:
                pairs = zip(features(model, images), plain, strict=True)
                if not all(fewer_or_equal(a, b, patches, handle.trace.num_prefix) for a, b in pairs):
                    wrong.append((name, "coarse"))
    assert not wrong
    assert {"AyaVisionModel", "Cohere2VisionModel", "PaliGemmaModel"} <= seen
