"""Fast-iTPN against outputs of the official code (see tests/reference/fast_itpn/README.md)."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.models import FastITPN, FastITPNPyramid
from tokengraph.models.gathering import full_attention
from tokengraph.models.main_block import MainBlock
from tokengraph.models.positions import interpolate_positions
from tokengraph.models.stem import Merge, PatchEmbed, StemBlock

TOLERANCE = {"atol": 2e-5, "rtol": 0}
NETWORKS = {"off_fast_itpn_cls": (64, 3), "off_fast_itpn_128": (128, 4)}


def weights(arrays: dict[str, torch.Tensor], case: str = "") -> dict[str, torch.Tensor]:
    prefix = f"{case}/sd/" if case else "sd/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def network(arrays: dict[str, torch.Tensor], size: int, depth: int) -> FastITPN:
    model = FastITPN(48, (1, 2, depth), 3, img_size=size, num_classes=7).eval()
    model.load_state_dict(weights(arrays))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_gives_the_official_stem_tokens_keys_and_logits(name, vectors):
    arrays = vectors("fast_itpn", name)
    model = network(arrays, *NETWORKS[name])
    with torch.no_grad():
        embedded = model.patch_embed(arrays["x"])
        c2, c3, x = model.forward_stem(arrays["x"])
        for rows, key in ((embedded, "patch_embed"), (c2, "C2"), (c3, "C3"), (x, "stem_out")):
            assert_close(rows.permute(0, 3, 1, 2), arrays[key], **TOLERANCE)
        tokens = x.flatten(1, 2) + model.pos_embed
        assert_close(tokens, arrays["tokens_0"], **TOLERANCE)
        for i, block in enumerate(model.main_blocks, 1):
            tokens, keys = block.run(tokens)
            assert_close(tokens, arrays[f"tokens_{i}"], **TOLERANCE)
            assert_close(keys, arrays[f"keys_{i}"], **TOLERANCE)
        features = model.forward_features(arrays["x"])
        assert_close(features, tokens, **TOLERANCE)
        assert_close(model.forward_head(features, pre_logits=True), arrays["pooled"], **TOLERANCE)
        assert_close(model(arrays["x"]), arrays["logits"], **TOLERANCE)


def test_the_main_block_gives_the_official_output_with_and_without_a_mask_or_a_bias(vectors):
    arrays = vectors("fast_itpn", "off_blocks")
    block = MainBlock(48, 3)
    block.load_state_dict(weights(arrays, "swiglu_subln"))
    x = arrays["x"]
    unseen = torch.zeros(2, 10).masked_fill(arrays["attn_mask"] == 0, -torch.inf)
    bias = arrays["rel_pos_bias"][None]
    with torch.no_grad():
        assert_close(block(x), arrays["swiglu_subln/y"], **TOLERANCE)
        assert_close(block.attn(block.norm1(x))[0], arrays["swiglu_subln/attn_y"], **TOLERANCE)
        for added, key in ((unseen, "y_attn_mask"), (bias, "y_rel_pos_bias")):
            out = block.run(x, lambda q, k, v, added=added: full_attention(q, k, v, added))[0]
            assert_close(out, arrays[f"swiglu_subln/{key}"], **TOLERANCE)


def test_the_stem_block_gives_the_official_output(vectors):
    arrays = vectors("fast_itpn", "off_blocks")
    block = StemBlock(12, 36)
    block.load_state_dict(weights(arrays, "convmlp"))
    out = block(arrays["convmlp/x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_close(out, arrays["convmlp/y"], **TOLERANCE)


def test_embedding_and_merge_give_the_official_outputs(vectors):
    arrays = vectors("fast_itpn", "off_ops")
    embed, merge = PatchEmbed(12), Merge(12)
    embed.load_state_dict(weights(arrays, "conv_patch_embed"))
    merge.load_state_dict(weights(arrays, "conv_patch_merge"))
    assert_close(embed(arrays["conv_patch_embed/x"]).permute(0, 3, 1, 2), arrays["conv_patch_embed/y"], **TOLERANCE)
    out = merge(arrays["conv_patch_merge/x"].permute(0, 2, 3, 1))
    assert_close(out.permute(0, 3, 1, 2), arrays["conv_patch_merge/y"], **TOLERANCE)


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (5, 7), (8, 8), (3, 2)])
def test_positions_are_resampled_as_the_official_code_does(grid, vectors):
    arrays = vectors("fast_itpn", "off_ops")
    out = interpolate_positions(arrays["interp/pos_embed"], (4, 4), grid)
    assert_close(out, arrays[f"interp/{grid[0]}x{grid[1]}"], **TOLERANCE)


def as_convolutions(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official iTPN pyramid, linear layers in unit layout, as the convolutions of the Fast-iTPN layout."""
    out = {}
    for name, value in state.items():
        if name.startswith("split") and name.endswith("reduction.weight"):  # rows: four blocks of f, (row, col) order
            value = value.view(2, 2, -1, value.size(1)).permute(3, 2, 0, 1)
            out[name.replace("weight", "bias")] = torch.zeros(value.size(1))
        elif value.dim() == 2:
            value = value[..., None, None]
        if name in ("align_dim_16to8.weight", "align_dim_8to4.weight"):
            out[name.replace("weight", "bias")] = torch.zeros(value.size(0))
        out[name] = value
    return out


def test_the_pyramid_gives_the_official_maps_of_itpn(vectors):
    arrays = vectors("fast_itpn", "off_itpn_pixel_pyramid")
    model = FastITPNPyramid(48, (2, 2, 0), 3, img_size=64, fpn_dim=16, fpn_depth=2, mlp_ratio=4)
    parts = ("align_dim", "split", "block_", "fpn_modules")
    state = as_convolutions({k: v for k, v in weights(arrays).items() if k.startswith(parts)})
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not any(name.startswith(parts) for name in missing)

    def rows(units: torch.Tensor) -> torch.Tensor:  # [B, 16, h, w, C] to [B, 4h, 4w, C]
        units = units.view(2, 4, 4, *units.shape[2:])
        return units.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)

    z = arrays["tokens_3"].view(2, 4, 4, 48)  # iTPN has no norm in front of its pyramid
    maps = model.top_down(rows(arrays["F4_units"]), rows(arrays["F8_units"]), z)
    for out, name in zip(maps, ("P2", "P3", "P4"), strict=True):
        assert_close(out.permute(0, 3, 1, 2), arrays[f"{name}_map"], **TOLERANCE)
