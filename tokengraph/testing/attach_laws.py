"""The laws of attaching, for plain, windowed and spatial models; each raises ``AssertionError`` if it is broken."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.attach.attach import detach
from tokengraph.attach.handle import Handle
from tokengraph.kinds import explains
from tokengraph.testing.hold import hold
from tokengraph.testing.model_case import anatomy, same, tensors


@dataclass(frozen=True)
class AttachCase:
    """A model, images for it, and ways to attach something to it.

    Args:
        make: Makes the model, with the same weights each time, in evaluation mode.
        images: The input of the model.
        put: Attaches the strategy under test.
        block: Returns a block of the model that ``put`` changes.
        others: Other ways to attach something to the same model; handles must not affect each other.
    """

    make: Callable[[], nn.Module]
    images: Tensor
    put: Callable[[nn.Module], Handle]
    block: Callable[[nn.Module], nn.Module]
    others: Sequence[Callable[[nn.Module], Handle]] = ()

    def run(self, model: nn.Module) -> list[Tensor]:
        """Returns every tensor of the model's output, without gradient and with fixed random numbers."""
        torch.manual_seed(7)
        with torch.no_grad():
            return tensors(model(self.images))


def gives_back(case: AttachCase) -> None:
    """``remove`` restores classes, hooks, parameter names and outputs; a second call does nothing."""
    model = case.make()
    plain, keys, before = case.run(model), list(model.state_dict()), anatomy(model)
    handle = case.put(model)
    assert not same(case.run(model), plain), "the strategy did nothing"
    handle.remove()
    handle.remove()
    assert anatomy(model) == before
    assert list(model.state_dict()) == keys
    assert same(case.run(model), plain)


def ignores_a_stale_handle(case: AttachCase) -> None:
    """After something else is attached, ``remove`` of an older handle changes nothing."""
    for put in (case.put, *case.others):
        model = case.make()
        old = case.put(model)
        old.remove()
        new = put(model)
        attached, before = case.run(model), anatomy(model)
        old.remove()
        assert anatomy(model) == before, "the old handle took the new strategy out"
        assert same(case.run(model), attached)
        new.remove()


def forgets_past_runs(case: AttachCase) -> None:
    """After ten training runs no more tensors are alive than after three."""
    model = case.make().train()
    with case.put(model), _only_new_objects():
        counts = []
        for run in range(10):
            torch.manual_seed(run)
            sum(t.square().sum() for t in tensors(model(case.images))).backward()  # type: ignore[union-attr]
            gc.collect()
            counts.append(len(_alive()))
    assert counts[9] <= counts[2], f"{counts[9] - counts[2]} tensors of seven past runs are alive"


@contextmanager
def _only_new_objects() -> Iterator[None]:
    """Python's collector looks at objects made inside alone: torch and its compiler hold millions, seconds a look."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _alive() -> list[Any]:
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]


def copies_on_its_own(case: AttachCase) -> None:
    """A deep copy stays attached when the original is detached; ``detach`` takes the strategy out of the copy."""
    model = case.make()
    plain = case.run(model)
    handle = case.put(model)
    attached, twin = case.run(model), copy.deepcopy(model)
    handle.remove()
    assert same(case.run(model), plain)
    assert same(case.run(twin), attached)
    detach(twin)
    assert same(case.run(twin), plain), "detach left the copy attached"


def refuses_a_replaced_forward(case: AttachCase) -> None:
    """``attach`` raises if the ``forward`` of a block was replaced, and leaves the model unchanged."""
    model = case.make()
    block = case.block(model)
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    _refused(case, model, "a block with a replaced forward")


def refuses_data_parallel(case: AttachCase) -> None:
    """``attach`` raises for ``nn.DataParallel`` around the model, and leaves the model unchanged."""
    _refused(case, nn.DataParallel(case.make()), "DataParallel")


def _refused(case: AttachCase, model: nn.Module, what: str) -> None:
    before = anatomy(model)
    try:
        case.put(model).remove()
    except ValueError as error:
        assert str(error), "the error says nothing"
    else:
        raise AssertionError(f"attach accepted {what}")
    assert anatomy(model) == before, "a refusal changed the model"


ATTACH_LAWS: list[Callable[[AttachCase], None]] = [
    gives_back,
    ignores_a_stale_handle,
    forgets_past_runs,
    copies_on_its_own,
    refuses_a_replaced_forward,
    refuses_data_parallel,
]


@explains
def check_attach(case: AttachCase, *, without: Sequence[str] = ()) -> None:
    """Checks a way of attaching against every law; see :func:`tokengraph.testing.check_select` for ``without``.

    Raises:
        AssertionError: If a law is broken; the message names the first one.
        ValueError: If ``without`` names a law that does not exist.
    """
    hold(ATTACH_LAWS, case, "The attachment", without)
