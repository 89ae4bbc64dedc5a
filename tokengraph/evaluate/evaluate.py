"""``tg.evaluate`` measures the accuracy, fidelity and cost of settings of a model on images."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.evaluate.controls import with_controls
from tokengraph.evaluate.facts import facts_of, identity
from tokengraph.evaluate.figures import Outcomes, Scorer, check_labels
from tokengraph.evaluate.folders import find_images
from tokengraph.evaluate.forms import Forms
from tokengraph.evaluate.images import Images, limited
from tokengraph.evaluate.measure import Measured, measure
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.patch_probe import fit, highest_class
from tokengraph.evaluate.ranks import Ranks, find_ranks
from tokengraph.evaluate.read import has_head
from tokengraph.evaluate.report import Report
from tokengraph.evaluate.rows import make_rows
from tokengraph.evaluate.run import DENSE, Runner
from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.evaluate.source import Source, source_of
from tokengraph.evaluate.store import Store
from tokengraph.kinds import explains

Given = str | Mapping[str, Any] | Setting


@explains
def evaluate(
    model: str | nn.Module | Source,
    settings: Sequence[Given],
    data: Images | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    controls: bool = True,
    probe: str | None = None,
    train: Images | str | os.PathLike[str] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    options: Options | None = None,
    adapter: Adapter | None = None,
) -> Report:
    """Measures the accuracy and the cost of a model's settings on the same images.

    Labels give top-1 and top-5 accuracy, or with ``probe`` a probe's accuracy by both protocols. Masks give mean IoU
    and boundary IoU. All images give agreement and KL to the dense model, cosines of the class token and of lifted
    patch maps, multiply-adds with merging, measured time and peak memory.

    Args:
        model: A name (see :func:`tokengraph.evaluate.source.source_of`), a module in eval mode, or a
            :class:`~tokengraph.evaluate.source.Source`.
        settings: Texts such as ``"tome:13"``, plans as dicts, or settings; see
            :func:`tokengraph.evaluate.settings.read_setting`. The dense model is always measured.
        data: Images, or a folder for :func:`tokengraph.evaluate.folders.find_images`.
        out: A folder for predictions and report. A stopped evaluation resumes from it with the same figures. By default
            nothing is stored.
        controls: Adds random pruning, grid pooling and a smaller image at each setting's cost.
        probe: ``"linear"`` or ``"knn"`` for backbones without a head, on the class token and the mean patch. For masks
            ``"linear"`` fits least squares on patches of ``train``.
        train: Training images of the probe; by default folds of ``data``, so that each image is predicted once.
        decode: For masks: maps patch features after the final norm, ``[B, C, h, w]``, to logits ``[B, K, h', w']``. By
            default the model's own maps.
        options: Settings of the run.
        adapter: The adapter of a model of a user's own, given as a module; as for :func:`tokengraph.attach`.

    Returns:
        The report, the dense model's row first. In several processes of ``torchrun`` all return the same.

    Raises:
        ValueError: If settings, images or folder do not fit; raised before the first run if possible.
        TypeError: For other kinds of objects.

    Cost: a run of every image for every setting and control; the dense model runs once more for each resumed part.

    Example:
        >>> from tokengraph.evaluate import Arrays, Options
        >>> from tokengraph.testing import tiny_vit
        >>> pictures = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8).numpy()
        >>> how = Options(time=False, memory=False, progress=False)
        >>> report = evaluate(tiny_vit(), ["tome:4"], Arrays(pictures), controls=False, options=how)
        >>> [row.name for row in report.rows]
        ['dense', 'tome:4']
    """
    options = options or Options()
    wanted = _unique([read_setting(s) for s in settings])
    images = limited(data if isinstance(data, Images) else find_images(data), options.limit, options.seed)
    training = train if isinstance(train, Images) or train is None else find_images(train)
    _check(images, training, probe)
    ranks = find_ranks()
    source = source_of(model, adapter=adapter)
    forms = Forms(source, options.place(ranks.local), random_weights=source.weights == "random")
    dense = forms.model()
    if images.has_labels and probe is None:
        check_labels(images, _head(dense))
    if isinstance(decode, nn.Module):
        decode = decode.eval().to(forms.device)
    added = with_controls(wanted, forms, images) if controls else []
    with ExitStack() as stack:
        folder = out if out is not None else _shared_folder(stack, ranks)
        facts = identity(source, forms, images, training, options, decode, probe)
        store = Store(folder, facts)
        on_patches = images.has_masks and training is not None
        runner = Runner(forms, store, options, ranks, decode, probe is not None and not on_patches)
        if on_patches and training is not None:
            runner.probes = _fit_patches(runner, [*wanted, *added], images, training)
        _run(runner, [*wanted, *added], images, None if on_patches else training)
        measured = _measure(store, runner, [*wanted, *added])
        report = _report(runner, images, training, (wanted, added), measured, probe)
        if out is not None and ranks.first:
            report.save(out)
        ranks.wait()
    return report


def _unique(settings: list[Setting]) -> list[Setting]:
    """Returns each setting once, without the dense model, which is always measured."""
    found = list({s.key: s for s in settings if not s.dense}.values())
    names = [s.name for s in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Expected settings of different names (got {twice[0]!r} for two). Give each a label.")
    return found


def _check(images: Images, training: Images | None, probe: str | None) -> None:
    if not len(images):
        raise ValueError("Expected at least one image (got none).")
    if probe not in (None, "linear", "knn"):
        raise ValueError(f"Expected probe as 'linear' or 'knn' (got {probe!r}).")
    if images.has_masks and probe is not None:
        if probe != "linear" or training is None or not training.has_masks:
            raise ValueError("Expected probe='linear' and train images with masks, for images with masks (got others).")
        return
    if probe is not None and not images.has_labels:
        raise ValueError("Expected images with labels for a probe (got none). Put them into one folder a class.")
    if training is not None and (probe is None or not training.has_labels):
        raise ValueError("Expected train images with labels, beside probe='linear' or 'knn' (got them without).")


def _head(model: Any) -> int | None:
    """Returns the number of classes of the model's head; ``None`` if it is unknown."""
    if not has_head(model):
        return None
    found = getattr(model, "num_classes", None) or getattr(getattr(model, "config", None), "num_labels", None)
    return int(found) if isinstance(found, int) else None


