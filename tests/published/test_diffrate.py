"""DiffRate against vectors of the published code (see reference/pruning/README.md)."""

import json

import pytest
import torch
from pruning import stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.rates import Rate, count_flops

CASES = [(37, 30), (30, 30), (30, 20), (25, 3), (20, 2)]


@pytest.mark.parametrize(("p", "m"), CASES)
@pytest.mark.parametrize("official", [True, False])
def test_steps_give_the_published_rows_and_sizes(vectors, p, m, official):
    v = vectors("pruning", "diffrate_step")
    x, size = v["x"][:, 1:], v["size"][:, 1:]
    a = tg.diffrate(v["score"], x, p - 1, m - 1, size=size, official=official)
    rows, sizes = a.reduce(x.flatten(0, 1), size.flatten())
    best = v["score"].argsort(dim=1, descending=True)[:, : m - 1]  # rows of the code come by score
    back = best.argsort(dim=1).argsort(dim=1)  # the place of each among them by index
    rows, sizes = rows.view(2, m - 1, -1), sizes.view(2, m - 1)
    assert_close(rows.gather(1, back[..., None].expand_as(rows)), v[f"p{p}_m{m}_x"][:, 1:], rtol=0, atol=2e-6)
    own = "own_" if (p, m) == (20, 2) and not official else ""
    assert_close(sizes.gather(1, back), v[f"{own}p{p}_m{m}_size"][:, 1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["diffrate_model", "diffrate_model_rising"])
def test_models_of_the_published_code_are_reproduced(vectors, name):
    v = vectors("pruning", name)
    model, how = stored_model(v)
    with torch.no_grad(), tg.attach(model, tg.DiffRate(how["prune"], how["merge"])) as handle:
        logits = model(v["image"])
        assert [n + 1 for n in handle.trace.counts[1:]] == v["tokens"].tolist()
        found = handle.trace.size().sort(dim=1).values
        assert_close(found, v["final_size"][:, 1:].sort(dim=1).values, rtol=1e-5, atol=1e-6)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)


def test_one_rate_has_the_published_count_probability_mask_and_gradients(vectors):
    v = vectors("pruning", "diffrate_rates")
    rate = Rate(v["candidates"])
    rate.logits.data.copy_(v["logits"])
    assert rate.count().item() == int(v["kept"])
    assert_close(rate.probability(65), v["probability"], rtol=1e-5, atol=1e-6)
    places, present = torch.arange(65)[None], torch.tensor(json.loads(v["config"])["present"])
    mask = rate.mask(places[:, :64] + 1, rate.count().detach(), present)
    assert_close(mask.detach()[0], v["mask"][1:], rtol=0, atol=0)
    (mask[0] * v["w"][1:]).sum().backward()
    assert_close(rate.logits.grad, v["grad_mask"], rtol=0, atol=1e-5 * v["grad_mask"].abs().max().item())
    rate.logits.grad = None
    (3 * rate.count()).backward()
    assert_close(rate.logits.grad, v["grad_count_x3"], rtol=0, atol=1e-5 * v["grad_count_x3"].abs().max().item())


def learning(v, official):
    model, how = stored_model(v)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handle = tg.attach(model, tg.DiffRate(learn=True, patches=64, granularity=how["granularity"], official=official))
    for i in range(1, how["depth"]):
        for kind, rates in (("prune", handle.select.learned.prune), ("merge", handle.select.learned.merge)):
            rates[i].logits.data.copy_(v[f"l{i}_{kind}_logits"])
    return model, how, handle


