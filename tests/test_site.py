"""The documentation as a site: built strictly, whole without a network, and readable on a phone."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NewPage = Callable[..., "Page"]
ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a link, heading or page that is missing stops that."""
    folder = tmp_path_factory.mktemp("site")
    program = Path(sys.executable).with_name("mkdocs")
    command = [str(program), "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "AGENTS", "CHANGELOG"} <= pages
    loads = re.compile(r"<(?:script|img|iframe|source|link)[^>]*(?:src|href)=\"?((?:https?:)?//[^\" >]+)")
    for path in site.glob("*.html"):
        assert loads.findall(path.read_text(encoding="utf-8")) == [], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_llms_txt_names_every_page_as_markdown(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S.*\.$", text, re.MULTILINE)
    assert len(listed) == text.count("\n- ")
    assert {f"{path.stem}.md" for path in site.glob("*.html")} - {"404.md"} == set(listed)
    for name in listed:
        markdown = (site / name).read_text(encoding="utf-8")
        assert markdown.startswith("# ")
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", markdown):
            assert (site / target).is_file(), f"{name}: {target}"


@pytest.mark.parametrize("width", [375, 1280])
def test_pages_fit_a_phone_and_a_desk_and_ask_no_other_server(width: int, address: str, new_page: NewPage) -> None:
    page = new_page(viewport={"width": width, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "recipe", "trees", "results", "architecture", "AGENTS", "tutorial-1-data"):
        page.goto(f"{address}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert [url for url in asked if not url.startswith(address)] == []


def test_the_search_knows_every_page(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    known = {entry["location"].split("#")[0] for entry in entries}
    assert {path.name for path in site.glob("*.html")} - {"404.html"} <= known
    assert any("min_margin" in entry["text"] for entry in entries)
