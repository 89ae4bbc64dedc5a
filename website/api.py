"""The reference: a page for each folder of the package, and a list of everything."""

from __future__ import annotations

import inspect

from website.names import TITLES, everything, page_of, reference


def titles() -> dict[str, str]:
    """Returns the pages by their titles, in the order of the navigation."""
    there = {page for page in page_of().values() if page.startswith("api/")}
    known = {title: f"api/{folder}.md" for folder, (title, _) in TITLES.items() if f"api/{folder}.md" in there}
    rest = sorted(there - set(known.values()))
    return known | {page.removeprefix("api/").removesuffix(".md"): page for page in rest}


def pages() -> dict[str, str | bytes]:
    """Returns the pages of the reference."""
    return {"api/index.md": _contents()} | {page: _page(title, page) for title, page in titles().items()}


def _page(title: str, page: str) -> str:
    folder = page.removeprefix("api/").removesuffix(".md")
    about = TITLES.get(folder, (title, ""))[1]
    blocks = [reference(name) for name, at in page_of().items() if at == page]
    return "\n\n".join([f"# {title}", about, *blocks]) + "\n"


def _contents() -> str:
    lines = [
        "# Reference",
        "Everything that is public, by where it is explained. Strategies and their functions have pages of their own.",
        "| name | what it does |\n|---|---|",
    ]
    rows = []
    for name, found in sorted(everything().items(), key=lambda item: item[0].rpartition(".")[2].casefold()):
        first = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split()).replace("|", "\\|")
        page = page_of()[name]
        address = page.removeprefix("api/") if page.startswith("api/") else f"../{page}"
        rows.append(f"| [`{name.rpartition('.')[2]}`]({address}#{name}) | {_plain(first)} |")
    return "\n\n".join(lines) + "\n" + "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    from website.text import to_markdown

    return to_markdown(text)
