"""What MkDocs is told besides mkdocs.yml: the pages of the root, the tutorials, and llms.txt.

The pages stay where GitHub shows them, and so do their links; here links across the border of docs/ are rewritten, the
README becomes the first page, tutorials (`.py` files of cells, https://jupytext.readthedocs.io, percent format) become
pages, and each page is also kept as Markdown for readers that are programs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "AGENTS.md": "AGENTS.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
"""Pages of the root, and their names on the site."""
TUTORIALS = {
    f"tutorial-{path.stem.replace('_', '-')}.md": path for path in sorted((ROOT / "docs" / "tutorials").glob("*.py"))
}
"""Files of the tutorials by the names of their pages."""
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and those of the tutorials."""
    from mkdocs.structure.files import File

    for here in (*ROOT_PAGES.values(), *TUTORIALS):
        files.append(File.generated(config, here, content=_text_of(here)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links lead to pages of the site."""
    return _LINK.sub(lambda found: f"]({place_of(found[1])}{found[2] or ''})", markdown)


def place_of(target: str) -> str:
    """Return where a link of the root's pages or of docs/ leads to on the site, whose pages lie in one folder."""
    name = target.removeprefix("../").removeprefix("docs/")
    tutorials = {path.name: here for here, path in TUTORIALS.items()}
    return ROOT_PAGES.get(name) or tutorials.get(name.removeprefix("tutorials/"), name)


def page_of_cells(path: Path) -> str:
    """Return a tutorial as Markdown: its cells of text as they are, those of code in fences."""
    parts = []
    for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        is_text = head.strip() == "[markdown]"
        body = body.strip("\n")
        parts.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE) if is_text else f"```python\n{body}\n```")
    return "\n\n".join(parts) + "\n"


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt (https://llmstxt.org): every page with its first sentence, beside the pages as Markdown."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for entry in config.nav or []:
        ((section, pages),) = entry.items()
        lines += ["", f"## {section}", ""]
        for name in [pages] if isinstance(pages, str) else pages:
            text = _text_of(name)
            lines.append(f"- [{_title(text)}]({name}): {_first_sentence(text)}")
            (site / name).write_text(on_page_markdown(text), encoding="utf-8")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _text_of(name: str) -> str:
    """Return a page of the site as Markdown, its links as they are in the repository."""
    if name in TUTORIALS:
        return page_of_cells(TUTORIALS[name])
    there = {here: name for name, here in ROOT_PAGES.items()}
    return (ROOT / there.get(name, f"docs/{name}")).read_text(encoding="utf-8")


def _title(text: str) -> str:
    return text.split("\n", 1)[0].removeprefix("# ")


def _first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph, links as their words."""
    paragraph = next(part for part in text.split("\n\n")[1:] if part[0].isalpha() or part[0] in "`[")
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    return re.split(r"(?<=[.:])\s", words)[0].rstrip(":.") + "."
