"""What users hand to TokenGraph in place of images and tokens gets an error that says what to hand instead."""

from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from needs import library

from tokengraph import TokenGraph
from tokengraph.testing import tiny_vit

library("timm")

X = torch.randn(2, 17, 4)
OUTPUT = SimpleNamespace(last_hidden_state=X)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(3, 32, 32), ValueError, r"got \[3, 32, 32\]\). Give one image as images\[None\]"),
        (torch.zeros(32, 32), ValueError, r"Expected images of shape \[B, 3, H, W\] \(got \[32, 32\]\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, r"got torch.uint8\).*normalize\(images / 255, model"),
        (np.zeros((2, 32, 32, 3)), TypeError, r"got ndarray\).*torch.from_numpy"),
        (list(torch.zeros(2, 3, 32, 32)), TypeError, r"got list\).*torch.stack"),
        ("photo.jpg", TypeError, r"got str\)"),
        (OUTPUT, TypeError, r"the output of a model.*from_tokens\(output.last_hidden_state"),
        ({"pixel_values": torch.zeros(2, 3, 32, 32)}, TypeError, r'got dict\).*inputs\["pixel_values"\]'),
        (UserDict(pixel_values=torch.zeros(2, 3, 32, 32)), TypeError, r'got UserDict\).*inputs\["pixel_values"\]'),
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_from_model_says_what_to_give_instead_of(images, error, message, layer):
    with pytest.raises(error, match=message):
        TokenGraph.from_model(tiny_vit(), images, layer=layer)


def test_from_model_says_how_to_use_an_image_of_pillow():
    image = pytest.importorskip("PIL.Image").new("RGB", (32, 32))
    with pytest.raises(TypeError, match=r"Expected images as a Tensor.*load_photo"):
        TokenGraph.from_model(tiny_vit(), image)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (X[0], ValueError, r"\[B, N, C\] \(got \[17, 4\]\). Give one image as tokens\[None\]"),
        (X[0, 0, 0], ValueError, r"\[B, N, C\] \(got \[\]\)"),
        (torch.zeros(2, 8, 4, 4), ValueError, r"feature map.*flatten\(2\).transpose\(1, 2\)"),
        (X.numpy(), TypeError, r"got ndarray\). Convert arrays with torch.from_numpy"),
        ([X[0].numpy()], TypeError, r"Expected tokens to be a Tensor \(got ndarray\)"),
        ((X * 0).to(torch.uint8), TypeError, r"Expected floating-point tokens \(got torch.uint8\)"),
        (OUTPUT, TypeError, r"got SimpleNamespace\).*output.last_hidden_state"),
        ({"last_hidden_state": X}, TypeError, r"got dict\).*output.last_hidden_state"),
        ((X, X[:, 0]), ValueError, r"got \[2, 17, 4\]\).*output\[0\]"),
        (None, TypeError, r"got NoneType\)"),
    ],
)
def test_from_tokens_says_what_to_give_instead_of(tokens, error, message):
    with pytest.raises(error, match=message):
        TokenGraph.from_tokens(tokens)
