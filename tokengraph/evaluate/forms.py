"""Builds the models of settings, once for each model and resolution, and attaches strategies for each use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.attach import attach
from tokengraph.evaluate.config import DataConfig, config_of_model
from tokengraph.evaluate.costs import Anatomy, anatomy
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.own import check_made_for
from tokengraph.evaluate.read import Reader
from tokengraph.evaluate.settings import Setting
from tokengraph.evaluate.source import Source, source_of
from tokengraph.evaluate.transform import to_input
from tokengraph.io.checkpoint_files import read_checkpoint
from tokengraph.io.checkpoints import load_checkpoint
from tokengraph.select.base import Select

Key = tuple[str | None, int | None, str | None]
SAMPLE = 32  # images whose tokens are counted before a run


class Forms:
    """Models by (name, resolution), on one device.

    Args:
        source: The model that is evaluated.
        device: The device of all models.
        random_weights: True if other models in settings may have random weights too.
    """

    def __init__(self, source: Source, device: torch.device, *, random_weights: bool = False) -> None:
        self.source, self.device, self._random = source, device, random_weights
        self._sources: dict[str, Source] = {}
        self._models: dict[Key, nn.Module] = {}
        self._weights: dict[str, Any] = {}
        self._configs: dict[str | None, DataConfig] = {}

    def model(self, setting: Setting | None = None) -> nn.Module:
        """Returns the plain model of a setting; ``None`` gives the dense model.

        Raises:
            ValueError: If the model is unknown or does not support the resolution.
        """
        name, size, weights = (setting.model, setting.resolution, setting.weights) if setting else (None,) * 3
        if (name, size, weights) not in self._models:
            built = self._source(name).build(size).eval().to(self.device)
            if weights is not None:
                built = copy.deepcopy(built)  # it will load trained weights
            elif size is not None:
                _share(built, self._own(name))
            self._models[name, size, weights] = built
        return self._models[name, size, weights]

    def config(self, setting: Setting | None = None) -> DataConfig:
        """Returns the preprocessing of a setting's images."""
        name = setting.model if setting is not None else None
        if name not in self._configs:
            self._configs[name] = self._source(name).config or config_of_model(self._own(name), self.source.adapter)
        return self._configs[name].at(setting.resolution if setting is not None else None)

    @contextmanager
    def open(self, setting: Setting) -> Iterator[Reader]:
        """Attaches the setting and yields a reader; the model is plain again at the end."""
        check_made_for(setting.made_for, self.model(), self.source.adapter)
        model = self.model(setting)
        select = setting.select()
        if select is None:
            yield Reader(model, adapter=self.source.adapter)
            return
        kind: Any = select
        own = self.adapter(model)
        how: Any = {"prop_attn": setting.prop_attn, "size_bias": setting.size_bias, "adapter": own}
        with attach(model, kind, setting.schedule, **how) as handle:
            self._learned(handle, setting)
            yield Reader(model, handle, own)

    def _learned(self, handle: Any, setting: Setting) -> None:
        """Loads a trained strategy's weights, with the model that it was trained in."""
        if setting.weights is None:
            if handle.select.learns:
                raise ValueError(
                    f"Expected trained weights for {type(handle.select).__name__}, which learns (got none). "
                    "Give a checkpoint of the model with it: weights=FILE."
                )
            return
        if setting.weights not in self._weights:
            self._weights[setting.weights] = read_checkpoint(setting.weights, True)
        report = load_checkpoint(handle.model, self._weights[setting.weights])
        if report.missing or report.mismatched:
            told = "; ".join(line[:120] for line in str(report).splitlines())
            raise ValueError(f"Expected a checkpoint of the model with {setting.strategy} in it (got one that {told}).")

    def adapter(self, model: nn.Module) -> Adapter | None:
        """Returns the adapter that the user gave, where it serves a model; other models of the settings have none."""
        own = self.source.adapter
        return own if own is not None and own.serves(model) else None

    def anatomy(self, setting: Setting | None = None) -> Anatomy | None:
        """Returns the numbers that a setting's cost follows from; ``None`` for models without an adapter."""
        return anatomy(self.model(setting), self.source.adapter)

    def planned(self, setting: Setting) -> list[int]:
        """Returns the planned patch tokens before the first block and after each."""
        with self.open(setting) as reader:
            return list(reader.handle.trace.counts_worked)

    def counted(self, setting: Setting, images: Images) -> list[int]:
        """Returns the mean patch tokens before the first block and after each.

        They are the planned ones, unless the images themselves decide how many stay: then those of up to 32 images.
        """
        select = setting.select()
        if not isinstance(select, Select) or not (select.ragged or getattr(select, "threshold", None) is not None):
            return self.planned(setting)
        config, rows = self.config(setting), []
        for index in range(0, len(images), -(-len(images) // SAMPLE)):
            try:
                rows.append(to_input(images.image(index), config))
            except Exception:  # unreadable images have been reported or will be
                continue
        with torch.no_grad(), self.open(setting) as reader:
            reader.model(torch.stack(rows).to(self.device))
            trace = reader.handle.trace
            each = [trace.worked_per_image(layer) for layer in range(len(trace.counts))]
        return [round(sum(counts) / len(counts)) for counts in each]

    def _own(self, name: str | None) -> nn.Module:
        return self.model(None if name is None else Setting(model=name))

    def _source(self, name: str | None) -> Source:
        if name is None:
            return self.source
        if name not in self._sources:
            self._sources[name] = source_of(name, random_weights=self._random)
        return self._sources[name]


def _share(built: nn.Module, own: nn.Module) -> None:
    """Shares equal weights with a model of another resolution, which are nearly all."""
    known = dict(own.named_parameters())
    for name, parameter in built.named_parameters():
        other = known.get(name)
        if other is not None and other.shape == parameter.shape and torch.equal(other, parameter):
            parameter.data = other.data
