"""``compile_blocks`` compiles the parts of one block, for every block, batch size and number of tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import KEPT, SITE
from tokengraph.attach.changes import Change
from tokengraph.attach.kept import KeptOutput, parts_to_read
from tokengraph.attach.plain import Attachment
from tokengraph.attach.site import Site
from tokengraph.flat.looks import under_vmap
from tokengraph.kinds import explains

OUTPUT = "_tokengraph_output"  # the attribute with a part's output, inside compiled code
H = TypeVar("H", bound=Attachment)


@explains
def compile_blocks(handle: H, **options: Any) -> H:
    """Compiles attention and MLP of an attached model's blocks: once for all blocks, and not again for other shapes.

    ``torch.compile(model)`` compiles every block by itself, because each has another number of tokens, and again for
    images of another size. This compiles one attention half and one MLP half, with free numbers of images and tokens,
    which all blocks share; what the strategy does between them runs as before. It takes a fraction of the time, and
    other batches, image sizes and schedules compile nothing, except that one image is another case than several.

    The first run compiles. Blocks of several kinds, and runs with gradients, compile once for each kind. Blocks whose
    map the strategy reads, and those with hooks of your own on what it reads, run as before. Undone by
    ``handle.remove()``; copies and pickles of the model are not compiled.

    Args:
        handle: What :func:`tokengraph.attach` returned for a plain ViT.
        **options: Of :func:`torch.compile`: ``backend``, ``mode``, ``fullgraph``, ``options``.

    Returns:
        The same handle.

    Raises:
        TypeError: For another kind of handle, or an unknown option.
        ValueError: If the handle was removed, or its strategy acts around modules, whose norms it replaces.
        RuntimeError: If torch is older than 2.5, which compiles every block by itself.

    Cost: nothing here; the first run compiles up to three graphs, ``docs/how/export.md`` has seconds.

    Example:
        >>> import tokengraph as tg
        >>> from tokengraph.testing import tiny_vit
        >>> model = tiny_vit()
        >>> with tg.attach(model, "tome", 3) as coarse, torch.no_grad():
        ...     _ = tg.compile_blocks(coarse, backend="eager")  # default: "inductor"
        ...     [model(torch.randn(count, 3, 32, 32)).size(0) for count in (2, 5)]
        [2, 5]
    """
    sites = _sites(handle)
    unknown = set(options) - {"backend", "mode", "fullgraph", "options"}
    if unknown:
        raise TypeError(
            f"Expected options backend, mode, fullgraph or options (got {', '.join(sorted(unknown))}). Shapes are "
            "always dynamic here; torch.compile(model) takes the others."
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        raise RuntimeError(f"Expected torch >= 2.5 (got {torch.__version__}). Use torch.compile(model).")
    adapter = next(iter(sites.values())).request.adapter
    if isinstance(adapter, CompiledHalves):
        adapter = adapter.adapter
    halves = CompiledHalves(adapter, options)
    _take_in(handle, adapter)
    for site in _sites(handle).values():
        own = halves.reading(site.request.select.reads)
        site.request = replace(site.request, adapter=cast(Adapter, own))
    return handle


def _sites(handle: Any) -> dict[nn.Module, Site]:
    """The sites of the handle's blocks.

    Raises:
        TypeError: For another kind of handle.
        ValueError: If it was removed, or its strategy acts around modules.
    """
    if not isinstance(handle, Attachment):
        raise TypeError(f"Expected the handle of a strategy in a plain ViT (got {type(handle).__name__}).")
    if handle.select.placement == "around":
        raise ValueError(
            f"Expected a strategy that acts between the halves of blocks (got {handle.select!r}, which acts around "
            "modules). Use torch.compile(model)."
        )
    marks = ((m, m.__dict__.get(SITE)) for m in handle.model.modules())
    found = {m: site for m, site in marks if isinstance(site, Site) and site.index >= 0 and site.trace is handle.trace}
    if not found:
        raise ValueError("Expected a handle that is still attached (got a removed one). Call tokengraph.attach again.")
    return found


def _take_in(handle: Attachment, adapter: Adapter) -> None:
    """Lets blocks before the first that sees coarse tokens, which attaching left alone, run like the others."""
    run = handle.trace.run
    request = next(iter(_sites(handle).values())).request
    core = find_adapter(handle.model, adapter)[0]
    for index, block in enumerate(adapter.blocks(core)[: run.start]):
        own = replace(request, select=handle.select.for_block(index))
        Change(block, Site(handle.trace, index, request=own), adapter.block_mixin).apply()
    run.start = 0


class CompiledHalves:
    """An adapter whose blocks run by compiled halves where they can; everything else is the adapter's own.

    Args:
        adapter: The adapter.
        options: Of ``torch.compile``.
        reads: What the strategy reads of the blocks, which compiled attention returns.
    """

    def __init__(self, adapter: Adapter, options: dict[str, Any], reads: str = "nothing") -> None:
        self.adapter, self.options, self.reads = adapter, options, reads
        self._plain, self._biased, self._feed, self._whole = (
            _compiled(each, options) for each in (_attend, _attend, _feed, _whole)
        )

    def reading(self, reads: str) -> CompiledHalves:
        """Returns the same compiled halves for blocks of which a strategy reads something else."""
        made = CompiledHalves.__new__(CompiledHalves)
        made.__dict__ |= self.__dict__ | {"reads": reads}
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["adapter"], name)

    def __reduce__(self) -> Any:
        return _itself, (self.adapter,)  # copies of the model are not compiled

    def attend(self, block: Any, x: Tensor, mask: Any, **side: Any) -> Tensor:
        """Runs the attention half, and hands outputs that the strategy reads to the block that asked for them."""
        parts = parts_to_read(block, self.adapter, self.reads)
        if not self._takes(block, mask, parts):
            return self.adapter.attend(block, x, mask, **side)
        run = self._plain if mask is None else self._biased
        x, found = _without_hooks(parts, lambda: run(self.adapter, block, x, mask, side, self.reads))
        kept = block.__dict__.get(KEPT)
        if kept is not None:
            kept.update(found)
        return x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Runs the MLP half."""
        return self._feed(self.adapter, block, x) if self._takes(block, None, {}) else self.adapter.feed(block, x)

    def whole(self, block: Any, x: Tensor, mask: Any, **side: Any) -> Tensor:
        """Runs a block in which the strategy does not act."""
        if type(self.adapter).whole is Adapter.whole:  # by the same halves as the others
            return self.feed(block, self.attend(block, x, mask, **side))
        parts = parts_to_read(block, self.adapter, self.reads)
        if not self._takes(block, mask, parts):
            return self.adapter.whole(block, x, mask, **side)
        return _without_hooks(parts, lambda: self._whole(self.adapter, block, x, mask, side))

    def _takes(self, block: Any, mask: Any, parts: dict[str, nn.Module]) -> bool:
        """Returns whether compiled code can run the block with this mask."""
        if torch.compiler.is_compiling() or under_vmap() or not (mask is None or isinstance(mask, Tensor)):
            return False
        return all(isinstance(hook, KeptOutput) for part in parts.values() for hook in part._forward_hooks.values())


