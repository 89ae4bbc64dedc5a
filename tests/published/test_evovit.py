"""Evo-ViT against vectors of the published code (see reference/pruning/README.md)."""

import json

import pytest
import torch
from needs import library
from pruning import sets, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing import tiny_vit


def stages_of(how):
    """The stages of a stored model: blocks of one choice each, or the three of the stage form."""
    ratio = how["ratio"]
    if how["mode"] == "layer":
        return [(i, i + 1, r) for i, r in enumerate(ratio) if r < 1]
    return [(4, 8, ratio[4]), (8, 12, ratio[8])]


@pytest.mark.parametrize("name", ["evovit_stage", "evovit_layer"])
@pytest.mark.parametrize("head", ["logits", "own_class_head_logits"])
def test_models_of_the_published_code_are_reproduced(vectors, name, head):
    v = vectors("pruning", name)
    model, how = stored_model(v, **({"global_pool": "avg"} if head == "logits" else {}))
    stages = stages_of(how)
    seen = []
    with torch.no_grad(), tg.attach(model, tg.EvoViT(stages)) as handle:
        for start, _, _ in stages:
            model.blocks[start].register_forward_pre_hook(lambda m, args: seen.append(handle.trace.run.slots))
        found = model(v["image"])
        assert handle.trace.counts[-1] == 64
        slow = [handle.trace.run.slots[start].lineage.source for start, _, _ in stages]
        assert_close(handle.trace.seen[0], v["global_attention"], rtol=1e-5, atol=1e-5)
    for j, a in enumerate(slow):
        if a is not None:
            kept = (a.cluster < a.num_clusters).view(3, -1)
            assert [set(row.nonzero()[:, 0].tolist()) for row in kept] == sets(v[f"s{j}_slow"])
    assert_close(found, v[head], rtol=0, atol=2e-5)


def test_waiting_tokens_do_not_change_without_a_summary(vectors):
    v = vectors("pruning", "evovit_stage")
    model, _ = stored_model(v, global_pool="avg")
    rows = {}
    model.blocks[3].register_forward_hook(lambda m, args, out: rows.setdefault("before", out))
    model.blocks[11].register_forward_hook(lambda m, args, out: rows.setdefault("after", out))
    with torch.no_grad():
        plain = {}
        with tg.attach(model, tg.EvoViT([(4, 12, 0.5)])) as handle:
            model(v["image"])
            state = handle.trace.run.slots[4].lineage
            waits = (state.source.cluster == state.source.num_clusters).view(3, 64)
            plain["residue"] = state.residues[0].view(3, 64, -1)
        assert_close(rows["after"][:, 1:][waits], plain["residue"][waits], rtol=0, atol=0)


