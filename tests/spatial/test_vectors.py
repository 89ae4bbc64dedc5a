"""Slow and fast path through attach on stock timm blocks, against vectors of the published code."""

import pytest
import torch
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.nn import gumbel_keep
from tokengraph.nn.slow_fast import merge
from tokengraph.spatial import DynamicSpatial, published_weights

timm = library("timm")


def _error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _load(handle, stage, block, v, prefix):
    predictor = {k[8:]: t for k, t in v.items() if k.startswith("sd.pred.")}
    predictor = published_weights({f"score_predictor.0.{k}": t for k, t in predictor.items()})
    handle.select.predictors.load_state_dict({k[16:]: t for k, t in predictor.items()})
    names = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}
    start = f"{prefix}sd.block."
    state = {k.removeprefix(start): t for k, t in v.items() if k.startswith(start)}
    state = {names.get(k.rsplit(".", 1)[0], "") + k[k.rindex(".") :] if "conv" in k else k: t for k, t in state.items()}
    state = {k: t for k, t in state.items() if k not in ("attn.relative_position_index", "attn_mask")}
    block.load_state_dict(state, strict=True)
    stage.downsample = nn.Identity()
    return names


def _convnext(v):
    model = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 8)).eval()
    handle = tg.attach(model, DynamicSpatial(layers=[0], ratios=[float(v["ratio"])], remerge=False))
    stage = model.stages[2]
    names = _load(handle, stage, stage.blocks[0], v, "")
    return handle, stage, stage.blocks[0], names


def _swin(v, shift):
    model = timm.models.SwinTransformer(
        img_size=64,
        patch_size=2,
        embed_dim=6,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 3, 3),
        window_size=4,
        drop_path_rate=0.0,
    ).eval()
    handle = tg.attach(model, DynamicSpatial(layers=[0], ratios=[float(v["ratio"])], remerge=False))
    stage = model.layers[2]
    block = stage.blocks[0]
    assert block.input_resolution == (8, 8)
    block.shift_size = (shift, shift)
    block.register_buffer("attn_mask", block.get_attn_mask(), persistent=False)  # of this shift
    _load(handle, stage, block, v, f"s{shift}.")
    return handle, stage, block


def _sets(handle, v):
    slow = handle.trace.stages[0][1].slow.view(3, 44) - 64 * torch.arange(3)[:, None]
    assert torch.equal(slow.sort(1)[0], v["idx_slow"].sort(1)[0])


def test_convnext_evaluation_is_reproduced(vectors):
    v = vectors("dynamicvit", "adablock_convnext")
    handle, stage, block, _ = _convnext(v)
    seen = []
    block.conv_dw.register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        out = stage(v["x"])
        dense = block(v["x"])
    _sets(handle, v)
    assert _error(handle.trace.scores[0], v["pred_logprob"].flatten(2).transpose(1, 2)) < 2e-5
    assert _error(seen[0], v["dwconv"]) < 2e-5
    assert _error(out, v["out"]) < 2e-5 and _error(dense, v["out_dense"]) < 2e-5


def test_convnext_training_is_reproduced_with_gradients(vectors):
    v = vectors("dynamicvit", "adablock_convnext")
    handle, stage, block, names = _convnext(v)
    block.train()
    x1, x2, mask = (v[k].clone().requires_grad_() for k in ("train_x1", "train_x2", "train_mask"))
    o1, o2 = block(x1, mask[:, 0], x2)
    assert _error(o1, v["train_o1"]) < 2e-5 and _error(o2, v["train_o2"]) < 2e-5
    ((o1 * v["cot1"]).sum() + (o2 * v["cot2"]).sum()).backward()
    for ours, name in ((x1, "x1"), (x2, "x2"), (mask, "mask")):
        assert _error(ours.grad, v[f"grad_{name}"]) < 2e-4, name
    back = {new: old for old, new in names.items()}
    for name, parameter in block.named_parameters():
        stem, _, kind = name.rpartition(".")
        assert _error(parameter.grad, v[f"grad.{back.get(stem, stem)}.{kind}".replace("..", ".")]) < 2e-4, name


@pytest.mark.parametrize("shift", [0, 2])
def test_swin_evaluation_is_reproduced(vectors, shift):
    v = vectors("dynamicvit", "adablock_swin")
    handle, stage, block = _swin(v, shift)
    x = v["x"].view(3, 8, 8, 24)
    with torch.no_grad():
        out, dense = stage(x).flatten(1, 2), block(x).flatten(1, 2)
        mixed, _ = block.mix(x)
    _sets(handle, v)
    assert _error(handle.trace.scores[0], v["pred_logprob"]) < 2e-5
    assert _error(mixed.flatten(1, 2), v[f"s{shift}.after_attn"]) < 2e-5
    assert _error(out, v[f"s{shift}.out"]) < 2e-5 and _error(dense, v[f"s{shift}.out_dense"]) < 2e-5


@pytest.mark.parametrize("shift", [0, 2])
def test_swin_training_is_reproduced_with_gradients(vectors, shift):
    v = vectors("dynamicvit", "adablock_swin")
    handle, stage, block = _swin(v, shift)
    block.train()
    x1, x2, mask = (v[k].unflatten(1, (8, 8)).clone().requires_grad_() for k in ("train_x1", "train_x2", "train_mask"))
    o1, o2 = block(x1, mask[..., 0], x2)
    assert _error(o1.flatten(1, 2), v[f"s{shift}.train_o1"]) < 2e-5
    assert _error(o2.flatten(1, 2), v[f"s{shift}.train_o2"]) < 2e-5
    ((o1.flatten(1, 2) * v["cot1"]).sum() + (o2.flatten(1, 2) * v["cot2"]).sum()).backward()
    for ours, name in ((x1, "x1"), (x2, "x2"), (mask, "mask")):
        assert _error(ours.grad.flatten(1, 2), v[f"s{shift}.grad_{name}"]) < 2e-4, name
    if shift:
        for name, parameter in block.named_parameters():
            assert _error(parameter.grad, v[f"s2.grad.{name}"]) < 2e-4, name


@pytest.mark.parametrize("family", ["convnext", "swin"])
def test_training_decisions_are_reproduced(vectors, family):
    v = vectors("dynamicvit", f"adablock_{family}")
    handle, stage = _convnext(v)[:2] if family == "convnext" else _swin(v, 0)[:2]

    def rows(name):
        return v[name].flatten(2).transpose(1, 2) if family == "convnext" else v[name]

    x = rows("x")
    for call in (1, 2):
        logp = handle.select.predictors[0](x)
        mask = gumbel_keep(logp, noise=rows(f"pred_train_noise{call}"))
        assert _error(logp, rows(f"pred_train_logits{call}")) < 2e-5
        assert torch.equal(mask[..., None].detach(), rows(f"pred_train_mask{call}"))
        x = merge(rows("train_x1"), rows("train_x2"), mask[..., None])