def _attend(
    adapter: Adapter, block: Any, x: Tensor, mask: Tensor | None, side: dict[str, Any], reads: str
) -> tuple[Tensor, dict[str, Tensor]]:
    x = adapter.attend(block, x, mask, **side)
    return x, {name: part.__dict__.pop(OUTPUT) for name, part in parts_to_read(block, adapter, reads).items()}


def _feed(adapter: Adapter, block: Any, x: Tensor) -> Tensor:
    return adapter.feed(block, x)


def _whole(adapter: Adapter, block: Any, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
    return adapter.whole(block, x, mask, **side)


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compiles a copy of a function: torch limits how often it compiles one, and models must not share that."""
    code = function.__code__.replace(co_name=f"tokengraph{function.__code__.co_name}")
    return torch.compile(FunctionType(code, function.__globals__, function.__name__), dynamic=True, **options)


def _keep(module: nn.Module, args: Any, output: Tensor) -> None:
    module.__dict__[OUTPUT] = output


HOOKS = OrderedDict({0: _keep})  # one for all parts: compiled code would be bound to a block by the block's own


def _without_hooks(parts: dict[str, nn.Module], run: Callable[[], Any]) -> Any:
    """Runs something with ``HOOKS`` in place of the parts' own hooks."""
    own = {part: part._forward_hooks for part in parts.values()}
    try:
        for part in own:
            part._forward_hooks = HOOKS  # type: ignore[assignment]
        return run()
    finally:
        for part, hooks in own.items():
            part._forward_hooks = hooks


def _itself(adapter: Adapter) -> Adapter:
    return adapter