def test_a_training_pass_has_the_published_loss_and_gradients(vectors):
    v = vectors("pruning", "diffrate_train")
    model, how, handle = learning(v, official=True)
    handle.select.learned.train()
    logits = model(v["image"])
    assert_close(logits.detach(), v["logits"], rtol=0, atol=2e-5)
    counts = handle.select.learned.counts()
    assert [int(k) for k, _ in counts] == v["prune_kept"].tolist()
    assert [int(m) for _, m in counts] == v["merge_kept"].tolist()
    flops = count_flops(counts, 64, 24, 10, patch=4)
    assert_close(flops.detach(), v["flops"], rtol=1e-6, atol=0)
    loss = torch.nn.functional.cross_entropy(logits, v["labels"].long()) + 5 * ((flops - how["target"]) / 1e6) ** 2
    assert_close(loss.detach(), v["loss"], rtol=1e-5, atol=0)
    loss.backward()
    for i in range(1, how["depth"]):
        for kind, rates in (("prune", handle.select.learned.prune), ("merge", handle.select.learned.merge)):
            theirs = v[f"l{i}_{kind}_grad"]
            assert_close(rates[i].logits.grad, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item(), msg=f"{kind} {i}")
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("diffrate"))


def test_learned_rates_remove_tokens_in_evaluation_as_published(vectors):
    v = vectors("pruning", "diffrate_train")
    model, _, handle = learning(v, official=False)
    model.eval()
    with torch.no_grad():
        logits = model(v["image"])
        assert [n + 1 for n in handle.trace.counts[1:]] == v["tokens"].tolist()
        assert_close(logits, v["eval_logits"], rtol=0, atol=2e-5)
        handle.select.learned.train()
        assert_close(model(v["image"]), v["eval_logits"], rtol=0, atol=2e-5)  # one size rule in both


def test_counts_follow_the_rates_after_they_changed(vectors):
    v = vectors("pruning", "diffrate_train")
    model, _, handle = learning(v, official=False)
    model.eval()
    with torch.no_grad():
        handle.select.learned.start_at([65, 65, 40, 30], [65, 50, 40, 20])
        model(v["image"])
        prune, merge = handle.select.rates
        assert [n + 1 for n in handle.trace.counts[1:]] == [min(prune[: i + 1] + merge[: i + 1]) for i in range(4)]
        assert abs(handle.trace.counts[-1] - 19) < 12


def test_rates_come_back_from_a_file_and_scale_to_other_grids(tmp_path):
    select = tg.DiffRate([17, 13, 9], [17, 12, 5])
    select.save(tmp_path / "rates.json")
    again = tg.DiffRate(rates=tmp_path / "rates.json")
    assert again.rates == select.rates and again.patches == 16
    plan = tg.schedule.tokens_per_layer(select.bind(8, 3)[1], 3, 64)
    assert plan == [64, 64, 44, 16]


def test_sizes_by_hand_and_edge_cases():
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 4.0], [-1.0, -0.5]]])
    score, size = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0, 3.0]])
    for official, wanted in ((True, 2.6 - 1.3416), (False, 2.6)):
        a = tg.diffrate(score, x, 4, 2, size=size, official=official)
        assert a.reduce(x[0], size[0])[1][1].item() == pytest.approx(wanted, abs=1e-3)
    same = torch.ones(1, 6, 3)
    a = tg.diffrate(torch.ones(1, 6), same, 6, 2)
    assert a.cluster.tolist() == [0, 1, 0, 0, 0, 0]  # the first target takes all
    rows, sizes = a.reduce(same[0])
    assert torch.equal(rows, torch.ones(2, 3)) and sizes.sum() == pytest.approx(6, abs=1e-4)
    assert tg.diffrate(torch.rand(1, 5), torch.randn(1, 5, 2), 5, 5).cluster.tolist() == list(range(5))
    assert tg.diffrate(torch.rand(1, 5), torch.zeros(1, 5, 2), 4, 2).reduce(torch.zeros(5, 2))[1].isfinite().all()
    pruned = tg.diffrate(torch.rand(1, 9), torch.randn(1, 9, 2), 4, 4)
    assert pruned.single and pruned.drops


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Expected both prune and merge"):
        tg.DiffRate([5, 4])
    with pytest.raises(ValueError, match="Expected prune and merge of one length, with entries of at least 2"):
        tg.DiffRate([5, 4], [5, 1])
    with pytest.raises(ValueError, match="Expected rates for each of 12 blocks"):
        tg.DiffRate([5, 4], [5, 4]).bind(8, 12)
    with pytest.raises(ValueError, match=r"Expected first in \[0, 3\] \(got 4\)"):
        tg.DiffRate(learn=True, patches=16, first=4).bind(8, 3)
    with pytest.raises(ValueError, match="Expected patches for rates to learn"):
        tg.DiffRate(learn=True).bind(8, 12)


