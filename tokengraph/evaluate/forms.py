"""The forms of a model that settings name: built once for each model and resolution, attached for each use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tokengraph.attach.attach import attach
from tokengraph.evaluate.config import DataConfig, config_of_model
from tokengraph.evaluate.read import Reader
from tokengraph.evaluate.settings import Setting
from tokengraph.evaluate.source import Source, source_of

Key = tuple[str | None, int | None]


class Forms:
    """Models by (name, resolution), on one device.

    Args:
        source: The model that is evaluated.
        device: Where all forms run.
        random_weights: Whether models that settings name may have random weights too.
    """

    def __init__(self, source: Source, device: torch.device, *, random_weights: bool = False) -> None:
        self.source, self.device, self._random = source, device, random_weights
        self._sources: dict[str, Source] = {}
        self._models: dict[Key, nn.Module] = {}
        self._configs: dict[str | None, DataConfig] = {}

    def model(self, setting: Setting | None = None) -> nn.Module:
        """The plain model under a setting; of ``None`` the dense one.

        Raises:
            ValueError: If the model is unknown or takes no such resolution.
        """
        name, size = (setting.model, setting.resolution) if setting is not None else (None, None)
        if (name, size) not in self._models:
            built = self._source(name).build(size).eval().to(self.device)
            if size is not None:
                _share(built, self._own(name))
            self._models[name, size] = built
        return self._models[name, size]

    def config(self, setting: Setting | None = None) -> DataConfig:
        """The preprocessing of a setting's images."""
        name = setting.model if setting is not None else None
        if name not in self._configs:
            self._configs[name] = self._source(name).config or config_of_model(self._own(name))
        return self._configs[name].at(setting.resolution if setting is not None else None)

    @contextmanager
    def open(self, setting: Setting) -> Iterator[Reader]:
        """A reader of the setting's form; the model is plain again at the end."""
        model = self.model(setting)
        select = setting.select()
        if select is None:
            yield Reader(model)
            return
        kind: Any = select
        with attach(model, kind, setting.schedule, prop_attn=setting.prop_attn, size_bias=setting.size_bias) as handle:
            yield Reader(model, handle)

    def planned(self, setting: Setting) -> list[int]:
        """Patch tokens before the first block and after each, as the schedule plans them."""
        with self.open(setting) as reader:
            return list(reader.handle.trace.counts)

    def _own(self, name: str | None) -> nn.Module:
        return self.model(None if name is None else Setting(model=name))

    def _source(self, name: str | None) -> Source:
        if name is None:
            return self.source
        if name not in self._sources:
            self._sources[name] = source_of(name, random_weights=self._random)
        return self._sources[name]


def _share(built: nn.Module, own: nn.Module) -> None:
    """Lets a model of another resolution use the first one's weights where they are equal, which is nearly all."""
    known = dict(own.named_parameters())
    for name, parameter in built.named_parameters():
        other = known.get(name)
        if other is not None and other.shape == parameter.shape and torch.equal(other, parameter):
            parameter.data = other.data
