"""A run that is killed, and one of two processes, give what one process gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import tokengraph as tg
from tokengraph.testing import tiny_vit

SCRIPT = """
import sys, time
import tokengraph as tg
from tokengraph.evaluate.folders import Files
from tokengraph.evaluate.options import Options
from tokengraph.testing import tiny_vit

slow = float(sys.argv[3])
read = Files.image
Files.image = lambda self, index: (time.sleep(slow), read(self, index))[1]
quick = {"time": False, "memory": False, "resamples": 50, "progress": False, "workers": 0, "device": "cpu"}
options = Options(batch_size=4, chunk=8, **quick)
tg.evaluate(tiny_vit(), ["tome:4", "topk:{2: 0.5}"], sys.argv[1], out=sys.argv[2], options=options)
"""


def start(folder, out, slow=0.0, **environment):
    root = str(Path(tg.__file__).parent.parent)
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out), str(slow)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
    )


def ended(process):
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint


def rows(out):
    return json.loads((out / "report.json").read_text())["rows"]


def test_evaluate_killed_in_the_middle_goes_on_with_the_same_figures(folder, quick, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(folder, killed, slow=0.1)
    try:
        while not list(killed.glob("predictions/data/tome*/*.npz")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    finally:
        process.kill()
    assert not (killed / "report.json").exists()
    before = {f: f.stat().st_mtime_ns for f in killed.glob("predictions/data/*/*.npz")}
    settings = ["tome:4", "topk:{2: 0.5}"]
    tg.evaluate(tiny_vit(), settings, folder, out=killed, options=quick)
    tg.evaluate(tiny_vit(), settings, folder, out=whole, options=quick)
    assert rows(killed) == rows(whole)
    assert before and all(f.stat().st_mtime_ns == t for f, t in before.items())  # what was there was not run again


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_two_processes_give_what_one_gives(folder, quick, tmp_path):
    (folder / "class 0" / "empty.png").write_bytes(b"")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 2000), "WORLD_SIZE": "2"}
    ranks = [start(folder, tmp_path / "two", RANK=str(r), LOCAL_RANK=str(r), **meeting) for r in range(2)]
    try:
        for process in ranks:
            ended(process)
    finally:
        for process in ranks:
            process.kill()
    one = start(folder, tmp_path / "one")
    ended(one)
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    texts = [json.loads((tmp_path / name / "report.json").read_text())["skipped"] for name in ("one", "two")]
    assert texts[0] == texts[1] == [["class 0/empty.png", "empty file"]]
