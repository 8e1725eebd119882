"""A page in a browser that has no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

NewPage = Callable[..., "Page"]


@contextmanager
def opened(new_page: NewPage, path: Path, **options: Any) -> Iterator[Page]:
    """Open a page; nothing may be logged, thrown or asked for besides the file itself."""
    page = new_page(offline=True, **options)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    title = page.title()
    yield page
    assert page.title() == title, "a script of a model's ran"
    assert page.locator("img").count() == 0
    assert faults == []
    page.context.close()
