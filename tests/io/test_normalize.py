"""normalize: a model's own mean and deviation, also where it lies inside another, and for one channel."""

import json

import pytest
import torch
from needs import library
from torch import nn

from tokengraph.io.mean_std import CLIP, HALF, IMAGENET, find_mean_std, input_channels
from tokengraph.io.photo import LUMA, normalize
from tokengraph.testing import tiny_vit

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = {**TINY, "image_size": 32, "patch_size": 8}


class Says(nn.Identity):
    def __init__(self, **config):
        super().__init__()
        self.pretrained_cfg = config


def test_normalize_uses_the_models_own_mean_and_deviation():
    photo = torch.full((3, 1, 1), 0.5)
    assert normalize(photo, nn.Identity()).flatten().tolist() == [0, 0, 0]
    model = Says(mean=(0.0, 0.5, 1.0), std=(1.0, 0.25, 0.5))
    assert normalize(photo, model).flatten().tolist() == [0.5, 0, -1]
    assert normalize(photo.double(), model).dtype == torch.float64


def test_normalize_finds_the_model_inside_wrappers():
    inner = Says(mean=(0.0, 0.5, 1.0), std=(1.0, 0.25, 0.5))
    wrapper = nn.Sequential(nn.Sequential(nn.Identity(), inner), nn.Linear(2, 2))
    photo = torch.rand(3, 4, 4)
    assert torch.equal(normalize(photo, wrapper), normalize(photo, inner))


def test_normalize_finds_a_timm_model_inside_wrappers():
    timm = library("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, pretrained_cfg_overlay={"mean": IMAGENET[0]})
    assert find_mean_std(nn.ModuleDict({"encoder": model}))[0] == IMAGENET[0]


def test_find_mean_std_lets_the_outermost_word_decide():
    outer = nn.Sequential(Says(mean=(0.1, 0.1, 0.1), std=(1, 1, 1)))
    outer.preprocess_cfg = {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7)}
    assert find_mean_std(outer) == ((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))


def test_normalize_refuses_models_that_disagree_and_takes_a_word():
    pair = nn.Sequential(Says(mean=(0.1, 0.1, 0.1), std=(1, 1, 1)), Says(mean=(0.2, 0.2, 0.2), std=(1, 1, 1)))
    with pytest.raises(ValueError, match="one mean and deviation .*2: Says with mean"):
        normalize(torch.rand(3, 2, 2), pair)
    photo = torch.full((3, 1, 1), 0.5)
    assert normalize(photo, pair, processor={"mean": [0.25] * 3, "std": 0.5}).unique().tolist() == [0.5]
    same = nn.Sequential(*(Says(mean=(0.1, 0.1, 0.1), std=(1, 1, 1)) for _ in range(2)))
    assert find_mean_std(same) == ((0.1, 0.1, 0.1), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("CLIPVision", CLIP),
        ("Dinov2", IMAGENET),
        ("Dinov2WithRegisters", IMAGENET),
        ("DINOv3ViT", IMAGENET),
        ("DeiT", IMAGENET),
        ("ViT", (HALF, HALF)),
        ("SiglipVision", (HALF, HALF)),
        ("Beit", (HALF, HALF)),
    ],
)
def test_find_mean_std_knows_the_families_of_transformers(kind, expected):
    transformers = library("transformers")
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SMALL))
    assert find_mean_std(model) == expected and find_mean_std(nn.Sequential(model)) == expected


def test_find_mean_std_agrees_with_the_processors_of_transformers():
    transformers = library("transformers")
    config = transformers.CLIPConfig(vision_config={**SMALL, "projection_dim": 8}, text_config=TINY)
    processor = transformers.CLIPImageProcessor()
    expected = (tuple(processor.image_mean), tuple(processor.image_std))
    assert find_mean_std(transformers.CLIPModel(config)) == expected
    assert find_mean_std(nn.Identity(), processor) == expected


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_find_mean_std_reads_the_processors_file_beside_the_weights(file, tmp_path):
    transformers = library("transformers")
    own = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path)
    model = transformers.ViTModel.from_pretrained(tmp_path)
    assert find_mean_std(model) == (HALF, HALF)
    (tmp_path / file).write_text(json.dumps({"image_processor": own} if file.startswith("processor") else own))
    assert find_mean_std(model) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / file).write_text("{ broken")
    assert find_mean_std(model) == (HALF, HALF)


def test_find_mean_std_knows_dino_among_the_vits_of_transformers():
    transformers = library("transformers")
    model = transformers.ViTModel(transformers.ViTConfig(**SMALL))
    model.config.name_or_path = "facebook/dino-vits16"
    assert find_mean_std(model) == IMAGENET


def test_find_mean_std_reads_the_word_of_open_clip():
    open_clip = pytest.importorskip("open_clip")
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-S-32-alt", pretrained=None)
    last = preprocess.transforms[-1]
    for part in (model, model.visual, nn.Sequential(model)):
        assert find_mean_std(part) == (tuple(last.mean), tuple(last.std)) == CLIP


def test_find_mean_std_takes_processors_that_do_not_normalise():
    assert find_mean_std(nn.Identity(), {"do_normalize": False, "image_mean": [0.5] * 3}) == ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(TypeError, match=r"processor with image_mean .*got str"):
        find_mean_std(nn.Identity(), "clip")


def test_normalize_gives_one_channel_to_a_model_of_one():
    library("timm")
    model = tiny_vit(in_chans=1)
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.3, 0.4)}
    photo = torch.rand(3, 32, 32)
    images = normalize(photo, model)
    grey = sum(weight * channel for weight, channel in zip(LUMA, photo, strict=True))
    assert images.shape == (1, 1, 32, 32) and torch.allclose(images[0, 0], (grey - 0.2) / 0.3, atol=1e-6)
    assert model(images).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "naflexvit_base_patch16_gap", "eva02_tiny_patch14_224"])
def test_input_channels_sees_them_in_every_embedding_of_timm(name, channels):
    model = library("timm").create_model(name, depth=1, in_chans=channels)
    assert input_channels(nn.Sequential(model)) == channels


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "CLIPVision", "SiglipVision", "Siglip2Vision", "Beit"])
def test_input_channels_sees_them_in_transformers(kind):
    transformers = library("transformers")
    sizes = {**TINY, "patch_size": 8} if kind == "Siglip2Vision" else SMALL
    for channels in (1, 3):
        config = getattr(transformers, f"{kind}Config")(**sizes, num_channels=channels)
        assert input_channels(getattr(transformers, f"{kind}Model")(config)) == channels


def test_normalize_refuses_other_channels_and_shapes():
    library("timm")
    with pytest.raises(ValueError, match=r"1 or 3 channels \(got one for 4\)"):
        normalize(torch.rand(3, 32, 32), tiny_vit(in_chans=4))
    for shape in ((1, 32, 32), (32, 32), (2, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"shape \[3, H, W\]"):
            normalize(torch.rand(shape), nn.Identity())


def test_input_channels_of_other_models_are_those_of_the_first_convolution_if_one():
    assert input_channels(nn.Sequential(nn.Conv2d(1, 4, 1))) == 1
    assert input_channels(nn.Sequential(nn.Conv2d(12, 4, 1))) == 3  # images may be laid out anew before it
    assert input_channels(nn.Identity()) == 3