def _shared_folder(stack: ExitStack, ranks: Ranks) -> str:
    """Makes a temporary folder for this run, the same for all processes of one machine."""
    name = [stack.enter_context(tempfile.TemporaryDirectory()) if ranks.first else ""]
    if ranks.world > 1:
        dist.broadcast_object_list(name)
    return name[0]


def _run(runner: Runner, settings: list[Setting], images: Images, training: Images | None, part: str = "data") -> None:
    """Runs all parts; retries settings that failed before."""
    parts: list[tuple[str, Images]] = [(part, images)] + ([("train", training)] if training is not None else [])
    if runner.ranks.first:
        for name, _ in parts:
            for setting in settings:
                runner.store.fail(name, setting.key, None)
    runner.ranks.wait()
    for name, chosen in parts:
        runner.run(name, chosen, settings)
    runner.ranks.wait()


def _fit_patches(
    runner: Runner, settings: list[Setting], images: Images, training: Images
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Fits a probe on patches for the dense model and each setting that did not fail, from sums over train images."""
    classes = 1 + max(highest_class(images), highest_class(training))
    fitting = replace(runner, fitting=max(2, classes), features=False)
    _run(fitting, settings, training, None, "train")
    found, chunks = {}, -(-len(training) // runner.options.chunk)
    for name in [DENSE.key, *(s.key for s in settings)]:
        if not runner.store.reason("train", name):
            parts = (runner.store.load("train", name, chunk) for chunk in range(chunks))
            found[name] = fit((part for part in parts if len(part["index"])), runner.options.l2)
    return found


def _measure(store: Store, runner: Runner, settings: list[Setting]) -> dict[str, Measured]:
    """Measures time and memory in one process while the others wait; stores them with the predictions."""
    options = runner.options
    if not (options.time or options.memory):
        return {}
    file = store.folder / "measured.json"
    names = [DENSE.key, *(s.key for s in settings)]
    if runner.ranks.first:
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if list(known) != names:
            measure(runner.forms, settings, options, file)
    runner.ranks.wait()
    return {name: Measured(**values) for name, values in json.loads(file.read_text(encoding="utf-8")).items()}


def _report(
    runner: Runner,
    images: Images,
    training: Images | None,
    settings: tuple[list[Setting], list[Setting]],
    measured: dict[str, Measured],
    probe: str | None,
) -> Report:
    size = runner.options.chunk
    outcomes = Outcomes(runner.store, "data", images, -(-len(images) // size))
    train = None if training is None else Outcomes(runner.store, "train", training, -(-len(training) // size))
    skipped = [*outcomes.skipped, *(train.skipped if train is not None else [])]
    if not outcomes.dense:
        raise ValueError(f"Expected images that can be read (got none of {len(images)}; first: {skipped[0]}).")
    scorer = Scorer(outcomes, runner.options, *((None, None) if runner.probes else (probe, train)))
    rows = make_rows(scorer, runner, settings, measured)
    return Report(tuple(rows), tuple(skipped), facts_of(runner, images, len(outcomes.dense["index"]), probe))
