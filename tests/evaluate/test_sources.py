"""Models by name and as modules, at several resolutions, from all four libraries."""

import json
from dataclasses import replace

import pytest
import torch
from needs import library
from torch import nn
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.evaluate.costs import anatomy, multiply_adds
from tokengraph.evaluate.read import Reader, has_head
from tokengraph.evaluate.resolution import resized
from tokengraph.evaluate.settings import Setting
from tokengraph.evaluate.source import source_of
from tokengraph.testing import tiny_vit

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}


def timm_model(name, **options):
    timm = library("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model(name, **{**sizes, **options})


def transformers_model(kind, config, **options):
    transformers = library("transformers")
    return getattr(transformers, kind)(getattr(transformers, config)(**{**SMALL, "patch_size": 8, **options}))


def torchvision_model():
    models = library("torchvision").models
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )


def open_clip_model():
    transformer = pytest.importorskip("open_clip.transformer")
    return transformer.VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=16
    )


MODELS = {  # how to make it, whether it has logits, whether it takes other sizes
    "timm ViT": (lambda: timm_model("vit_small_patch16_224"), True, True),
    "timm GAP": (lambda: timm_model("vit_small_patch16_224", class_token=False, global_pool="avg"), True, True),
    "timm headless": (lambda: timm_model("vit_small_patch16_224", num_classes=0), False, True),
    "timm Eva": (lambda: timm_model("eva02_tiny_patch14_224"), True, True),
    "timm BEiT": (lambda: timm_model("beit_base_patch16_224"), True, True),
    "transformers ViT": (lambda: transformers_model("ViTForImageClassification", "ViTConfig"), True, True),
    "transformers DINOv2": (lambda: transformers_model("Dinov2Model", "Dinov2Config", mlp_ratio=2), False, True),
    "transformers CLIP": (lambda: transformers_model("CLIPVisionModel", "CLIPVisionConfig"), False, True),
    "torchvision": (torchvision_model, True, True),
    "open_clip": (open_clip_model, False, True),
}


@pytest.mark.parametrize("name", MODELS)
def test_reader_reads_models_of_every_library(name):
    make, headed, _ = MODELS[name]
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    plain = Reader(model)(images)
    assert (plain.logits is not None) == headed
    assert (
        plain.token.shape == (2, 32)
        and plain.patches.shape == (2, 32, 4, 4)
        and plain.counts.tolist() == [[16, 16]] * 3
    )
    with tg.attach(model, "tome", 3) as handle:
        coarse = Reader(model, handle)(images)
    assert coarse.patches.shape == plain.patches.shape and coarse.counts.tolist() == [[16] * 2, [13] * 2, [10] * 2]
    found = tg.fidelity(model, images, "tome:3")
    assert 0.3 < found.cost < 1 and 0.5 < found.class_cosine < 1 and (found.agreement is not None) == headed


@pytest.mark.parametrize("name", [name for name, (_, _, sizes) in MODELS.items() if sizes])
def test_resized_takes_a_smaller_image_and_keeps_its_own(name):
    make, _, _ = MODELS[name]
    model = make().eval()
    source = source_of(model)
    try:
        smaller = source.build(24)
    except ValueError as error:
        if "positions can be resampled" not in str(error):
            raise
        pytest.skip(str(error))  # timm 1.0.16 resamples positions of its plain ViTs alone
    outputs = Reader(smaller)(torch.randn(2, 3, 24, 24))
    assert outputs.patches.shape[2:] == (3, 3) and outputs.counts.tolist() == [[9, 9]] * 3
    assert Reader(model)(torch.randn(1, 3, 32, 32)).patches.shape[2:] == (4, 4)  # the first is as it was
    with tg.attach(smaller, "tome", 2) as handle:
        assert Reader(smaller, handle)(torch.randn(2, 3, 24, 24)).counts[:, 0].tolist() == [9, 7, 5]


def test_resized_at_its_own_size_changes_nothing():
    for make in (torchvision_model, open_clip_model):
        model, images = make().eval(), torch.randn(1, 3, 32, 32)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        other = source_of(model).build(32)
        torch.testing.assert_close(Reader(other)(images).token, Reader(model)(images).token, rtol=0, atol=1e-5)