def test_by_similarity_the_token_most_like_a_better_one_merges_first():
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [-1.0, -1.0]]])
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert tg.diffrate(score, x, 4, 3).cluster.tolist() == [0, 1, 2, 0]  # published: the last one by score
    a = tg.diffrate(score, x, 4, 3, merge_by="similarity")
    assert a.cluster.tolist() == [0, 1, 0, 2]
    assert_close(a.reduce(x[0])[0], torch.tensor([[1.5, 0.05], [0.0, 1.0], [-1.0, -1.0]]))
    assert tg.diffrate(score, x, 3, 2, merge_by="similarity").cluster.tolist() == [0, 1, 0, 2]  # 2: the last drops
    assert tg.diffrate(score, x, 4, 4, merge_by="similarity").cluster.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="Expected merge_by to be 'attention' or 'similarity'"):
        tg.diffrate(score, x, 4, 3, merge_by="keys")


def test_by_similarity_an_image_beside_padding_is_what_it_is_alone():
    draw = torch.Generator().manual_seed(0)
    x, score = torch.randn(2, 9, 4, generator=draw), torch.rand(2, 9, generator=draw)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    a = tg.diffrate(score, x, [8, 5], [4, 3], mask=mask, merge_by="similarity")
    alone = [tg.diffrate(score[:1], x[:1], 8, 4, merge_by="similarity")]
    alone += [tg.diffrate(score[1:, :6], x[1:, :6], 5, 3, merge_by="similarity")]
    rows = torch.cat([one.reduce(part)[0] for one, part in zip(alone, (x[0], x[1, :6]), strict=True)])
    assert_close(a.reduce(x[mask])[0], rows)


def test_rates_by_similarity_train_to_what_they_evaluate_to(vectors, tmp_path):
    v = vectors("pruning", "diffrate_train")
    model, how = stored_model(v)
    lists = [64, 60, 50, 40], [60, 50, 40, 20]
    learn = tg.DiffRate(*lists, patches=64, learn=True, merge_by="similarity", granularity=1, first=0)
    with tg.attach(model.requires_grad_(False), learn) as handle:
        learned = handle.select.learned
        counts = {}
        for train in (False, True):
            learned.train(train)
            counts[train] = model(v["image"])
        assert_close(counts[True], counts[False], rtol=0, atol=2e-5)
        counts[True].square().sum().backward()
        assert learned.merge[0].logits.grad.any() and learned.prune[0].logits.grad.any()
        handle.select.save(tmp_path / "rates.json")
    again = tg.DiffRate(rates=tmp_path / "rates.json")
    assert again.merge_by == "similarity" and "merge_by='similarity'" in repr(again)


@pytest.mark.parametrize("merge_by", ["attention", "similarity"])
def test_diffrate_of_equal_images_is_that_with_a_mask_of_all(merge_by):
    g = torch.Generator().manual_seed(0)
    x, score = torch.randn(2, 150, 16, generator=g), torch.rand(2, 150, generator=g)
    size, mask = torch.rand(2, 150, generator=g) + 0.5, torch.ones(2, 150, dtype=torch.bool)
    x[:, 70] = x[:, 3]  # a tie
    made = [tg.diffrate(score, x, 140, 90, size=size, mask=m, merge_by=merge_by) for m in (None, mask)]
    assert torch.equal(made[0].cluster, made[1].cluster) and torch.equal(made[0].centers, made[1].centers)
    rows = [a.reduce(x.flatten(0, 1), size.flatten()) for a in made]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*rows, strict=True))
