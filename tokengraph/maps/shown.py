"""How a map shows itself: its numbers, not its tensors."""

from __future__ import annotations

from typing import Any


def shown(assignment: Any) -> str:
    """Returns the text of a map, such as ``Assignment(tokens=392, clusters=98, images=2)``; reads no device."""
    parts = {"tokens": assignment.num_tokens, "clusters": assignment.num_clusters}
    if assignment.cluster_ptr is not None:
        parts["images"] = assignment.cluster_ptr.numel() - 1
    if assignment.lossy:
        parts["drops"] = True
    return f"{type(assignment).__name__}({', '.join(f'{name}={value}' for name, value in parts.items())})"
