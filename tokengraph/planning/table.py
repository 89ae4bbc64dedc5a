"""A plan as a text table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokengraph.planning.facts import Figures

SHOWN = {  # field: (label, format)
    "cost": ("cost (share of multiply-adds)", "{:.3f}"),
    "speedup": ("speed-up", "{:.2f}x"),
    "ms": ("milliseconds a batch", "{:.1f}"),
    "class_cosine": ("class token, cosine", "{:.4f}"),
    "class_worst": ("class token, worst 5 %", "{:.4f}"),
    "patch_cosine": ("patches, cosine", "{:.4f}"),
    "patch_worst": ("patches, worst 5 %", "{:.4f}"),
    "agreement": ("same class as the plain model", "{:.3f}"),
    "kl": ("KL to the plain model, nats", "{:.4f}"),
}


def table(plan: Mapping[str, Any]) -> str:
    """Returns the table of a plan's fields: what it does, block by block, and its figures."""
    setting, tokens, target = plan["setting"], plan["tokens"], plan["target"]
    budget = ", ".join(f"{k}={v:g}" for k, v in plan["budget"].items())
    lines = [f"Plan for {target.name} ({target.depth} blocks, {target.patches} patches), {budget}, {plan['preserve']}"]
    options = {**setting.options, **({} if setting.prop_attn is None else {"prop_attn": setting.prop_attn})}
    lines.append(f"  strategy    {setting.strategy or 'none'}{''.join(f', {k}={v}' for k, v in options.items())}")
    size = "its own" if setting.resolution is None else f"{setting.resolution} px"
    lines.append(f"  resolution  {size}, {tokens[0]} tokens")
    lines += ["", "  block   " + "".join(f"{i:>5}" for i in range(1, target.depth + 1))]
    lines.append("  tokens  " + "".join(f"{n:>5}" for n in tokens[1:]))
    for name, values in plan["sensitivity"].items():
        lines.append(f"  loss if half of the tokens merge there: {name}")
        lines.append("          " + "".join("    -" if v is None else f"{_short(v):>5}" for v in values))
    if plan["similarity"]:
        lines.append("  cosine of a patch token with the one most similar to it, in the plain model")
        lines.append("          " + "".join(f"{_short(v):>5}" for v in plan["similarity"]))
    lines += ["", f"  {'':32}{'predicted':>10}{'held-out':>10}"]
    predicted, measured = plan["predicted"], plan["measured"]
    for key, (label, shape) in SHOWN.items():
        shown = [_value(each, key, shape) for each in (predicted, measured)]
        if any(shown):
            lines.append(f"  {label:32}{shown[0]:>10}{shown[1]:>10}")
    lines += [f"  {note}" for note in plan["notes"]]
    if plan["seconds"]:
        lines.append(f"  Planned in {plan['seconds']:.0f} s.")
    return "\n".join(lines)


def _value(figures: Figures, key: str, shape: str) -> str:
    value = getattr(figures, key)
    return "" if value is None else shape.format(value)


def _short(value: float) -> str:
    """Three digits at most: ``.003``, ``.25``, ``1.2``."""
    value = max(value, 0.0)  # rounding
    return f"{value:.1f}" if value >= 0.9995 else f"{value:.3f}"[1:]
