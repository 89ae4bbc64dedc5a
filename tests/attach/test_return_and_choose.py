"""Tokens that return and are chosen from anew at one boundary; methods whose threshold says how many stay."""

from dataclasses import dataclass

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.schedule import RECONSTRUCT, returning, tokens_per_layer
from tokengraph.testing import tiny_vit

timm = library("timm")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Hold(tg.Select):
    """Rows of small norm sit a block out, and come back as they were: the plan of IdleViT, with another score."""

    name = ""
    placement = "before"
    merges = False
    reads = "nothing"
    restores = True
    stores = True

    def __call__(self, tokens, budget):
        score = tokens.x.float().norm(dim=2)
        if tokens.mask is not None:
            return tg.topk(score, budget, mask=tokens.mask)
        return tg.topk(score, budget)

    def residue(self, x, assignment):
        return torch.where((assignment.cluster == assignment.num_clusters)[:, None], x, 0.0)


class HoldInside(Hold):
    placement = "inside"


def by_hand(model, images, keep, inside=False):
    """Each block runs on the ``keep[i]`` rows of largest norm; the others stay in the stream."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    chosen = None

    def rows(x, k):
        best = x[:, 1:].norm(dim=2).argsort(dim=1, descending=True, stable=True)[:, :k].sort(dim=1).values + 1
        return torch.cat([torch.zeros_like(best[:, :1]), best], dim=1)

    def on(part, x, chosen):
        if chosen is None:
            return part(x)
        place = chosen[..., None].expand(-1, -1, x.size(2))
        return x.scatter(1, place, part(x.gather(1, place)))

    for block, k in zip(model.blocks, keep, strict=True):
        if not inside:
            x = on(block, x, rows(x, k) if k < 16 else None)
            continue
        x = on(lambda y, b=block: y + b.attn(b.norm1(y)), x, chosen)
        chosen = rows(x, k) if k < 16 else chosen  # where all return for good, they do so behind the block
        x = on(lambda y, b=block: y + b.mlp(b.norm2(y)), x, chosen)
        chosen = chosen if k < 16 else None
    return model.forward_head(model.norm(x))


SCHEDULE = {1: 10, 2: ("reconstruct", 12), 3: ("reconstruct", 6), 4: "reconstruct"}


def test_rows_that_were_held_return_and_are_chosen_from_anew():
    model = tiny_vit(depth=5, global_pool="avg")
    wanted = by_hand(model, IMAGES, [16, 10, 12, 6, 16])
    with tg.attach(model, Hold(), SCHEDULE) as handle:
        assert_close(model(IMAGES), wanted, rtol=1e-4, atol=1e-5)
        assert list(handle.trace.counts) == [16, 10, 12, 6, 16, 16]
        assert handle.trace.state(4).lineage.maps == () and len(handle.trace.state(2).lineage.maps) == 1
        model.train()
        model(IMAGES).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.blocks.parameters())


def test_inside_a_block_rows_return_between_its_halves():
    model = tiny_vit(depth=4)
    wanted = by_hand(model, IMAGES, [10, 10, 16, 16], inside=True)
    with tg.attach(model, HoldInside(), [6, (RECONSTRUCT, 6), 0, 0]) as handle:
        trace = handle.trace
        model(IMAGES)
        assert list(trace.counts) == [16, 10, 10, 10, 10]
    with tg.attach(model, HoldInside(), {1: 10, 2: ("reconstruct", 10), 3: ("reconstruct", 16)}):
        assert_close(model(IMAGES), wanted, rtol=1e-4, atol=1e-5)


def test_a_return_in_a_compiled_model_is_one_graph():
    model = tiny_vit(depth=4)
    with tg.attach(model, Hold(), {1: 10, 2: ("reconstruct", 12), 3: "reconstruct"}):
        wanted = model(IMAGES)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(IMAGES), wanted)


def test_grid_strategies_act_again_on_the_grid_that_returned():
    model = tiny_vit(depth=4)
    with tg.attach(model, tg.AiluRus(), {1: 0.5, 2: ("reconstruct", 0.25)}) as handle:
        assert model(IMAGES).isfinite().all()
        assert list(handle.trace.counts) == [16, 8, 4, 4, 4]
        first = handle.trace.state(2).lineage.source
        assert first.num_tokens == 32  # over the input patches, not over the clusters before
    with tg.attach(
        model, tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: ("reconstruct", "cluster"), 4: "reconstruct"}
    ) as handle:
        assert model(IMAGES).isfinite().all()
        assert list(handle.trace.counts) == [16, 4, 4, 4, 16]


@pytest.mark.parametrize(
    ("select", "schedule", "message"),
    [
        (
            tg.ToMe(),
            {1: 12, 2: ("reconstruct", 12)},
            "reads nothing of attention where tokens return .*ToMe, which reads keys",
        ),
        (tg.Random(), {1: 12, 2: ("reconstruct", 12)}, "a strategy that can reconstruct"),
        (tg.AiluRus(), {2: ("reconstruct", 12)}, "something to reconstruct at layer 2"),
        (tg.AiluRus(), {1: 12, 2: ("again", 12)}, r"Expected a pair \(.reconstruct., keep\)"),
        (tg.AiluRus(), {1: 12, 2: ("reconstruct", "reconstruct")}, r"Expected a pair \(.reconstruct., keep\)"),
        (tg.AiluRus(), {1: 12, 2: ("reconstruct", 12), 3: 8}, "act on the full grid only"),
        (tg.Expedite(clusters=(2, 2)), {1: 4, 2: ("reconstruct", 5)}, "leaves the 4 tokens"),
    ],
    ids=str,
)
def test_attach_refuses_a_return_that_cannot_work(select, schedule, message):
    with pytest.raises(ValueError, match=message):
        tg.attach(tiny_vit(), select, schedule)


def test_pairs_of_a_schedule_count_from_all_tokens():
    assert tokens_per_layer([6, (RECONSTRUCT, 4), 0, RECONSTRUCT], 4, 16) == [16, 10, 12, 12, 16]
    assert returning([6, (RECONSTRUCT, 4), 0, RECONSTRUCT], 4, 16) == {2}
    assert (
        returning(SCHEDULE, 5, 16) == {2, 3} and returning(2, 5, 16) == returning(lambda d, n: [1] * d, 5, 16) == set()
    )


@dataclass(frozen=True)
class Alike(tg.Select):
    """Merges neighbours in the sequence that resemble each other; acts at its own layers, not again behind them."""

    name = ""
    placement = "after"
    reads = "nothing"
    threshold: float = 0.2
    layers: tuple[int, ...] = (1, 3)

    def bind(self, channels, depth, schedule=None):
        return self, {layer: 1 for layer in self.layers}

    def acts(self, finished, keep, count):
        return finished in self.layers and count > 1

    def __call__(self, tokens, budget):
        x = torch.nn.functional.normalize(tokens.x.detach().float(), dim=2)
        alike = (x[:, 1:] * x[:, :-1]).sum(dim=2) > self.threshold
        first = torch.cat([torch.ones_like(alike[:, :1]), ~alike], dim=1)
        if tokens.mask is not None:
            first = first & tokens.mask
        counts = first.sum(dim=1).tolist()
        return tg.Assignment.from_dense(first.long().cumsum(dim=1) - 1, counts, mask=tokens.mask)


def test_a_threshold_method_acts_at_its_layers_alone():
    model = tiny_vit(depth=5)
    with tg.attach(model, Alike()) as handle:
        both = model(IMAGES)
        counts = [torch.as_tensor(handle.trace.valid(layer).sum(dim=1)).tolist() for layer in range(6)]
        assert counts[0] == [16, 16] and counts[1] == counts[2] and counts[3] == counts[4] == counts[5]
        assert counts[1] != [16, 16] and all(b < a for a, b in zip(counts[2], counts[3], strict=True))
        alone = torch.cat([model(image[None]) for image in IMAGES])
        assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_a_threshold_that_nothing_passes_changes_no_bit():
    model = tiny_vit(depth=3)
    wanted = model(IMAGES)
    with tg.attach(model, Alike(threshold=2.0, layers=(1,)), prop_attn="none"):
        assert_close(model(IMAGES), wanted, rtol=0, atol=1e-6)


def test_a_threshold_method_may_act_before_the_first_block():
    class Before(Alike):
        placement = "before"

    model = tiny_vit(depth=3)
    with tg.attach(model, Before(layers=(0,))) as handle:
        model(IMAGES)
        assert handle.trace.state(0).lineage.now.width == handle.trace.state(3).lineage.now.width < 16


class Deepening(tg.DPCKNN):
    """Keeps centres in the first half of the depth, averages in the second."""

    name = ""

    def bind(self, channels, depth, schedule=None):
        object.__setattr__(self, "depth", depth)
        return super().bind(channels, depth, schedule)

    def reduction_at(self, layer):
        return "center" if layer < self.depth // 2 else "mean"


def test_the_reduction_may_depend_on_the_layer():
    model = tiny_vit(depth=4)
    seen = {}
    for i in (0, 2):
        model.blocks[i].register_forward_hook(lambda m, a, out, i=i: seen.update({i: out}))
    model(IMAGES)
    plain = seen[0]
    with tg.attach(model, Deepening(), {1: 8, 3: 4}) as handle:
        model(IMAGES)
        first = handle.trace.state(1)
        flat = plain[:, 1:].flatten(0, 1)
        assert torch.equal(seen[0][:, 1:].flatten(0, 1), flat[first.lineage.maps[0].centers])
        sizes = handle.trace.size(1)
        assert sizes.sum().item() == 32 and sizes.max() > 1
        state = handle.trace.state(3)
        assert state.lineage.now.width == 4
