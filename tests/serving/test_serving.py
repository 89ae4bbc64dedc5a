"""Habits of serving, for a strategy of each kind: one that merges, prunes, weighs edges, reconstructs."""

import copy
import io
import pickle
import threading

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

SETTINGS = {
    "merge": (tg.ToMe(), 3),
    "prune": (tg.TopK(), {1: 0.5}),
    "weighted": (tg.GTP(), 3),
    "reconstruct": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
}
pytestmark = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


def images(count=2, seed=1):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_inference_mode_gives_the_plain_output_and_training_goes_on_after_it(setting):
    model = tiny_vit()
    with tg.attach(model, *setting):
        with torch.no_grad():  # kernels for gradients may round otherwise
            expected = model(images())
        with torch.inference_mode():
            served = model(images())
        assert served.is_inference() and torch.equal(served, expected)
        model(images()).sum().backward()
    assert model.patch_embed.proj.weight.grad.isfinite().all()


def test_amp_trains_and_stays_near_float32(setting):
    model = tiny_vit()
    with tg.attach(model, *setting) as handle:
        expected, counts = model(images()), handle.trace.counts
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model(images())
            assert cast.dtype == torch.bfloat16 and handle.trace.counts == counts
            loss = cast.float().square().mean()
        loss.backward()
        assert model.blocks[0].attn.qkv.weight.grad.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (cast.float() - expected).norm() < 0.2 * expected.norm()


def test_pickled_model_and_whole_saves_stay_attached(setting):
    model, file = tiny_vit(), io.BytesIO()
    with tg.attach(model, *setting) as handle:
        expected, counts = model(images()), handle.trace.counts_worked
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(images()), expected)
        torch.save(model, file)
    assert not torch.equal(model(images()), expected)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images()), expected)
    assert loaded.state_dict().keys() == model.state_dict().keys() and min(counts) < 16
    tg.detach(loaded)
    assert torch.equal(loaded(images()), model(images()))


def test_threads_in_one_model_one_after_another_are_served_and_two_at_once_refused(setting):
    model, waiting, go, results = tiny_vit(), threading.Event(), threading.Event(), {}

    def serve(name, pause=False):
        def stop(*_):
            if threading.current_thread().name == "slow":
                waiting.set()
                assert go.wait(20)

        hook = model.blocks[1].register_forward_pre_hook(stop) if pause else None
        try:
            with torch.no_grad():
                results[name] = model(images())
        except RuntimeError as error:
            results[name] = str(error)
        finally:
            if hook is not None:
                hook.remove()

    with tg.attach(model, *setting):
        serve("main")
        other = threading.Thread(target=serve, args=("other",))
        other.start()
        other.join()
        assert torch.equal(results["other"], results["main"])
        slow = threading.Thread(target=serve, args=("slow", True), name="slow")
        slow.start()
        assert waiting.wait(20)
        serve("quick")  # while the slow thread stands inside the model
        go.set()
        slow.join()
        assert torch.equal(results["quick"], results["main"])
        assert "Expected one thread at a time" in results["slow"]
        serve("after")
        assert torch.equal(results["after"], results["main"])


def test_a_thread_inside_a_block_does_not_write_into_the_run_of_another(setting):
    model, gates, results = tiny_vit(), {n: (threading.Event(), threading.Event()) for n in ("old", "new")}, {}

    def stop(name):
        def wait(*_):
            if threading.current_thread().name == name:
                gates[name][0].set()
                assert gates[name][1].wait(20)

        return wait

    def serve(name, seed):
        try:
            with torch.no_grad():
                results[name] = model(images(seed=seed))
        except RuntimeError as error:
            results[name] = str(error)

    with tg.attach(model, *setting), torch.no_grad():
        expected = model(images(seed=1))
        model.blocks[1].mlp.register_forward_pre_hook(stop("old"))
        model.blocks[2].register_forward_pre_hook(stop("new"))
        threads = {n: threading.Thread(target=serve, args=(n, i), name=n) for i, n in enumerate(gates)}
        for name in ("old", "new"):  # the old run stands inside block 1, the new one has passed it
            threads[name].start()
            assert gates[name][0].wait(20)
        for name in ("old", "new"):
            gates[name][1].set()
            threads[name].join()
    assert "Expected one thread at a time" in results["old"]
    assert torch.equal(results["new"], expected)


def test_deepcopies_serve_threads_side_by_side(setting):
    model, results = tiny_vit(), {}
    with tg.attach(model, *setting), torch.no_grad():
        expected = [model(images(seed=seed)) for seed in range(4)]
        copies = [copy.deepcopy(model) for _ in range(4)]

        def serve(index):
            with torch.no_grad():
                results[index] = [copies[index](images(seed=index)) for _ in range(5)]

        threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(out, expected[i]) for i in range(4) for out in results[i])
