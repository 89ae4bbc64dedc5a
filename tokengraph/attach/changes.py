"""What attaching changes in a model, module by module; and the one way back."""

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
    """A hook for a module: a function marked with :func:`~tokengraph.adapters.coarse.ours`, or an object that is.

    Args:
        module: Where it goes: the changed module, or one whose output the hook leaves with its attribute ``block``.
        call: The hook.
        before: True for a forward pre-hook, False for a forward hook.
        with_kwargs: Whether it takes keyword arguments too.
    """

    module: nn.Module
    call: Callable[..., Any]
    before: bool = False
    with_kwargs: bool = False


@dataclass(frozen=True)
class Change:
    """What one module gets. Several changes of one attachment to one module add up.

    Args:
        module: The module.
        site: What it carries.
        mixin: The class that is put in front of its own; ``None``: it keeps its class.
        parts: Modules and parameters to put in, by name. They take the device, dtype and mode of the module;
            parameters that had to be made anew for that replace their entry.
        hooks: Hooks that belong to it.
    """

    module: nn.Module
    site: Mark
    mixin: type[Coarse] | None = None
    parts: dict[str, nn.Module | nn.Parameter] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()

    def apply(self) -> None:
        """Changes the module. :func:`undo` takes back also what a failure left half done."""
        module = self.module
        site: Mark = module.__dict__.setdefault(SITE, self.site)
        for name, part in self.parts.items():
            self.parts[name] = _put(module, name, part)
            site.parts = (*site.parts, name)
        for hook in self.hooks:
            if hook.before:
                hook.module.register_forward_pre_hook(hook.call, with_kwargs=hook.with_kwargs)
            else:
                hook.module.register_forward_hook(hook.call, with_kwargs=hook.with_kwargs)
        if self.mixin is not None:
            site.original = type(module)
            module.__class__ = coarse_class(self.mixin, type(module))


def undo(model: nn.Module, trace: object = None) -> None:
    """Takes classes, parts, hooks and their flags out again: of the attachment with this record, or of every one.

    It goes by what modules carry, so that it serves copies and loaded models too.

    Raises:
        RuntimeError: If the classes of modules were swapped again since: nothing is changed.
    """
    found = [(m, site) for m in model.modules() if isinstance(site := m.__dict__.get(SITE), Mark)]
    found = [(m, site) for m, site in found if trace is None or site.trace is trace]
    for module, site in found:
        kind = type(module)
        if site.original not in (None, kind) and kind is not coarse_class(kind.__bases__[0], site.original):
            raise RuntimeError(
                f"Expected a model whose classes nobody has swapped since attach (got {kind.__name__}, as of "
                "fully_shard or a parametrization). Take that off first, or make the model again."
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


def _unhook(modules: Iterable[nn.Module], ours: set[int]) -> None:
    """Takes tokengraph's hooks out that belong to the modules with these ids."""
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "of_tokengraph", False) and id(getattr(hook, "block", module)) in ours:
                    del hooks[key]
                    for flags in HOOK_FLAGS:
                        getattr(module, flags).pop(key, None)


def _put(host: nn.Module, name: str, part: nn.Module | nn.Parameter) -> nn.Module | nn.Parameter:
    """Puts a part into a module; returns it as it is then."""
    like = next(host.parameters())
    if isinstance(part, nn.Module):
        host.add_module(name, part.to(like.device, like.dtype).train(host.training))
        return part
    if (part.device, part.dtype) != (like.device, like.dtype):
        part = nn.Parameter(part.detach().to(like.device, like.dtype), part.requires_grad)
    host.register_parameter(name, part)
    return part
