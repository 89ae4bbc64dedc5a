"""Grounding DINO and its like: towers of plain layers or ViTDet are served, those of Swin refused by name."""

import pytest
import torch
from architectures import SIZES, spread
from needs import library

import tokengraph as tg

transformers = library("transformers")

KINDS = ["GroundingDino", "MMGroundingDino"]
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
HEAD = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_feature_levels": 2}
WIDE = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
WIDE |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
DET = {"pretrain_image_size": 32, "window_size": 2, "window_block_indices": [0]}
STAGES = {"out_features": ["stage1", "stage2"]}


def grounding(kind, backbone):
    config = getattr(transformers, f"{kind}Config", None)
    if config is None:
        pytest.skip(f"this transformers has no {kind}")
    made = config(backbone_config=backbone, text_config=transformers.BertConfig(**TEXT), **HEAD, **WIDE)
    return spread(lambda: getattr(transformers, f"{kind}ForObjectDetection")(made))


def run(model):
    ids = torch.tensor([[1, 5, 6, 2]])
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images, input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_tower_gives_whole_maps_to_the_detector(kind):
    model = grounding(kind, transformers.Dinov2Config(**SIZES, **STAGES))
    plain = run(model)
    with tg.attach(model, "tome", 0):
        assert torch.equal(run(model).pred_boxes, plain.pred_boxes)
    with tg.attach(model, "ailurus", {1: 0.5}) as handle:
        ours = run(model)
        assert handle.trace.counts == [16, 8, 8, 8] and ours.pred_boxes.shape == plain.pred_boxes.shape
        assert not torch.equal(ours.pred_boxes, plain.pred_boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_windows_is_coarsened_inside_them(kind):
    model = grounding(kind, transformers.VitDetConfig(**SIZES, **DET, **STAGES))
    plain = run(model)
    with tg.attach(model, tg.WindowCoarsening("tome", keep=4)):
        assert torch.equal(run(model).pred_boxes, plain.pred_boxes)
    with tg.attach(model, tg.WindowCoarsening("cubist-merge", keep=0.5, before=0)) as handle:
        assert run(model).pred_boxes.shape == plain.pred_boxes.shape and handle.trace.coarse_grid == (2, 4)


@pytest.mark.parametrize("select", ["tome", tg.WindowCoarsening("tome", keep=8)], ids=["attach", "windows"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_swin_is_refused_by_name_with_another_way(kind, select):
    model = grounding(kind, transformers.SwinConfig(**SWIN, **STAGES))
    with pytest.raises(ValueError, match=r"(with a SwinBackbone|got SwinBackbone)\).*timm's SwinTransformer"):
        tg.attach(model, select, *([2] if select == "tome" else []))


@pytest.mark.parametrize("name", ["Swin", "Swinv2", "DonutSwin", "MaskFormerSwin"])
def test_every_swin_of_transformers_names_one_that_is_served(name):
    config = getattr(transformers, f"{name}Config")(**SWIN)
    kind = f"{name}Backbone" if name == "MaskFormerSwin" else f"{name}Model"
    with pytest.raises(ValueError, match=rf"got {kind}\).*timm's SwinTransformer"):
        tg.attach(getattr(transformers, kind)(config), "tome", 2)