def test_resized_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="multiple of the patch size 8 .got 30.. Try 32"):
        resized(tiny_vit(), 30)
    model = library("timm").create_model("naflexvit_base_patch16_gap", embed_dim=32, depth=1, num_heads=2)
    if not hasattr(model, "set_input_size"):
        with pytest.raises(ValueError, match="positions can be resampled"):
            resized(model, 64)


def test_source_of_takes_a_checkpoint(tmp_path):
    timm = library("timm")
    name = "test_vit"
    if not timm.is_model(name):
        pytest.skip("this timm has no model for tests")
    model = timm.create_model(name)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pt")
    source = source_of(name, checkpoint=tmp_path / "weights.pt")
    built = source.build(None)
    assert all(torch.equal(v, built.state_dict()[k]) for k, v in model.state_dict().items())
    assert source.config.size == 160 and source.build(128).patch_embed.img_size == (128, 128)
    torch.save({k: v for k, v in model.state_dict().items() if "blocks.0" not in k}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="Expected a checkpoint for the whole of test_vit"):
        source_of(name, checkpoint=tmp_path / "part.pt")
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(ValueError, match="another shape: head.weight .*--num-classes"):
        source_of(name, checkpoint=tmp_path / "three.pt")  # a head that stays random would give figures of nothing
    assert source_of(name, checkpoint=tmp_path / "three.pt", num_classes=3).build(None).num_classes == 3
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "none.pt")
    assert source_of(name, checkpoint=tmp_path / "none.pt", num_classes=0).build(128).num_classes == 0
    with pytest.raises(ValueError, match="missing in the checkpoint: head.weight"):
        source_of(name, checkpoint=tmp_path / "none.pt")


def test_source_of_gives_random_weights_only_where_asked(monkeypatch):
    timm = library("timm")
    if not timm.is_model("test_vit"):
        pytest.skip("this timm has no model for tests")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", "/nowhere/at/all")
    one, two = (source_of("test_vit", random_weights=True) for _ in range(2))
    assert one.weights == "random"
    assert torch.equal(one.build(None).patch_embed.proj.weight, two.build(128).patch_embed.proj.weight)
    with pytest.raises(ValueError, match="Expected weights of test_vit in the hub or its cache .*--checkpoint"):
        source_of("timm:test_vit").build(None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch16_224", "Did you mean 'vit_small_patch16_224'"),
        ("deit_tiny", "Did you mean 'deit_tiny_patch16_224'"),
        ("torchvision:vit_b_61", "Did you mean 'vit_b_16'"),
        ("open_clip:ViT-B-61", "Expected an open_clip model with weights"),
        ("no-one/nothing", "Expected weights of no-one/nothing"),
    ],
)
def test_source_of_says_what_a_name_could_be(name, message, monkeypatch):
    if name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    if "/" in name:
        library("transformers")
        monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        source_of(name)


def test_has_head_tells_logits_from_features():
    assert has_head(tiny_vit()) and not has_head(tiny_vit(num_classes=0))
    assert has_head(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) and has_head(torchvision_model())