def run_by_hand(v, blocks, layers, score, x, keep, tradeoff):
    """A stage with a summary, by the map and the blocks alone."""
    a = tg.slow_fast_stage(score, keep + 1, summary=True)
    flat = x[:, 1:].flatten(0, 1)
    rows = a.reduce(flat)[0]
    before = a.lift(rows)
    seq = torch.cat([x[:, :1], rows.view(2, keep + 1, -1)], dim=1)
    slow = a.centers.view(2, -1)[:, :keep] - 30 * torch.arange(2)[:, None]
    for i in layers:
        attn = blocks[i].attn
        q, k, _ = attn.qkv(blocks[i].norm1(seq)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        row = ((q[:, :, :1] * attn.scale) @ k.transpose(2, 3)).softmax(dim=3)[:, :, 0, 1 : keep + 1].mean(dim=1)
        old = score.gather(1, slow)
        score = score.scatter(1, slow, (1 - tradeoff) * old + tradeoff * row)
        seq = blocks[i](seq)
    after = a.lift(seq[:, 1:].flatten(0, 1))
    out = torch.cat([seq[:, :1], (flat + after - before).view(2, 30, -1)], dim=1)
    return out, score, slow


@pytest.mark.parametrize(("case", "layers"), [("cat", [0]), ("stage", [0, 1, 2])])
def test_the_summary_of_the_published_code_is_reproduced_around_plain_blocks(vectors, case, layers):
    v = vectors("pruning", "evovit_summary")
    how = json.loads(v["config"])
    block = library("timm").models.vision_transformer.Block
    blocks = [block(16, how["heads"], 2.0, qkv_bias=True) for _ in range(3)]
    for i, one in enumerate(blocks):
        for norm in (one.norm1, one.norm2):
            norm.eps = 1e-6
        own = {k.split(f"blocks.{i}.", 1)[1]: t for k, t in v.items() if f"blocks.{i}." in k}
        one.load_state_dict(own)
        one.eval()
    with torch.no_grad():
        out, score, slow = run_by_hand(v, blocks, layers, v["global_attention"], v["x"], 15, how["tradeoff"])
    assert_close(out, v[f"{case}_x"], rtol=0, atol=1e-5)
    assert_close(score, v[f"{case}_global_attention"], rtol=1e-5, atol=1e-5)
    if case == "cat":
        assert sets(slow) == sets(v["slow"])


def test_a_summary_moves_all_waiting_tokens_of_an_image_alike(vectors):
    v = vectors("pruning", "evovit_stage")
    model, _ = stored_model(v, global_pool="avg")
    rows = []
    for block in (model.blocks[3], model.blocks[5]):
        block.register_forward_hook(lambda m, args, out: rows.append(out))
    with torch.no_grad():
        plain = [model(v["image"]), rows.copy()][1][0]
        rows.clear()
        with tg.attach(model, tg.EvoViT([(4, 6, 0.5)], summary=True)) as handle:
            model(v["image"])
            m = handle.trace.run.slots[4].lineage.maps[0]
    waits = (m.cluster.view(3, 64) - 33 * torch.arange(3)[:, None]) == 32
    change = (rows[1] - plain)[:, 1:]
    for b in range(3):
        moved = change[b][waits[b]]
        assert moved.abs().max() > 1e-3
        assert_close(moved, moved[:1].expand_as(moved), rtol=0, atol=1e-5)


def test_a_share_of_one_is_the_plain_model(vectors):
    v = vectors("pruning", "evovit_stage")
    model, _ = stored_model(v)
    with torch.no_grad():
        plain = model(v["image"])
        for summary in (False, True):
            with tg.attach(model, tg.EvoViT([(4, 8, 1.0)], summary=summary)):
                assert_close(model(v["image"]), plain, rtol=0, atol=2e-6)


def test_scores_of_zero_give_a_plain_mean_and_one_waiting_token_is_its_own_summary():
    a = tg.slow_fast_stage(torch.tensor([[1.0, 0.0, 0.0]]), 2, summary=True)
    assert a.reduce(torch.tensor([[5.0], [1.0], [3.0]]))[0].tolist() == [[5.0], [2.0]]
    a = tg.slow_fast_stage(torch.tensor([[1.0, 0.5, 2.0]]), 3, summary=True)
    assert isinstance(a, tg.Assignment) and a.num_clusters == 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Expected stages"):
        tg.EvoViT([(4, 8, 0.5), (6, 9, 0.5)])
    with pytest.raises(ValueError, match="Expected shares and tradeoff"):
        tg.EvoViT([(4, 8, 1.5)])
    with pytest.raises(ValueError, match="Expected stages within 6 blocks"):
        tg.EvoViT([(4, 8, 0.5)]).bind(8, 6)


def test_tokens_may_leave_step_by_step_without_a_return():
    library("timm")
    chosen = []

    class Spied(tg.EvoViT):
        name = ""

        def __call__(self, tokens, budget):
            made = super().__call__(tokens, budget)
            chosen.append((tokens.seen[0], tokens.patch, (made.cluster < made.num_clusters).view(4, -1)))
            return made

    model, images = tiny_vit(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), tg.attach(model, Spied(), {1: 9, 2: 5}) as handle:
        model(images)
        assert handle.trace.counts == [16, 9, 5, 5]
    for (score, patch, kept), keep in zip(chosen, (9, 5), strict=True):
        own = score if patch is None else score.gather(1, patch)
        assert own.shape == kept.shape
        assert sets(own.topk(keep).indices) == [set(row.nonzero()[:, 0].tolist()) for row in kept]
