"""Images on which a step does not act, as the schedule covers all their tokens, are in a batch what they are alone."""

import pytest
import timm_cases
import torch
from strategies import CLASS, STRATEGIES, check_alone

import tokengraph as tg

SHAPES = [(4, 4), (3, 3), (2, 5), (1, 1)]
CASES = {
    "avit, floors": ("avit", {1: 10}),
    "avit, floors of two layers": ("avit", {1: 10, 2: 4}),
    "avit": ("avit", None),
    "algm, windows then pairs": ("algm", {1: 10, 2: 4}),
    "evovit, running attention": ("evovit", {1: 10, 2: 4}),
    "evovit, summary": ("evovit-summary", {1: 10, 2: 4}),
    "gtp, edited maps": ("gtp-sparse", {1: 10}),
    "gtp, edited maps of two layers": ("gtp-sparse", {1: 10, 2: 4}),
    "toma in tiles": ("toma-tiles", {1: 8}),
    "ats": ("ats", {1: 10, 2: 4}),
    "mpm": ("mpm", {1: 10, 2: 4}),
    "g2tm": ("g2tm", {1: 9}),
    "diffrate": ("diffrate", {1: 10, 2: 4}),
    "svit": ("svit", None),
    "zero-tprune": ("zero-tprune", {1: 10, 2: 4}),
}


def run(model, shapes, width):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(timm_cases.patches_of(shapes, width))


@pytest.mark.parametrize("case", CASES)
def test_every_image_is_what_it_is_alone(case):
    name, schedule = CASES[case]
    model = timm_cases.make_naflex()
    torch.manual_seed(3)  # of gates
    with tg.attach(model, (STRATEGIES | CLASS)[name][0], schedule):
        together = run(model, SHAPES, 20)
        for width in (None, 20):  # without padding, and beside it
            alone = [run(model, [(h, w)], width or h * w) for h, w in SHAPES]
            check_alone(together, alone, rtol=1e-4, atol=1e-5)


def test_an_image_whose_floors_cover_all_its_tokens_is_the_plain_model_beside_one_that_halts():
    model = timm_cases.make_naflex()
    plain = run(model, SHAPES, 20)
    with tg.attach(model, tg.AViT(scale=2.0, center=-30.0), {1: 10, 2: 4}) as handle:  # all tokens halt at once
        out = run(model, SHAPES, 20)
        counts = [handle.trace.counts_per_image(layer) for layer in range(3)]
    assert counts == [[16, 9, 10, 1], [10, 9, 10, 1], [4, 4, 4, 1]]
    torch.testing.assert_close(out[3], plain[3])
    assert all((out[b] - plain[b]).abs().max() > 1e-3 for b in range(3))


def test_the_lineage_says_which_images_no_step_has_acted_on():
    model = timm_cases.make_naflex()
    with tg.attach(model, tg.TopK(score="norm"), {1: 9, 2: 5}) as handle:
        run(model, SHAPES, 20)
        found = [handle.trace.lineage(layer).untouched for layer in range(3)]
    assert found == [(True,) * 4, (False, True, False, True), (False, False, False, True)]
