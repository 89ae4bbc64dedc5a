"""attach over open_clip: only the vision tower changes, feature maps are full, every kind of pooling works."""

import pytest
import torch
from multihead_cases import VisionTransformer, images, make
from torch.testing import assert_close

import tokengraph as tg

if VisionTransformer is None:
    pytest.skip("needs open_clip", allow_module_level=True)

from open_clip.model import CLIP  # noqa: E402


@pytest.fixture(name="images")
def two_images():
    return images()


def test_a_whole_clip_model_has_only_its_vision_tower_touched(images):
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2}
    model = CLIP(16, vision, text).eval()
    ids = torch.randint(0, 49, (2, 8))
    with torch.no_grad():
        words, plain = model.encode_text(ids), model.encode_image(images)
        with tg.attach(model, "tome", 3) as handle:
            assert torch.equal(model.encode_text(ids), words)
            assert not torch.equal(model.encode_image(images), plain)
            assert handle.trace.counts == [16, 13, 10, 7]
            assert not any("Coarse" in type(m).__name__ for m in model.transformer.modules())
        assert torch.equal(model.encode_image(images), plain)


def test_open_clip_gives_whole_feature_maps_and_pools_as_if_every_patch_were_there(images):
    model = make("open_clip_scales")
    with torch.no_grad():
        plain = model.forward_intermediates(images, normalize_intermediates=True)
        with tg.attach(model, "tome", 0):
            same = model.forward_intermediates(images, normalize_intermediates=True)
        for a, b in zip(plain["image_intermediates"], same["image_intermediates"], strict=True):
            assert torch.equal(a, b)
        with tg.attach(model, "tome", 3) as handle:
            maps = model.forward_intermediates(images, indices=[0, 2])["image_intermediates"]
            assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 2
            out = model(images)
            full = model.ln_post(handle.trace.lift_sequence(handle.trace.output))
            assert_close(out, full[:, 1:].mean(dim=1) @ model.proj)
