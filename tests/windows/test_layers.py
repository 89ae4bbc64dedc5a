"""WindowCoarsening in the vision encoders of transformers: SAM, SAM-HQ, SAM 2 and ViTDet."""

import pytest
import torch
from needs import library
from torch import nn
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.testing import AttachCase, check_attach
from tokengraph.windows import WindowCoarsening

transformers = library("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 40, "patch_size": 4}
SAM = {"mlp_dim": 48, "window_size": 4, "global_attn_indexes": [1, 3], "output_channels": 8}
DET = {
    "pretrain_image_size": 40,
    "window_size": 4,
    "window_block_indices": [0, 2],
    "residual_block_indices": [2],
    "use_relative_position_embeddings": True,
    "out_features": ["stage2", "stage3", "stage4"],
}
HIERA = {
    "hidden_size": 8,
    "num_attention_heads": 1,
    "image_size": [64, 64],
    "window_positional_embedding_background_size": [4, 4],
    "blocks_per_stage": [1, 1, 4, 1],
    "embed_dim_per_stage": [8, 16, 24, 32],
    "num_attention_heads_per_stage": [1, 2, 3, 4],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [4],
}
FPN = {
    "backbone_channel_list": [32, 24, 16, 8],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 8,
}
SMALL = Expedite(clusters=(3, 3), inv_temperature=0.5)
KINDS = {
    "expedite": WindowCoarsening(SMALL, before=0),
    "expedite-until": WindowCoarsening(SMALL, before=1, until=3),
    "cubist-merge": WindowCoarsening(tg.CubistMerge(coarse=(3, 3)), before=0),
    "tome": WindowCoarsening("tome", keep=9),
}


def spread(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def sam(kind="Sam"):
    config = getattr(transformers, f"{kind}VisionConfig")(**SIZES, **SAM)
    return spread(getattr(transformers, f"{kind}VisionModel")(config))


def sam_hq():
    return sam("SamHQ")


def vitdet():
    return spread(transformers.VitDetBackbone(transformers.VitDetConfig(**SIZES, **DET)))


def sam2():
    config = transformers.Sam2VisionConfig(backbone_config=transformers.Sam2HieraDetConfig(**HIERA), **FPN)
    return spread(transformers.Sam2VisionModel(config))


MAKERS = [sam, sam_hq, vitdet, sam2]
BLOCKS = {
    sam: lambda m: m.vision_encoder.layers[0],
    sam_hq: lambda m: m.vision_encoder.layers[0],
    vitdet: lambda m: m.encoder.layer[0],
    sam2: lambda m: m.backbone.blocks[3],
}
every_model = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def images(make, count=2, dtype=torch.float32):
    side = 64 if make is sam2 else 40
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def run(model, x):
    with torch.no_grad():
        output = model(x, output_hidden_states=True)
    return [t for part in output.values() for t in ((part,) if isinstance(part, torch.Tensor) else part)]


@every_model
@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_hidden_states_keep_their_shapes(make, kind):
    model, x = make(), images(make)
    plain = run(model, x)
    with tg.attach(model, KINDS[kind]):
        coarse = run(model, x)
    assert [t.shape for t in coarse] == [t.shape for t in plain]
    assert not all(torch.equal(a, b) for a, b in zip(coarse, plain, strict=True))


@every_model
@pytest.mark.parametrize("select", [WindowCoarsening(Expedite(clusters=(4, 4))), WindowCoarsening("tome", keep=16)])
def test_nothing_removed_is_bit_identical(make, select):
    model, x = make(), images(make)
    plain = run(model, x)
    with tg.attach(model, select):
        assert all(torch.equal(a, b) for a, b in zip(run(model, x), plain, strict=True))


@every_model
@pytest.mark.parametrize("kind", ["expedite", "tome"])
def test_the_laws_of_attaching_hold(make, kind):
    case = AttachCase(make, images(make), lambda m: tg.attach(m, KINDS[kind]), BLOCKS[make])
    check_attach(case)


@every_model
def test_an_image_is_what_it_is_alone(make):
    model, x = make().double(), images(make, dtype=torch.float64)
    with tg.attach(model, KINDS["expedite"]):
        together, alone = run(model, x), run(model, x[:1])
    for a, b in zip(together, alone, strict=True):
        assert_close(a[:1], b)


@pytest.mark.parametrize("make", [sam, vitdet], ids=["sam", "vitdet"])
def test_hidden_states_between_coarse_layers_are_restored_from_the_clusters(make):
    model, seen = make(), []
    layers = model.encoder.layer if make is vitdet else model.vision_encoder.layers
    with tg.attach(model, WindowCoarsening(SMALL, before=1)) as handle, torch.no_grad():
        layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
        state = model(images(make), output_hidden_states=True).hidden_states[2]
        if make is vitdet:
            assert seen[0][0].shape == (2, 24, 9, 9)
            assert torch.equal(state, handle.trace.as_map(seen[0][0].permute(0, 2, 3, 1)))
        else:
            assert seen[0].shape == (2, 9, 9, 24)
            assert torch.equal(state, handle.trace.as_map(seen[0]).permute(0, 2, 3, 1))


@every_model
def test_training_reaches_every_parameter_also_under_checkpointing(make):
    found = []
    for checkpointed in (False, True):
        model = make().train()
        if checkpointed and not model.supports_gradient_checkpointing:
            continue
        with tg.attach(model, KINDS["expedite"]):
            if checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            output = model(images(make), output_hidden_states=False)
            tensors = [t for v in output.values() for t in ((v,) if isinstance(v, torch.Tensor) else v)]
            torch.stack([t.square().mean() for t in tensors]).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(g.isfinite().all() for g in found[0].values())
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in other.items():
            assert_close(gradient, found[0][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [(44, 28), (12, 60)])
def test_vitdet_takes_images_of_other_sizes(side):
    model, x = vitdet(), torch.randn(2, 3, *side)
    plain = model(x).feature_maps
    with tg.attach(model, KINDS["expedite"]):
        coarse = model(x).feature_maps
    assert [m.shape for m in coarse] == [m.shape for m in plain]


def test_prompts_and_mask_decoder_of_sam_take_the_coarse_encoder():
    prompt = {"hidden_size": 8, "image_size": 40, "patch_size": 4, "mask_input_channels": 4}
    decoder = {"hidden_size": 8, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 8}
    config = transformers.SamConfig(
        vision_config=SIZES | SAM, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    config.vision_config.num_pos_feats = 4
    model = spread(transformers.SamModel(config))
    points = {"pixel_values": images(sam), "input_points": torch.tensor([[[[20.0, 20.0]]]] * 2)}
    with torch.no_grad():
        plain = model(**points)
        with tg.attach(model, KINDS["expedite"]) as handle:
            coarse = model(**points)
            assert handle.trace.counts == [100, 81, 81, 81, 100]
        assert torch.equal(model(**points).pred_masks, plain.pred_masks)
    assert coarse.pred_masks.shape == plain.pred_masks.shape and coarse.pred_masks.isfinite().all()
    assert not torch.equal(coarse.pred_masks, plain.pred_masks)


def test_a_stage_that_sam_2_lacks_and_a_stage_of_sam_are_refused():
    with pytest.raises(ValueError, match=r"0 <= stage < 4, the stages of the model \(got stage=4\)"):
        tg.attach(sam2(), WindowCoarsening("tome", keep=9, stage=4))
    with pytest.raises(ValueError, match="no stage for SamVisionEncoder"):
        tg.attach(sam(), WindowCoarsening("tome", keep=9, stage=2))
    with pytest.raises(ValueError, match="one supported model .*2 inside"):
        tg.attach(nn.ModuleList([sam(), vitdet()]), WindowCoarsening("tome", keep=9))


def test_vitmatte_is_served_around_its_backbone():
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "patch_size": 16, "image_size": 64}
    backbone = transformers.VitDetConfig(
        **sizes, **DET | {"pretrain_image_size": 64, "out_features": ["stage4"]}, num_channels=4
    )
    head = {"convstream_hidden_sizes": [8, 8, 8], "fusion_hidden_sizes": [8, 8, 8, 8]}
    config = transformers.VitMatteConfig(backbone_config=backbone, hidden_size=24, batch_norm_eps=1e-5, **head)
    model, x = spread(transformers.VitMatteForImageMatting(config)), torch.randn(1, 4, 128, 96)
    with torch.no_grad():
        plain = model(x).alphas
        with tg.attach(model, KINDS["expedite"]) as handle:
            coarse = model(x).alphas
            assert handle.trace.counts == [48, 36, 36, 36, 48]
        assert torch.equal(model(x).alphas, plain)
    assert coarse.shape == plain.shape and not torch.equal(coarse, plain)
