"""One of two processes of ``test_distributed.py``: ``python distributed_run.py RANK ddp|fsdp2 FILE``."""

import gc
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tokengraph as tg
from tokengraph.testing import tiny_vit

SETTINGS = {
    "merge": (tg.ToMe(), 3),
    "prune": (tg.TopK(), {1: 0.5}),
    "weighted": (tg.GTP(), 3),
    "reconstruct": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gradients(model, images):
    model.zero_grad()
    model(images).square().mean().backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone() for name, grad in found.items()}


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def refused(call, words):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"went through, but should say: {words}")


def compare(setting, rank: int, kind: str) -> None:
    """Gradients of half the batch, averaged over both processes, are those of the whole batch in one."""
    model = tiny_vit()
    tg.attach(model, *setting)
    wanted = gradients(model, IMAGES)
    model = DistributedDataParallel(model) if kind == "ddp" else sharded(model)
    for _ in range(2):  # a second run on what the first left
        got = gradients(model, IMAGES[2 * rank : 2 * rank + 2])
    assert got.keys() == wanted.keys()
    for parameter in wanted:
        torch.testing.assert_close(got[parameter], wanted[parameter], atol=1e-6, rtol=1e-4)
    if kind == "fsdp2":
        refused(lambda: tg.detach(model), "whose classes have not been swapped")
        refused(lambda: tg.attach(sharded(tiny_vit()), "tome", 3), "an unsharded model")


def main(rank: int, kind: str, file: str) -> None:
    """Every setting in turn; prints the name of each that held."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for name, setting in SETTINGS.items():
        compare(setting, rank, kind)
        print(name, flush=True)
    gc.collect()  # a DDP model that outlives its group ends it holding Python's lock; gloo's threads may wait for that
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
