"""report.html in headless Chromium: no sideways scrolling, no console error, no request."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.base.files import append_rows
from posttrain.report.page import write_comparison, write_report
from tests.runs import dpo_run, grpo_run, unfinished, write

pytestmark = pytest.mark.filterwarnings("error")
HOSTILE = "<script>document.title = 'broken'</script><img src=http://127.0.0.1:9/x> " + "x" * 300
KINDS = ["grpo", "dpo", "unfinished", "full", "config only", "comparison"]


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Nothing here needs Unsloth, whose import the other tests of this folder begin with."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "grpo": grpo_run(folder / "grpo"),
        "dpo": dpo_run(folder / "dpo"),
        "unfinished": unfinished(grpo_run(folder / "early"), steps=14),
        "full": grpo_run(folder / ("long_name_" * 12), steps=300, hostile=HOSTILE),
        "config only": folder / "config",
    }
    runs["config only"].mkdir()
    (runs["config only"] / "config.yaml").write_bytes((runs["dpo"] / "config.yaml").read_bytes())
    event = {"step": 3, "kind": "kl", "message": HOSTILE, "value": 1, "action": "warned"}
    append_rows(runs["full"] / "health.jsonl", [event])
    checks = [{"name": HOSTILE, "value": 0.1, "limit": 0.2, "passed": True}]
    export = {"path": HOSTILE, "proven": True, "bytes": 10**9, "checks": checks}
    write(runs["full"] / "export.json", {"exports": {"merged_16bit": export}})
    return {
        **{kind: write_report(run) for kind, run in runs.items()},
        "comparison": write_comparison(list(runs.values()), folder / "compared.html"),
        "of two": write_comparison([runs["grpo"], runs["dpo"]], folder / "of_two.html"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_in_a_browser(kind: str, pages: dict[str, Path], browser: Any) -> None:
    tab = browser.new_page()
    output: list[str] = []
    requested: list[str] = []
    tab.on("console", lambda message: output.append(message.text))
    tab.on("pageerror", lambda error: output.append(str(error)))
    tab.on("request", lambda request: requested.append(request.url))
    address = pages[kind].as_uri()
    tab.goto(address)
    sticking_out = """(width) => [...document.querySelectorAll('body *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.right > width + 1 && !e.closest('.table') && box.height > 1;
    }).map(e => e.outerHTML.slice(0, 120))"""
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate(sticking_out, width) == []
    assert tab.title() != "broken" and output == []
    assert [url for url in requested if url != address and not url.startswith("data:")] == []
    tab.close()


@pytest.mark.parametrize("kind", ["grpo", "dpo", "of two"])
def test_tables_fit_and_charts_are_alike(kind: str, pages: dict[str, Path], browser: Any) -> None:
    tab = browser.new_page()
    tab.goto(pages[kind].as_uri())
    cut = "[...document.querySelectorAll('.table')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    scales = "[...document.querySelectorAll('svg')].map(e => e.getScreenCTM().a)"
    close = """[...document.querySelectorAll('.changes .figure')].filter(e => {
        const range = document.createRange(); range.selectNodeContents(e);
        const next = e.nextElementSibling;
        return next && next.getBoundingClientRect().top < range.getBoundingClientRect().bottom
            && next.getBoundingClientRect().left + parseFloat(getComputedStyle(next).paddingLeft)
                - range.getBoundingClientRect().right < 12;
    }).map(e => e.textContent)"""
    for width in (1280, 1000, 700, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate(f"{cut}.map(e => e.getAttribute('aria-label'))") == []
        result = tab.evaluate(scales)
        assert max(result, default=1) - min(result, default=1) < 0.01
        assert tab.evaluate(close) == []
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(scheme: str, pages: dict[str, Path], browser: Any) -> None:
    """WCAG's contrast of 4.5 for every text, against the nearest background behind it."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    tab.goto(pages["full"].as_uri())
    faint = """() => {
      const parts = c => c.match(/[\\d.]+/g).map(Number);
      const light = c => { const [r, g, b] = parts(c).map(v => { v /= 255;
        return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b };
      const behind = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (parts(c).length < 4 || parts(c)[3] > 0) return c } return 'rgb(255, 255, 255)' };
      const found = [];
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim()) continue;
        const style = getComputedStyle(e);
        const ink = e.closest('svg') ? style.fill : style.color;
        const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push([walker.currentNode.data, ink, behind(e)]);
      }
      return found }"""
    assert tab.evaluate(faint) == []
    tab.close()
