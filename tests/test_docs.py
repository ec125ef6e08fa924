"""The site of the docs: it builds without a warning, holds every page, and asks no other server."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(TOP / "docs/site/mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # Abort for a warning: a link into nowhere, a name that is not in the package
    return folder


def test_every_page_is_there(site):
    home = (site / "index.html").read_text()
    for page in (TOP / "docs").glob("*.md"):
        name = "" if page.stem == "index" else f"{page.stem}/"
        assert (site / name / "index.html").exists() and f'href="{name or "."}' in home, page


def test_the_api_has_the_docstrings(site):
    text = re.sub(r"<[^>]+>", "", (site / "api/index.html").read_text())
    assert "Loads the classifier of a run" in text and "Class probabilities, float32 [N, C]" in text


def test_it_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//[^ >]*"
            r"|<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*href=\"?(?:https?:)?//[^ >]*",
            page.read_text(),
        )
        assert not loaded, page
