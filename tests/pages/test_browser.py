"""The look at a page sees what is wrong with it."""

from browser import needs_browser, visit

HEAD = '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">'
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@needs_browser
def test_faults_are_seen(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        f'{HEAD}<img alt="" src="{PIXEL}"><img alt="" src="none.png">'
        '<img alt="" src="http://127.0.0.1:9/far.png"><div style="width:1200px">wide</div>'
        "<script>nothing.here()</script>"
    )
    seen = visit(page, 390)
    assert any("nothing" in line for line in seen.console)
    assert [url.rpartition("/")[2] for url in seen.requests] == ["none.png", "far.png"]
    assert len(seen.broken_images) == 2
    assert seen.scroll_width >= 1200
    assert len(seen.faults()) >= 6


@needs_browser
def test_a_good_page_has_none(tmp_path):
    page, shot = tmp_path / "good.html", tmp_path / "good.png"
    page.write_text(f'{HEAD}<img alt="" loading="lazy" src="{PIXEL}"><p id="x">text')
    seen = visit(page, 390, dark=True, screenshot=shot, act=lambda tab: tab.inner_text("#x"))
    assert seen.faults() == [] and seen.result == "text"
    assert shot.read_bytes().startswith(b"\x89PNG")
