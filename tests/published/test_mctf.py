"""MCTF against vectors of the published code (see reference/merging/README.md)."""

import json
from dataclasses import replace

import pytest
import torch
from merging import check_sources, stored_model, within
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.scores.criteria import by_criteria

POOLING = {"attention*size": lambda a, size: a, "size": lambda a, size: replace(a, weight=None),
           "mean": lambda a, size: replace(a, weight=torch.ones_like(size))}  # fmt: skip


def parts(vectors, case):
    v = vectors("merging", "mctf_select")
    how = json.loads(v["config"])[case]
    v, p = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}, how["prefix"]
    size = v["size"][:, p:] if how["sized"] else None
    received = v["attn"].mean(dim=(1, 2))[:, p:]
    return v, how, p, size, received


@pytest.mark.parametrize("case", range(5))
def test_choices_and_rows_of_the_published_code_are_reproduced(vectors, case):
    v, how, p, size, received = parts(vectors, case)
    x, keep = v["x"][:, p:], how["T"] - p - how["r"]
    a = tg.mctf(x, received, keep, size=size, tau=how["tau"], bidirectional=how["bidirectional"], num_prefix=p)
    assert torch.equal(within(a.cluster, 2, keep), v["cluster"][:, p:].long() - p)
    flat = torch.ones(x.shape[:2]).flatten() if size is None else size.flatten()
    rows, sizes = POOLING[how["pooling"]](a, flat).reduce(x.flatten(0, 1), flat)
    assert_close(rows.view(2, keep, -1), v["out_x"][:, p:], rtol=0, atol=1e-5)
    assert_close(sizes.view(2, keep), v["out_size"].view(2, -1)[:, p:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", range(5))
def test_affinities_are_the_published_ones_up_to_one_factor_an_image(vectors, case):
    v, how, p, size, received = parts(vectors, case)
    ours = by_criteria(v["x"][:, p:], received, size, how["tau"], p % 2, None)
    ratio = v["affinity"][:, (p + 1) // 2 :, p // 2 :] / ours
    assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prefix", [0, 2, 3])
def test_any_number_of_prefix_tokens_is_left_out_by_place(vectors, prefix):
    v = vectors("merging", "prefix")
    how = next(c for c in json.loads(v["config"]) if c["prefix"] == prefix)
    x, attn, size = (v[f"p{prefix}_{name}"] for name in ("x", "attn", "size"))
    a = tg.mctf(
        x[:, prefix:],
        attn.mean(dim=(1, 2))[:, prefix:],
        how["T"] - prefix - how["mctf_r"],
        size=size[:, prefix:],
        tau=how["mctf_tau"],
        num_prefix=prefix,
    )
    assert torch.equal(within(a.cluster, 2, a.num_clusters // 2), v[f"p{prefix}_mctf_cluster"].long())


def test_ties_go_to_the_lower_index(vectors):
    v = vectors("merging", "ties")
    for kind in ("signs", "ones"):
        a = tg.mctf(v[kind][None], torch.ones(1, 24), 24 - 7, tau=(1, 0, 0))
        assert a.cluster.tolist() == v[f"mctf_{kind}"].tolist()
        a = tg.mctf(v[kind][None, 1:], torch.ones(1, 23), 23 - 7, tau=(1, 0, 0), num_prefix=1)
        assert a.cluster.tolist() == (v[f"mctf_cls_{kind}"][1:] - 1).tolist()


@pytest.mark.parametrize(("form", "ahead"), [("after", False), ("precise", "precise"), ("ahead", True)])
def test_models_of_the_published_code_are_reproduced(vectors, form, ahead):
    v = vectors("merging", f"model_mctf_{form}")
    model, how = stored_model(v)
    with tg.attach(model, tg.MCTF(tuple(how["tau"]), ahead=ahead), _schedule(how)) as handle, torch.no_grad():
        logits = model(v["image"])
        assert list(handle.trace.counts) == v["counts"][0].tolist()
        check_sources(handle.trace, v, how["depth"])
        assert_close(handle.trace.size(how["depth"]), v["size"][:, 1:], rtol=0, atol=1e-5)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)


def _schedule(how):
    """Removals by finished blocks: behind a layer, or ahead of it."""
    first = how["layers"][0]
    return how["r"] if first == 0 else [how["r"]] * (how["depth"] - 1) + [0]
