"""A run that is killed loses and doubles nothing, and two processes write what one writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from needs import library

import tokengraph as tg
from tokengraph.datasets import Recipe, write_dataset
from tokengraph.testing import tiny_vit

RECIPE = Recipe(connect="knn:4", coarsen="ailurus:0.25")

SCRIPT = """
import sys, time
from tokengraph.datasets import Recipe, write_dataset
from tokengraph.evaluate import Options
from tokengraph.evaluate.folders import Files
from tokengraph.testing import tiny_vit

slow = float(sys.argv[3])
read = Files.image
Files.image = lambda self, index: (time.sleep(slow), read(self, index))[1]
options = Options(batch_size=4, chunk=4, workers=0, progress=False, device="cpu")
write_dataset(tiny_vit(), sys.argv[1], sys.argv[2], Recipe(connect="knn:4", coarsen="ailurus:0.25"), options=options)
"""


def start(folder, out, slow=0.0, **environment):
    root = str(Path(tg.__file__).parent.parent)
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out), str(slow)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
    )


def same(ours, theirs):
    """True if two data sets have the same graphs, bit for bit, in the same order."""
    a, b = (tg.TokenGraphDataset(root) for root in (ours, theirs))
    assert (len(a), a.paths, a.skipped) == (len(b), b.paths, b.skipped) and len(set(a.paths)) == len(a)
    return all(
        torch.equal(one.x, two.x) and torch.equal(one.edge_index, two.edge_index) for one, two in zip(a, b, strict=True)
    )


def test_graph_killed_in_the_middle_goes_on_and_loses_nothing(written, folder, quick, tmp_path):
    killed = tmp_path / "killed"
    process = start(folder, killed, slow=0.05)
    try:
        while len(list(killed.glob("shards/*.db"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    finally:
        process.kill()
    with pytest.raises(ValueError, match="Repeat the command"):
        tg.TokenGraphDataset(killed)
    again = write_dataset(tiny_vit(), folder, killed, RECIPE, options=quick)
    assert 0 < again.new <= 18 and same(killed, written.root)
    assert write_dataset(tiny_vit(), folder, killed, RECIPE, options=quick).new == 0
    assert same(killed, written.root)


def test_a_kill_inside_a_transaction_leaves_the_chunk_out(folder, quick, tmp_path, monkeypatch):
    """The rows and the note of a chunk are one transaction: broken between them, both are missing."""
    library("timm")
    from torch_geometric.data import SQLiteDatabase

    whole = SQLiteDatabase._multi_insert

    def broken(self, indices, rows):
        self.cursor.execute(f"INSERT INTO {self.name} (id, {self._joined_col_names}) VALUES (?, {self._dummies})",
                            (indices[0], *self._serialize(rows[0])))  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(SQLiteDatabase, "_multi_insert", broken)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tiny_vit(), folder, tmp_path / "set", RECIPE, options=quick)
    monkeypatch.setattr(SQLiteDatabase, "_multi_insert", whole)
    assert write_dataset(tiny_vit(), folder, tmp_path / "set", RECIPE, options=quick).new == 18
    assert len(tg.TokenGraphDataset(tmp_path / "set")) == 17


def test_a_folder_of_another_data_set_is_refused(written, folder, quick):
    with pytest.raises(ValueError, match="same data set to resume.*connect: 'knn:4' there, 'knn:3' now"):
        write_dataset(tiny_vit(), folder, written.root, Recipe(connect="knn:3"), options=quick)
    with pytest.raises(ValueError, match="weights:"):
        write_dataset(tiny_vit(seed=1), folder, written.root, RECIPE, options=quick)
    (folder / "b" / "8.png").unlink()
    with pytest.raises(ValueError, match="images:"):
        write_dataset(tiny_vit(), folder, written.root, RECIPE, options=quick)


@pytest.mark.slow
def test_two_runs_that_know_nothing_of_each_other_double_nothing(written, folder, tmp_path):
    runs = [start(folder, tmp_path / "both", slow=0.01) for _ in range(2)]
    try:
        for process in runs:
            assert process.communicate(timeout=240)[1] is not None
            assert process.returncode == 0
    finally:
        for process in runs:
            process.kill()
    assert same(tmp_path / "both", written.root)


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_two_processes_write_what_one_writes(written, folder, tmp_path):
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(27500 + os.getpid() % 1900), "WORLD_SIZE": "2"}
    ranks = [start(folder, tmp_path / "two", RANK=str(r), LOCAL_RANK=str(r), **meeting) for r in range(2)]
    try:
        for process in ranks:
            _, complaint = process.communicate(timeout=240)
            assert process.returncode == 0, complaint
    finally:
        for process in ranks:
            process.kill()
    assert same(tmp_path / "two", written.root)
