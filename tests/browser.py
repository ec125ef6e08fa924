"""A page in a headless Chromium: what it prints, asks for, and how wide it comes out.

The browser is the system's (chromium, chromium-browser or google-chrome on PATH), driven by Playwright
(extra `test`). A test that needs it asks for `needs_browser`, which skips where there is none.

    from browser import needs_browser, visit

    @needs_browser
    def test_page(tmp_path):
        assert visit(tmp_path / "page.html", 390).faults() == []
"""

import dataclasses
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 1400)  # a phone's and a desk's, CSS pixels
INLINE = ("file:", "data:", "blob:", "about:")


@functools.cache
def browser() -> str:
    """The browser's path; '' where there is none, or no Playwright to drive it."""
    if importlib.util.find_spec("playwright") is None:
        return ""
    return next(filter(None, map(shutil.which, BROWSERS)), "")


needs_browser = pytest.mark.skipif(not browser(), reason="no Chromium, or no Playwright")


@dataclasses.dataclass(frozen=True)
class Visit:
    """What a page did.

    Attributes:
      console: errors and warnings that it printed, and exceptions of its scripts.
      requests: addresses that it asked for, the page itself and data: left out. Those of the network are
        refused, but for the page's own server.
      broken_images: addresses of pictures that did not load, their first 100 characters.
      scroll_width: CSS pixels; more than `width` is a horizontal scroll.
      width: CSS pixels.
      screenshot: the PNG of the whole page; None unless it was asked for.
      result: what `act` returned.
    """

    console: list[str]
    requests: list[str]
    broken_images: list[str]
    scroll_width: int
    width: int
    screenshot: Path | None = None
    result: Any = None

    def faults(self) -> list[str]:
        """All that a page of ours must not do; [] where it is fine."""
        found = [f"console: {line}" for line in self.console]
        found += [f"asks for {url}" for url in self.requests]
        found += [f"picture does not load: {url}" for url in self.broken_images]
        if self.scroll_width > self.width:
            found.append(f"scrolls: {self.scroll_width} px wide at {self.width}")
        return found


def visit(
    page: str | os.PathLike,
    width: int = 1400,
    *,
    dark: bool = False,
    screenshot: str | os.PathLike | None = None,
    act: Callable[[Any], Any] | None = None,
) -> Visit:
    """Opens a page and looks at it.

    Args:
      page: a file or an http address; of the network only that server may be asked.
      width: of the window, CSS pixels; it is 900 high.
      dark: whether the reader prefers dark colours.
      screenshot: where to write a PNG of the whole page.
      act: called with Playwright's page once it has loaded, to press and read things; what this asks for
        counts too.
    """
    from playwright.sync_api import sync_playwright

    address = str(page) if "://" in str(page) else Path(page).resolve().as_uri()
    own = "/".join(address.split("/")[:3]) + "/" if address.startswith("http") else "file:"
    console: list[str] = []
    requests: list[str] = []

    def route(one):
        if one.request.url.startswith((own, *INLINE)):
            one.continue_()
        else:
            one.abort()

    with sync_playwright() as playwright:
        # The sandbox of a browser does not work inside every container; the pages are our own.
        chromium = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        try:
            context = chromium.new_context(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
            )
            tab = context.new_page()
            tab.on("console", lambda m: console.append(m.text) if m.type in _LOUD else None)
            tab.on("pageerror", lambda error: console.append(str(error)))
            tab.on("request", lambda request: requests.append(request.url))
            tab.route("**/*", route)
            tab.goto(address, wait_until="load")
            result = act(tab) if act else None
            broken, scroll = tab.evaluate(_LOOK)
            if screenshot:
                tab.screenshot(path=screenshot, full_page=True)
        finally:
            chromium.close()
    asked = [url for url in requests if url != address and not url.startswith(INLINE[1:])]
    shot = Path(screenshot) if screenshot else None
    return Visit(console, asked, broken, scroll, width, shot, result)


_LOUD = ("error", "warning")

# Pictures that load when they are scrolled to are loaded first.
_LOOK = """async () => {
  const pictures = [...document.images];
  pictures.forEach(x => { x.loading = 'eager'; });
  await Promise.all(pictures.map(x => x.decode().catch(() => null)));
  const broken = pictures.filter(x => !x.naturalWidth).map(x => (x.currentSrc || x.src).slice(0, 100));
  return [broken, document.documentElement.scrollWidth];
}"""
