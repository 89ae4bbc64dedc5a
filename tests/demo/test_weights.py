"""load_model: which weights it takes, and what it says of them."""

import time

import pytest
import torch
from needs import library

from tokengraph.demo import weights
from tokengraph.demo.weights import load_model

timm = library("timm")
hub = pytest.importorskip("huggingface_hub")

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_load_model_gives_random_weights_and_says_so_when_the_hub_does_not_answer(monkeypatch, empty_cache):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("no_proxy", "*")
    start = time.perf_counter()
    model, pretrained, source = load_model(NAME, img_size=32)
    assert time.perf_counter() - start < 10
    assert not pretrained and "127.0.0.1:9 is out of reach" in source
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 192) and not model.training


def test_load_model_makes_the_same_random_weights_again_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first, second = (load_model(NAME, img_size=32, pretrained=False).model for _ in range(2))
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(first.blocks[0].attn.qkv.weight, second.blocks[0].attn.qkv.weight)


def test_load_model_takes_weights_from_the_hubs_cache(monkeypatch, empty_cache):
    save = pytest.importorskip("safetensors.torch").save_file
    monkeypatch.setattr(weights, "_reachable", lambda address: pytest.fail("asked the hub"))
    config = timm.get_pretrained_cfg(NAME)
    folder = empty_cache / ("models--" + config.hf_hub_id.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    stored = timm.create_model(NAME)
    torch.nn.init.constant_(stored.blocks[3].mlp.fc1.bias, 0.25)
    save(stored.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    model, pretrained, source = load_model(NAME, img_size=64)
    assert pretrained and "model.safetensors" in source
    assert model.blocks[3].mlp.fc1.bias.unique().tolist() == [0.25]
    assert model.patch_embed.grid_size == (4, 4)


def test_load_model_says_why_a_download_failed(monkeypatch, empty_cache):
    monkeypatch.setattr(weights, "_reachable", lambda address: True)
    create = timm.create_model

    def fail(name, pretrained=False, **options):
        if pretrained:
            raise OSError("broken off")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", fail)
    _, pretrained, source = load_model(NAME, img_size=32)
    assert not pretrained and source == "random weights (download failed: OSError)"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vit_tiny_patch16", r"got 'vit_tiny_patch16'\). Did you mean 'vit_tiny_patch16_"),
        ("resnet18", "takes img_size"),
    ],
)
def test_load_model_refuses_unknown_names_and_models_of_another_kind(name, match):
    with pytest.raises(ValueError, match=match):
        load_model(name, img_size=32, pretrained=False)
