"""Measures time and peak memory of every setting on one batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokengraph.evaluate.forms import Forms
from tokengraph.evaluate.memory import peak_bytes
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.run import DENSE
from tokengraph.evaluate.settings import Setting
from tokengraph.evaluate.store import write_text
from tokengraph.evaluate.timing import Timed, ideal_form, time_forms
from tokengraph.select.base import Select


@dataclass
class Measured:
    """The measured time and memory of one setting.

    Args:
        ms: Milliseconds of a batch in each round, by ``"plain"``, ``"attached"`` and ``"ideal"``.
        peak: Peak memory in bytes; ``None`` if not measured.
    """

    ms: dict[str, list[float]] = field(default_factory=dict)
    peak: int | None = None


def measure(forms: Forms, settings: Sequence[Setting], options: Options, file: Path) -> None:
    """Measures the dense model and all settings on random images, and writes a JSON file of :class:`Measured`."""
    found = {setting.key: Measured() for setting in (DENSE, *settings)}
    timed = [form for setting in (DENSE, *settings) for form in _forms(forms, setting, options)]
    if options.time:
        for name, times in time_forms(timed, options.time_rounds, show=options.progress).items():
            found[name].ms = times
    if options.memory:
        for form in timed:
            if form.kind != "ideal":
                found[form.name].peak = _peak(form, forms.device)
    write_text(file, json.dumps({name: asdict(each) for name, each in found.items()}, indent=1))


def _forms(forms: Forms, setting: Setting, options: Options) -> list[Timed]:
    """Returns the model to time and, if attached, its ideal; none if it cannot be built (its row has the reason)."""
    try:
        images = _images(forms, setting, options)
        model, select = forms.model(setting), setting.select()
        made = [Timed(setting.key, "plain" if select is None else "attached", _enter(forms, setting, options), images)]
        if isinstance(select, Select):
            with torch.no_grad(), forms.open(setting) as reader:
                reader.model(images[:1])
                counts = list(reader.handle.trace.counts_worked)
            cut = ideal_form(model, counts, select, forms.adapter(model))
            made.append(Timed(setting.key, "ideal", cut, images))
    except Exception:
        return []
    return made


def _images(forms: Forms, setting: Setting, options: Options) -> Tensor:
    size = forms.config(setting).size
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.timed(forms.device), 3, size, size)
    return torch.randn(shape, generator=generator).to(forms.device)


def _enter(forms: Forms, setting: Setting, options: Options) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def enter() -> Any:
        with forms.open(setting) as reader:
            if options.amp is None:
                yield reader.model
            else:
                with torch.autocast(forms.device.type, dtype=getattr(torch, options.amp)):
                    yield reader.model

    return enter


def _peak(form: Timed, device: torch.device) -> int | None:
    try:
        with torch.no_grad(), form.enter() as run:
            return peak_bytes(lambda: run(form.images), device)
    except Exception:  # the setting's row reports the error
        return None
