"""What every attached model tells of its last run: plain, windowed, spatial."""

import copy
import pickle

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.attach import Attachment, attach, detach
from tokengraph.attach.record import Record
from tokengraph.spatial import SpatialRecord
from tokengraph.testing import tiny_vit
from tokengraph.windows.record import WindowRecord

library("timm")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_attach_is_imported_from_its_folder():
    assert (attach, Attachment, detach) == (tg.attach, tg.Attachment, attach.__wrapped__.__globals__["detach"])


def test_every_record_is_one():
    with attach(tiny_vit(), "tome", 3) as handle:
        assert isinstance(handle.trace, Record)
    assert issubclass(WindowRecord, Record) and issubclass(SpatialRecord, Record)


def test_as_map_lays_rows_out_by_the_grid():
    record = SpatialRecord()
    with pytest.raises(RuntimeError, match="Expected a run of the model before its maps are laid out"):
        record.as_map(torch.zeros(1, 6, 2))
    record.begin((2, 3))
    rows = torch.arange(12.0).view(1, 6, 2)
    assert record.as_map(rows)[0, 1].tolist() == [[1, 3, 5], [7, 9, 11]]
    with pytest.raises(ValueError, match=r"Expected rows \[B, 2 \* 3, C\] .got \[1, 5, 2\]"):
        record.as_map(rows[:, :5])


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("strategy", ["tome", "gtp", "topk"])
def test_copies_run_on_a_record_of_their_own(strategy, twin):
    model = tiny_vit()
    with attach(model, strategy, 3) as handle, torch.no_grad():
        expected = model(IMAGES)
        other = twin(model)
        run = next(m.__dict__["_tokengraph"].trace.run for m in other.modules() if "_tokengraph" in m.__dict__)
        assert run is not handle.trace.run and not run.begun and run.output is None
        assert torch.equal(other(IMAGES), expected) and run.begun
        other(IMAGES[:1])
        assert run.at(3).lineage.now.images == 1 and handle.trace.lineage().now.images == 2
