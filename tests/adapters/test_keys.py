"""What strategies compare tokens by, in every architecture: keys in float32 or wider, values as they were mixed."""

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
            assert seen[-1].shape[:2] == tokens.x.shape[:2]
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
    assert plain.shape == half.shape == double.shape and plain.size(0) == 2
    assert (half - plain).norm() < 0.05 * plain.norm()
    assert (double - plain).norm() < 1e-4 * plain.norm()


def unwindowed(value):
    """Values of one window over the whole grid, as in Hiera's third stage, without the axis of windows."""
    return value.squeeze(2) if value.dim() == 5 and value.size(2) == 1 else value


@pytest.mark.parametrize("name", CASES, ids="/".join)
def test_values_are_those_that_the_attention_mixes(name, monkeypatch):
    case, mixed, seen = CASES[name], [], []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recording(query, key, value, *args, **kwargs):
        mixed.append(value)
        return attention(query, key, value, *args, **kwargs)

    class Sees(tg.ToMe):
        def __call__(self, tokens, budget):
            stats = tokens.attention  # of the block that has just mixed its values
            seen.append((stats.values(), stats.value_norms(), stats.heads_of_keys().size(2), unwindowed(mixed[-1])))
            return super().__call__(tokens, budget)

    model = made(case)
    with tg.attach(model, Sees(), {1: 0.5}, adapter=case.adapter):  # gradients keep torch off its inference fast path
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
        ModelCase(case.make, case.inputs, case.named).run(model)
    values, norms, tokens, used = seen[0]
    if used.size(1) < values.size(1):  # values that serve several heads
        used = used.repeat_interleave(values.size(1) // used.size(1), dim=1)
    torch.testing.assert_close(values, used, rtol=1e-4, atol=1e-5)
    assert values.size(2) == tokens and norms.dtype == torch.float32
    torch.testing.assert_close(norms, used.square().sum(dim=(1, 3)).sqrt(), rtol=1e-4, atol=1e-5)
