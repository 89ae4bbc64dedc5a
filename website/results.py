"""The results pages: the files that benchmarks wrote, as they are, with their pictures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from website.measured import ROOT

RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = {
    "truth/README.md": "make truth TRUTH=report",
    "truth/planned.md": "python benchmarks/truth plan",
    "truth/realigned.md": "python benchmarks/truth realign",
    "token_gnn.md": "python benchmarks/token_gnn",
    "cpu-1-core/vlm_gemma.md": "python benchmarks/vlm.py --cases gemma",
    "cpu-1-core/vlm_llava.md": "python benchmarks/vlm.py --cases llava",
    "cpu-1-core/vlm_llava_8_layers.md": "python benchmarks/vlm.py --cases llava --decoder 8",
    "cpu-1-core/vlm_qwen.md": "python benchmarks/vlm.py --cases qwen --batch 1",
    "cpu-1-core/vlm_qwen_b8.md": "python benchmarks/vlm.py --cases qwen --batch 8",
}
TITLES = {
    "truth/README.md": "Accuracy on real features",
    "truth/planned.md": "Plans against fixed settings",
    "truth/realigned.md": "Features mapped back to dense ones",
    "token_gnn.md": "GNNs on token graphs",
}


def sources() -> dict[str, Path]:
    """Returns the files of results by the path of their page."""
    found = {}
    for file in sorted(RESULTS.rglob("*.md")):
        name = file.relative_to(RESULTS).as_posix()
        page = name.removesuffix(".md").replace("/", "-")
        if file.parent.name == "truth":  # its pages have short names
            page = "truth" if file.stem == "README" else file.stem
        found[f"results/{page}.md"] = file
    return found


def pages() -> dict[str, str | bytes]:
    """Returns the pages and the pictures beside them."""
    found: dict[str, str | bytes] = {}
    for path, file in sources().items():
        found[path] = _page(file, found)
    return found


def titles() -> dict[str, str]:
    """Returns the pages by their titles in the navigation: accuracy first, then times by machine."""
    ordered = sorted(sources().items(), key=lambda item: (item[1].parent.name != "truth", item[0]))
    return {_title(file): path for path, file in ordered}


def contents() -> str:
    """Returns a list of the pages with the commands that make them."""
    rows = ["| results | made by |", "|---|---|"]
    for title, path in titles().items():
        name = sources()[path].relative_to(RESULTS).as_posix()
        command = COMMANDS.get(name) or f"python benchmarks/{_script(sources()[path].stem)}"
        rows.append(f"| [{title}]({path.removeprefix('results/')}) | `{command}` |")
    return "\n".join(rows)


def _script(stem: str) -> str:
    """Returns the benchmark that wrote a file: the longest beginning of its name, as of ``end_to_end_libraries``."""
    words = stem.split("_")
    names = ["_".join(words[:count]) + ".py" for count in range(len(words), 0, -1)]
    return next(name for name in names if (ROOT / "benchmarks" / name).exists())


def readme_table() -> str:
    """Returns the table of accuracy that ``make truth TRUTH=report`` writes between the README's marks."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from truth.readme import readme_table as table

    return table(RESULTS / "truth")


def _title(file: Path) -> str:
    name = file.relative_to(RESULTS).as_posix()
    if name in TITLES:
        return TITLES[name]
    return f"{file.stem.replace('_', ' ')} ({file.parent.name})"


def _page(file: Path, found: dict[str, str | bytes]) -> str:
    """The file's text with the command that made it; its pictures are added to ``found``."""
    text = file.read_text(encoding="utf-8")
    name = file.relative_to(RESULTS).as_posix()
    place = file.parent.relative_to(RESULTS).as_posix().replace(".", "")

    def picture(match: re.Match[str]) -> str:
        """A picture of the same folder, copied beside the page."""
        source = file.parent / match[2]
        if not source.exists():
            return match[0]
        copied = "-".join(filter(None, (place, match[2])))
        found[f"results/{copied}"] = source.read_bytes()
        return f"![{match[1]}]({copied})"

    text = re.sub(r"!\[([^\]]*)\]\(([\w./-]+\.png)\)", picture, text)
    if not text.startswith("# "):
        text = f"# {_title(file)}\n\n{text}"
    if name in COMMANDS and "Written by" not in text:
        text = text.replace("\n\n", f"\n\nMade by `{COMMANDS[name]}`.\n\n", 1)
    for image in sorted(file.parent.glob(f"{file.stem}*.png")):
        copied = "-".join(filter(None, (place, image.name)))
        if image.stem == file.stem and f"results/{copied}" not in found:
            found[f"results/{copied}"] = image.read_bytes()
            text += f"\n![{image.stem}]({copied})\n"
    return text
