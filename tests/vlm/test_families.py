"""Further families under the same law; one in the quick run, all of them in the slow one."""

import sys

import pytest
import torch
from needs import library

pytest.importorskip("transformers", minversion="5.18")

import transformers
from vlm_families import FAMILIES, NEED_PIXELS, RECURRENT, build
from vlm_models import END, IMAGE, START, VIDEO
from vlm_oracle import generated_by_hand, kept_columns, masked_logits, real_logits

import tokengraph as tg
from tokengraph import vlm

NORM = tg.TopK(score="norm")
BANNED = [0, IMAGE, VIDEO, START, END]
LAWFUL = [name for name in FAMILIES if name not in (*RECURRENT, *NEED_PIXELS)]


def made(name):
    if not hasattr(transformers, FAMILIES[name]["config"]):
        pytest.skip(f"this transformers has no {FAMILIES[name]['config']}")
    if "timm" in str(FAMILIES[name]["settings"]):
        library("timm")
    try:
        return build(name)
    except ImportError as error:
        if "your version of timm" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [n if n == "mistral3" else pytest.param(n, marks=pytest.mark.slow) for n in LAWFUL])
def test_the_law_of_reduced_prompts(name):
    case = made(name)
    with torch.no_grad():
        for images in ((1,), (2, 1)):
            inputs = case.inputs(images)
            reduced = vlm.reduce(case.model, inputs, NORM, 0.5)
            wanted = masked_logits(case, inputs, kept_columns(case, inputs, reduced.record))
            assert sum(reduced.record.kept) < sum(reduced.record.counts)
            for got, want in zip(real_logits(case, reduced), wanted, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        new = case.model.generate(
            **reduced, max_new_tokens=3, do_sample=False, eos_token_id=None, suppress_tokens=BANNED
        )
        assert torch.equal(new[:, -3:], generated_by_hand(case, reduced, 3, BANNED))
        assert torch.equal(case.model(**vlm.reduce(case.model, inputs, NORM, 1.0)).logits, case.model(**inputs).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_see_the_shorter_prompt(name, monkeypatch):
    case = made(name)
    with torch.no_grad():
        inputs = case.inputs((1,))
        reduced = vlm.reduce(case.model, inputs, NORM, 0.5)
        monkeypatch.setattr(sys.modules["tokengraph.vlm.reduce"], "takes_encoder_outputs", lambda *args: False)
        by_hand = vlm.reduce(case.model, inputs, NORM, 0.5)  # embeddings of the shorter prompt
        torch.testing.assert_close(case.model(**reduced).logits, case.model(**by_hand).logits, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEED_PIXELS)
def test_models_that_cannot_run_without_pixels_are_refused(name):
    case = made(name)
    with pytest.raises(ValueError, match="Expected a model that runs on encoded images"):
        vlm.reduce(case.model, case.inputs(), NORM, 0.5)
