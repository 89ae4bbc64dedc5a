"""``tokengraph.vlm.reduce``: fewer visual tokens between a model's encoder and its language model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from tokengraph.kinds import explains
from tokengraph.select.base import Select
from tokengraph.vlm.budget import check_keep
from tokengraph.vlm.columns import check_prompt
from tokengraph.vlm.embeds import check_runs_on_features, takes_encoder_outputs, with_embeddings
from tokengraph.vlm.encode import encode
from tokengraph.vlm.families.find import find_base, find_family
from tokengraph.vlm.prompt import Prompt
from tokengraph.vlm.record import Record
from tokengraph.vlm.rows import reduce_visual
from tokengraph.vlm.selectors.names import resolve


class ReducedInputs(dict):
    """Inputs of ``model(**inputs)`` and ``model.generate(**inputs)``, with the :class:`Record` of what was done.

    ``generate`` with several beams writes into the encoder outputs that it is given; so each ``**inputs`` hands out a
    copy of them, which shares the features.
    """

    record: Record

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name == "mm_encoder_outputs":
            return {modality: copy.copy(output) for modality, output in value.items()}
        return value

    def __iter__(self) -> Iterator[str]:  # without it ** would not call __getitem__
        return super().__iter__()


@explains
def reduce(
    model: Any,
    inputs: Mapping[str, Any],
    select: str | type[Select] | Select,
    keep: int | float,
    *,
    across: bool = False,
) -> ReducedInputs:
    """Encodes the images of a prompt and reduces their tokens before the language model reads them.

    The model is not changed. Its encoder runs here, under the caller's gradient mode; for inference call it under
    ``torch.no_grad()``. The features are reduced image by image, the prompt loses the columns of removed
    placeholders, and every other token keeps the position that it had in the whole prompt.

    Args:
        model: A vision-language model of transformers 5; see ``docs/vlm.md`` for the families.
        inputs: The processor's output: ``input_ids [B, L]``, pixels, and what comes with them. ``labels`` lose the
            same columns. Prompts may have any number of images, and none.
        select: A strategy by name, class or instance: any of this library that reads features, or one of
            :mod:`tokengraph.vlm.selectors`.
        keep: Share of each tile's tokens (float in (0, 1], rounded up), or tokens of each image (int; an image with
            fewer stays whole), divided over its tiles or frames.
        across: Choose among all tiles or frames of an image together; by default each is reduced by itself. A video
            then is one grid ``(T, H, W)``.

    Returns:
        Inputs without pixels, with ``mm_encoder_outputs`` (``inputs_embeds`` in transformers that have no such
        argument) and ``position_ids``; and ``.record``. If nothing is removed the prompt stays as it is.

    Raises:
        ValueError: If ``keep`` is out of range, the inputs have no images, placeholders and features do not fit, or
            the strategy needs what this model has not.
        TypeError: If the model is no vision-language model.

    Cost: the encoder, the strategy, one reduction of the features and one gather of each input; on CUDA a few host
    synchronisations to lay out the shorter prompts.

    Example:
        >>> inputs = processor(text=prompt, images=image, return_tensors="pt")  # doctest: +SKIP
        >>> inputs = tokengraph.vlm.reduce(model, inputs, "dpc-knn", keep=0.25)  # doctest: +SKIP
        >>> model.generate(**inputs, max_new_tokens=64)  # doctest: +SKIP
    """
    check_keep(keep)
    select = resolve(select)
    base = find_base(model)
    family = find_family(base)
    check_runs_on_features(model)
    ids, mask = check_prompt(inputs)
    encoded = encode(base, inputs, select)
    direct = takes_encoder_outputs(model, base, any(visual.deep for visual in encoded))
    prompt = Prompt(base, family, inputs, ids, mask)
    for visual in encoded:
        family.prepare(base, visual)
        prompt.place(visual)
    done = [
        reduce_visual(visual, family.tiles(base, inputs, visual), select, keep, across=across) for visual in encoded
    ]
    shorter = prompt.without([each.stands for each in done])
    columns = shorter["input_ids"].size(1)
    result = ReducedInputs(shorter)
    if direct:
        result["mm_encoder_outputs"] = {
            visual.modality: visual.with_rows(each.rows, each.kept, each.deep)
            for visual, each in zip(encoded, done, strict=True)
        }
    else:
        rows = {visual.modality: each.rows for visual, each in zip(encoded, done, strict=True)}
        prompt.number(result)
        result["inputs_embeds"] = with_embeddings(base, family, result.pop("input_ids"), rows)
    images = [image for i, each in enumerate(done) for image in each.images(prompt.rows_of(i))]
    result.record = Record(images, (ids.size(1), columns), family.name)
    return result
