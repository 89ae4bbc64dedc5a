"""Files of DiffRate's rates: a list of counts for each of the two steps, and for how many patches they are."""

from __future__ import annotations

import json
from pathlib import Path


def read_rates(file: str | Path) -> tuple[list[int], list[int], int | None, str]:
    """Reads lists, patches and ``merge_by`` of a JSON file.

    Raises:
        ValueError: If it has not both lists.
    """
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in ("prune", "merge")):
        raise ValueError(f'Expected {{"prune": [...], "merge": [...]}} in {Path(file).name} (got {str(found):.60}).')
    return found["prune"], found["merge"], found.get("patches"), found.get("merge_by", "attention")


def write_rates(file: str | Path, prune: list[int], merge: list[int], patches: int | None, merge_by: str) -> None:
    """Writes them; ``merge_by`` where it is not as published."""
    content: dict[str, object] = {"prune": prune, "merge": merge, "patches": patches}
    if merge_by != "attention":
        content["merge_by"] = merge_by
    Path(file).write_text(json.dumps(content) + "\n", encoding="utf-8")
