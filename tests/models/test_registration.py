"""Fast-iTPN among timm's models."""

import subprocess
import sys

import pytest
import torch
from needs import library
from quick import quick_only

from tokengraph.models import FastITPN, FastITPNPyramid, TokenMigration, register_with_timm

timm = library("timm")


@pytest.fixture(autouse=True)
def registered():
    return register_with_timm()


def test_every_size_has_a_short_and_its_official_name(registered):
    assert len(registered) == 8 and set(registered) == set(timm.list_models("fast_itpn*"))
    assert register_with_timm() == registered  # again changes nothing


def test_timm_makes_a_classifier_of_any_size_and_number_of_classes():
    model = timm.create_model("fast_itpn_tiny_1112_patch16_224", num_classes=3, img_size=64, drop_rate=0.0)
    assert isinstance(model, FastITPN) and len(model.main_blocks) == 12
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)


def test_timm_makes_a_pyramid_of_chosen_levels():
    options = {"img_size": 64, "fpn_dim": 16, "migration": TokenMigration()}
    model = timm.create_model("fast_itpn_tiny", features_only=True, out_indices=(0, 2), **options)
    assert isinstance(model, FastITPNPyramid) and model.feature_info.reduction() == [4, 16]
    assert [m.shape[-1] for m in model.eval()(torch.randn(1, 3, 64, 64))] == [16, 4]


def test_the_large_size_is_made_for_256_pixels():
    with torch.device("meta"):
        assert timm.create_model("fast_itpn_large").img_size == (256, 256)


def test_pretrained_weights_are_refused_with_the_way_to_get_them():
    with pytest.raises(ValueError, match="load_checkpoint"):
        timm.create_model("fast_itpn_tiny", pretrained=True)


@pytest.mark.parametrize("first", quick_only(["tokengraph.models"], ["timm", "tokengraph.models"]))
def test_importing_the_models_registers_with_a_timm_that_is_there_and_imports_none(first):
    code = (
        "import sys\n"
        + ("from tokengraph.compat import timm\n" if first == "timm" else "")
        + "import tokengraph.models\n"
        + ("print(timm.is_model('fast_itpn_base'))" if first == "timm" else "print('timm' in sys.modules)")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True" if first == "timm" else "False"], done.stderr
