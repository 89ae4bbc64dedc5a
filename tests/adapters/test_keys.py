"""Strategies match tokens by keys in float32 or wider, in every architecture and dtype."""

import pytest
import torch
from architectures import cases
from needs import made

import tokengraph as tg
from tokengraph.testing.model_case import ModelCase

CASES = cases()


def keys(case, dtype):
    """The keys that a strategy sees after the first block."""
    seen = []

    class Sees(tg.ToMe):
        def __call__(self, tokens, budget):
            seen.append(tokens.attention.keys())
            return super().__call__(tokens, budget)

    def cast(value):
        return value.to(dtype) if value.is_floating_point() else value

    inputs, named = tuple(map(cast, case.inputs)), {name: cast(value) for name, value in case.named.items()}
    model = made(case).to(dtype)
    with tg.attach(model, Sees(), {1: 0.5}, adapter=case.adapter), torch.no_grad():
        ModelCase(case.make, inputs, named).run(model)
    return seen[0]


@pytest.mark.parametrize("name", CASES, ids="/".join)
def test_keys_are_float32_or_wider(name):
    case = CASES[name]
    plain, half, double = (keys(case, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64))
    assert (plain.dtype, half.dtype, double.dtype) == (torch.float32, torch.float32, torch.float64)
    assert plain.shape == half.shape and plain.shape[:2] == (2, 16)
    assert (half - plain).norm() < 0.05 * plain.norm()
    assert (double - plain).norm() < 1e-4 * plain.norm()