@pytest.mark.parametrize("name", MODELS)
def test_anatomy_counts_the_weights_of_a_block(name):
    model = MODELS[name][0]()
    body = anatomy(model)
    hidden = {"timm Eva": 3 * 32 * 8 // 3 // 2, "open_clip": 64, "torchvision": 64}.get(name)
    hidden = hidden or (64 if name.startswith("transformers") else 128)
    if name != "timm Eva":
        assert (body.depth, body.channels, body.prefix, body.heads) == (2, 32, 0 if "GAP" in name else 1, 2)
        assert body.hidden == hidden
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    products = 16 * 17 * 32 * 2  # QK^T and AV of 16 patches, at most
    assert multiply_adds(body, [16] * 3)[0] < 17 * 2 * linear + 4 * products


def test_multiply_adds_are_half_of_the_operations_and_count_merging():
    body = anatomy(tiny_vit())
    plain, counted = multiply_adds(body, [16] * 4)
    by_hand = 3 * (17 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 17 * 17 * 32)
    assert plain == by_hand and counted
    bare = multiply_adds(body, [16, 12, 8, 4])[0]
    assert multiply_adds(body, [16, 12, 8, 4], tg.ToMe())[0] != bare
    assert anatomy(nn.Linear(2, 2)) is None


def test_source_of_takes_a_folder_of_transformers_with_its_processor(tmp_path):
    transformers = library("transformers")
    model = transformers_model("ViTForImageClassification", "ViTConfig", num_labels=7)
    model.save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    try:
        transformers.AutoImageProcessor.from_pretrained(tmp_path)
    except Exception as error:
        pytest.skip(f"this transformers makes no processor here: {error}")
    source = source_of(f"transformers:{tmp_path}")
    assert (source.config.size, source.config.mean, source.config.crop_mode) == (32, (0.1, 0.2, 0.3), "squash")
    assert source.config.interpolation == "bilinear"
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(Reader(source.build(None))(images).logits, model.eval()(images).logits, rtol=1e-4, atol=1e-5)
    assert Reader(source.build(24))(torch.randn(1, 3, 24, 24)).logits.shape == (1, 7)


def test_source_of_takes_the_tower_of_a_clip_and_the_classes_of_a_head(tmp_path):
    transformers = library("transformers")
    vision = {**SMALL, "patch_size": 8, "projection_dim": 16}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    outputs = Reader(source_of(f"transformers:{tmp_path}").build(None))(torch.randn(2, 3, 32, 32))
    assert outputs.logits is None and outputs.pooled.shape == (2, 64)


class Mine(nn.Module):
    """A model that no adapter in ADAPTERS serves, with a head."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.patch_embed, self.encoder = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoder(layer, 3)
        self.head, self.image_size = nn.Linear(16, 5), 32

    def forward(self, images):
        return self.head(self.encoder(self.patch_embed(images).flatten(2).transpose(1, 2)).mean(dim=1))


MINE = tg.adapters.EncoderLayers("encoder", num_prefix=0, grid=(4, 4), embedding="patch_embed")


def test_evaluate_takes_a_model_of_your_own_with_its_adapter(pictures, quick):
    torch.manual_seed(0)
    timed = replace(quick, time=True, time_rounds=3, time_batch=1)
    report = tg.evaluate(Mine().eval(), ["tome:4"], pictures, options=timed, adapter=MINE)
    row = report.row("tome:4")
    assert row.counts == (16, 12, 8, 4) and 0.4 < row.cost < 0.8 and 0 < row.metrics["class_cosine"] < 1
    assert row.over_ideal is not None  # its ideal ran too
    assert {r.name.partition(":")[0] for r in report.rows if r.kind == "control"} >= {"random", "grid-pool"}


def test_evaluate_refuses_an_adapter_of_another_model(pictures, quick):
    with pytest.raises(ValueError, match="Expected an adapter that serves VisionTransformer"):
        tg.evaluate(tiny_vit(), ["tome:4"], pictures, options=quick, adapter=MINE)
    with pytest.raises(TypeError, match=r"Expected a module beside adapter \(got str\)"):
        tg.evaluate("deit_tiny_patch16_224", ["tome:4"], pictures, options=quick, adapter=MINE)


def test_evaluate_takes_windows_and_refuses_untrained_spatial_paths(pictures, quick):
    timm = library("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}
    swin = timm.models.swin_transformer.SwinTransformer(num_classes=5, **sizes).eval()
    windows = tg.WindowCoarsening(tg.Expedite(clusters=(3, 3)), stage=0, before=1)
    settings = [Setting(windows), Setting(tg.DynamicSpatial(0.7), label="spatial"), Setting(windows, 3, label="twice")]
    report = tg.evaluate(swin, settings, pictures, options=replace(quick, time=True, time_rounds=3, time_batch=1))
    dense, coarse, spatial, twice = report.rows
    assert 0 < coarse.metrics["kl"] and not coarse.reason and coarse.speed is not None
    assert "Expected no schedule or options beside a WindowCoarsening" in twice.reason
    assert spatial.reason
