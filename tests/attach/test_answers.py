"""An adapter whose method returns another kind is named at attach, before anything is changed."""

from __future__ import annotations

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.adapters.timm.vit import TimmViT
from tokengraph.attention.stats import AttentionStats
from tokengraph.testing import tiny_vit

library("timm")


def wrong(method: str, value: object) -> TimmViT:
    kind = type("Wrong", (TimmViT,), {method: lambda self, module: value})
    return kind()


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("grid", 4, r"Wrong.grid\(\) to return \(H, W\), rows and columns of the patches, or \(T, H, W\) \(got 4\)"),
        ("grid", (4, 0), r"Wrong.grid\(\) to return .*\(got \(4, 0\)\)"),
        ("grid", None, r"Wrong.grid\(\) to return .*\(got None\)"),
        ("num_prefix", None, r"Wrong.num_prefix\(\) to return an int, 0 or more \(got None\)"),
        ("num_prefix", True, r"Wrong.num_prefix\(\)"),
        ("channels", 0, r"Wrong.channels\(\) to return an int above 0 \(got 0\)"),
        ("embedding", None, r"Wrong.embedding\(\) to return the nn.Module that makes the patches \(got None\)"),
        ("blocks", [], r"Wrong.blocks\(\) to return the blocks in a list \(got \[\]\)"),
        ("kept", None, r"Wrong.kept\(\) to return modules by name, such as .*\(got None\)"),
        ("kept", {"qkv": "qkv"}, r"Wrong.kept\(\) to return modules by name"),
    ],
)
def test_attach_names_the_method_of_an_adapter_that_returns_another_kind(method, value, message):
    model = tiny_vit()
    with pytest.raises(TypeError, match=message):
        tg.attach(model, "tome", 4, adapter=wrong(method, value))
    assert not any("tokengraph" in name for m in model.modules() for name in m.__dict__)


class HeadsBehindTokens(TimmViT):
    """Queries and keys as [B, P+N, H, D], not [B, H, P+N, D]."""

    def statistics(self, block, kept, num_prefix, bias, side):
        q, k = (t.transpose(1, 2) for t in super().statistics(block, kept, num_prefix, bias, side)._queries_keys())
        return AttentionStats(lambda: (q, k), 1.0, num_prefix, bias)


def test_keys_of_another_shape_name_the_adapters_statistics():
    model = tiny_vit()
    tg.attach(model, "tome", 4, adapter=HeadsBehindTokens())
    with pytest.raises(ValueError, match=r"statistics\(\) must give queries and keys as \[B, H, P\+N, D\]"):
        model(torch.randn(2, 3, 32, 32))
