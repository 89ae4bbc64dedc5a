"""No strategy may keep less of a trained model's features than it did when `python benchmarks/truth floors` ran."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from needs import library

library("timm")

from truth.fashion import WEIGHTS  # noqa: E402
from truth.floors import PICTURES, STORED, inputs, measured, settings  # noqa: E402
from truth.tables import Body, strategies  # noqa: E402

from tokengraph.evaluate.costs import Anatomy  # noqa: E402

HERE = Path(__file__).parent
FLOORS = json.loads((HERE / STORED).read_text()) if (HERE / STORED).exists() else {}
SLACK = 0.005  # of rounding on other processors; one image of 64 may change its class
BODY = Body(Anatomy(depth=8, channels=128, hidden=384, prefix=1, heads=4), side=7, patch=4)


@pytest.fixture(scope="module")
def images():
    if not WEIGHTS.exists():
        pytest.skip("needs the weights that examples/train_fashion_vit.py makes")
    with np.load(HERE / PICTURES) as saved:
        return inputs(saved["pixels"])


@pytest.mark.parametrize("setting", FLOORS or [pytest.param("", marks=pytest.mark.skip(reason="no stored floors"))])
def test_fidelity_stays_what_it_was(images, setting):
    found = measured(images, setting)
    for name, floor in FLOORS[setting].items():
        slack = 1 / len(images) if name == "agreement" else SLACK
        assert found[name] >= floor - slack - 1e-9, (name, found[name], floor)


def test_settings_have_one_for_every_strategy():
    found = settings(BODY)
    assert [re.split("[:,]", text)[0] for text in found] == [name for name in strategies() if name != "around"]
    assert {"mpm,layers=(1, 3)", "g2tm,tau=0.88,layer=1", "algm,tau=0.88,layers=(1, 3)"} < set(found)
    assert "tome:6" in found and "ailurus:{2: 16}" in found
