"""Attached models over two CPU processes (attached first, then wrapped or sharded), and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradients_of_one(kind, tmp_path):
    root = str(Path(tg.__file__).parent.parent)
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), kind, str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            printed, complaint = process.communicate(timeout=180)
            assert process.returncode == 0, complaint
            assert printed.split() == ["merge", "prune", "weighted", "reconstruct"]
    finally:
        for process in processes:
            process.kill()


def test_data_parallel_is_refused():
    with pytest.raises(ValueError, match="Expected a model outside nn.DataParallel"):
        tg.attach(nn.DataParallel(tiny_vit()), "tome", 2)
    model = tiny_vit()
    with tg.attach(model, "tome", 2), pytest.raises(RuntimeError, match="outside nn.DataParallel"):
        model._replicate_for_data_parallel()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
