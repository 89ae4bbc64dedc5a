"""Files as training scripts and downloads leave them: read without running code, or refused with what to do."""

import argparse
import datetime
import pathlib
import types

import numpy as np
import pytest
import torch
from torch import nn

from tokengraph.io.checkpoints import load_checkpoint


class Config:
    """A class of a training script's own."""

    depth = 12


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}


@pytest.fixture
def model():
    return nn.Linear(3, 2)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, model="deit_small", data=pathlib.Path("data"), inner=argparse.Namespace(a=[1])),
        types.SimpleNamespace(lr=1),
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.arange(3),
        np.array(["a", "b"]),
        pathlib.PurePosixPath("out"),
        datetime.datetime(2020, 1, 1),
        {"best": {np.float64(1): {1, 2}}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_load_checkpoint_reads_harmless_types_beside_the_weights(beside, zipped, model, tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": weights(), "args": beside}, file, _use_new_zipfile_serialization=zipped)
    before = list(torch.serialization.get_safe_globals())
    assert load_checkpoint(model, file).complete and model.weight.unique().tolist() == [1]
    assert sorted(map(str, torch.serialization.get_safe_globals())) == sorted(map(str, before))


def test_load_checkpoint_reads_numbers_of_the_other_numpy(model, tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": weights(), "best": np.float64(0.5)}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert (new in data) != (old in data)
    file.write_bytes(data.replace(new, old) if new in data else data.replace(old, new))
    assert load_checkpoint(model, file).complete


def test_load_checkpoint_reads_arrays_as_weights(model):
    assert load_checkpoint(model, {k: v.numpy() for k, v in weights().items()}).complete
    assert model.bias.tolist() == [1, 1]


def test_load_checkpoint_reads_safetensors(model, tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    save(weights(), tmp_path / "model.safetensors")
    assert load_checkpoint(model, str(tmp_path / "model.safetensors")).complete
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"whole file of safetensors .*cut.*Download it anew"):
        load_checkpoint(model, tmp_path / "cut.safetensors")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}])
def test_load_checkpoint_refuses_pickled_models_unless_trusted(wrap, model, tmp_path):
    other = nn.Linear(3, 2)
    torch.save(wrap(other), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"holds a torch\.nn\.modules\.linear\.Linear.*weights_only=False"):
        load_checkpoint(model, tmp_path / "whole.pth")
    assert load_checkpoint(model, tmp_path / "whole.pth", weights_only=False).complete
    assert torch.equal(model.weight, other.weight)


def test_load_checkpoint_refuses_a_scripts_own_classes_unless_trusted(model, tmp_path):
    torch.save({"model": weights(), "config": Config()}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"holds a [\w.]*Config.*weights_only=False"):
        load_checkpoint(model, tmp_path / "own.pth")
    assert load_checkpoint(model, tmp_path / "own.pth", weights_only=False).complete


def test_load_checkpoint_runs_no_code_of_a_file(model, tmp_path):
    torch.save({"model": weights(), "evil": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="weights_only=False"):
        load_checkpoint(model, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_load_checkpoint_takes_modules(model):
    other = nn.Linear(3, 2)
    assert load_checkpoint(model, other).complete and torch.equal(model.weight, other.weight)


@pytest.mark.filterwarnings("ignore")  # torch's own words on TorchScript
def test_load_checkpoint_refuses_torchscript_unless_trusted(model, tmp_path):
    file = tmp_path / "script.pt"
    scripted = torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3))
    torch.jit.save(scripted, str(file))
    with pytest.raises(ValueError, match=r"a model of TorchScript.*weights_only=False"):
        load_checkpoint(model, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a page of HTML"),
        (b"\n  <html>", "a page of HTML"),
        (b"not a checkpoint", "whole file of torch.save or safetensors"),
        (b"PK\3\4" + b"\0" * 40, "whole file of torch.save or safetensors"),
        (bytes(range(256)), "whole file of torch.save or safetensors"),
    ],
)
def test_load_checkpoint_says_what_a_file_is_that_is_none(content, message, model, tmp_path):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected .*file\.pth.*{message}|Expected .*{message}.*file\.pth"):
        load_checkpoint(model, tmp_path / "file.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_load_checkpoint_refuses_files_that_were_cut_off(zipped, model, tmp_path):
    torch.save(weights(), tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "whole.pth").read_bytes()
    for count in (1, 9, 70, len(data) // 2, len(data) - 5):
        (tmp_path / "cut.pth").write_bytes(data[:count])
        with pytest.raises(ValueError, match=r"Expected .*cut\.pth"):
            load_checkpoint(model, tmp_path / "cut.pth")


@pytest.mark.parametrize(("name", "message"), [("none.pth", "no such file"), (".", "a folder"), ("a\0b", "null")])
def test_load_checkpoint_refuses_paths_that_are_no_files(name, message, model):
    with pytest.raises(ValueError, match=f"path of a checkpoint .*{message}"):
        load_checkpoint(model, name)


def test_load_checkpoint_refuses_files_without_weights(model, tmp_path):
    for content in ([1, 2], 3, torch.ones(2), {"optimizer": {}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="Expected a state dict"):
            load_checkpoint(model, tmp_path / "other.pth")
