"""The changes that attaching makes to single modules, and ``undo``, which reverts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tokengraph.adapters.coarse import KEPT, SITE, Coarse, coarse_class
from tokengraph.attach.site import Mark

HOOK_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


@dataclass(frozen=True)
class Hook:
    """A hook for a module: a callable marked with :func:`~tokengraph.adapters.coarse.ours`.

    Args:
        module: The module to hook: the changed module, or a part of the block that ``call.block`` names.
        call: The hook.
        before: True for a forward pre-hook, False for a forward hook.
        with_kwargs: True if the hook takes keyword arguments too.
    """

    module: nn.Module
    call: Callable[..., Any]
    before: bool = False
    with_kwargs: bool = False


@dataclass(frozen=True)
class Change:
    """Everything that attaching changes in one module. Several changes of one attachment to a module add up.

    Args:
        module: The module.
        site: The mark that it will carry.
        mixin: The class to put in front of the module's own; ``None`` keeps the class.
        parts: Modules and parameters to put in, by name. They take the device, dtype and mode of the module; a
            parameter that had to be created again for that replaces its entry here.
        hooks: The module's hooks.
        values: Attributes to set, by name; their old values come back at the end.
    """

    module: nn.Module
    site: Mark
    mixin: type[Coarse] | None = None
    parts: dict[str, nn.Module | nn.Parameter] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def apply(self) -> None:
        """Changes the module. :func:`undo` also reverts a change that failed halfway."""
        module = self.module
        site: Mark = module.__dict__.setdefault(SITE, self.site)
        for name, part in self.parts.items():
            self.parts[name] = _put(module, name, part)
            site.parts = (*site.parts, name)
        for name, value in self.values.items():
            site.values.setdefault(name, getattr(module, name))
            setattr(module, name, value)
        for hook in self.hooks:
            if hook.before:
                hook.module.register_forward_pre_hook(hook.call, with_kwargs=hook.with_kwargs)
            else:
                hook.module.register_forward_hook(hook.call, with_kwargs=hook.with_kwargs)
        if self.mixin is not None:
            site.original = type(module)
            module.__class__ = coarse_class(self.mixin, type(module))


def undo(model: nn.Module, trace: object = None) -> None:
    """Restores classes and removes parts, hooks and hook flags.

    Reads only the marks on the modules, so that copies and loaded models work too.

    Args:
        model: The model.
        trace: The record of the attachment to undo; ``None`` undoes every one.

    Raises:
        RuntimeError: If something swapped the classes of modules again since. The model is then unchanged.
    """
    found = [(m, site) for m in model.modules() if isinstance(site := m.__dict__.get(SITE), Mark)]
    found = [(m, site) for m, site in found if trace is None or site.trace is trace]
    for module, site in found:
        kind = type(module)
        if site.original not in (None, kind) and kind is not coarse_class(kind.__bases__[0], site.original):
            raise RuntimeError(
                f"Expected a model whose classes have not been swapped since attach (got {kind.__name__}, as "
                "fully_shard or a parametrization makes). Undo that first, or create the model again."
            )
    _unhook(model.modules(), {id(module) for module, _ in found})
    for module, site in found:
        module.__dict__.pop(SITE)
        module.__dict__.pop(KEPT, None)
        if site.original is not None:
            module.__class__ = site.original
        for name in site.parts:
            module._modules.pop(name, None)
            module._parameters.pop(name, None)
        for name, value in site.values.items():
            setattr(module, name, value)


def _unhook(modules: Iterable[nn.Module], ours: set[int]) -> None:
    """Removes tokengraph's hooks that belong to the modules with these ids."""
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "of_tokengraph", False) and id(getattr(hook, "block", module)) in ours:
                    del hooks[key]
                    for flags in HOOK_FLAGS:
                        getattr(module, flags).pop(key, None)


def _put(host: nn.Module, name: str, part: nn.Module | nn.Parameter) -> nn.Module | nn.Parameter:
    """Puts a part into a module on its device and dtype; returns the part as it is there."""
    like = next(host.parameters())
    if isinstance(part, nn.Module):
        host.add_module(name, part.to(like.device, like.dtype).train(host.training))
        return part
    if (part.device, part.dtype) != (like.device, like.dtype):
        part = nn.Parameter(part.detach().to(like.device, like.dtype), part.requires_grad)
    host.register_parameter(name, part)
    return part
