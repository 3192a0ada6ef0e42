"""The page in a real browser: what is seen, what is reached by keys, what is fetched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

    OpenPage = Callable[..., Page]

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]

PROGRAM = """
import sys

def hear(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = args[1] if event == "socket.connect" else args[0]
        host = address[0] if isinstance(address, tuple) else address
        if host not in ("127.0.0.1", "localhost", "::1", None):
            print("asked for", host, file=sys.stderr, flush=True)

sys.addaudithook(hear)
from rerank_plugins.cli import main
sys.exit(main())
"""

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

FOX = "In winter foxes hunt by ear."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The playground as a user starts it, on a free port; Ctrl-C ends it.

    It asks nobody for anything, and has nothing to complain about.
    """
    heard = tmp_path_factory.mktemp("playground") / "stderr"
    complaints = heard.open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "ui", "embedded", "lexical", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    with process, complaints:
        try:
            line = process.stdout.readline()
            assert line.startswith("playground of embedded, lexical on http://127.0.0.1:")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=30)
    assert (code, heard.read_text()) == (130, "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, served: str) -> Iterator[OpenPage]:
    """Open the page; nothing may be asked of another host, and no script may fail or speak."""
    foreign: list[str] = []
    trouble: list[str] = []
    contexts = []

    def open_it(viewport: dict[str, int] = WIDE, **settings: object) -> Page:
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)

        def note(url: str) -> None:
            if not url.startswith((f"{served}/", "data:", "blob:")):
                foreign.append(url)

        page.on("request", lambda request: note(request.url))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.goto(served)
        page.wait_for_selector("#rp-rank")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert foreign == []
    assert trouble == []


def _rank(page: Page) -> None:
    before = page.evaluate("document.querySelector('#rp-result').textContent")
    page.get_by_role("button", name="Rank", exact=True).click()
    page.wait_for_function(
        "old => document.querySelector('#rp-result').textContent !== old", arg=before
    )


def _beside(page: Page, model: str) -> None:
    page.locator("#rp-model-b").get_by_label(model).check()


def test_one_press_shows_the_new_order_and_how_far_each_moved(open_page: OpenPage) -> None:
    page = open_page()

    _rank(page)

    first = page.locator(".rp-list > li").first
    assert FOX in first.inner_text()
    assert "↑4" in first.inner_text()
    assert "was 5" in first.inner_text()
    told = page.locator("#rp-status [role=status], #rp-status[role=status]")
    assert told.inner_text() == "9 documents ranked by embedded."
    page.get_by_text("Time by stage").first.click()
    assert "in the model" in page.inner_text(".rp-stages ul")


def test_two_models_stand_side_by_side(open_page: OpenPage) -> None:
    page = open_page()

    _beside(page, "lexical")
    _rank(page)

    boxes = [section.bounding_box() for section in page.locator(".rp-answer").all()]
    assert [round(box["y"]) for box in boxes[:2]] == [round(boxes[0]["y"])] * 2
    assert "Kendall" in page.inner_text(".rp-agreement")
    lists = page.locator(".rp-list")
    assert FOX in lists.nth(0).locator("li").first.inner_text()
    assert FOX not in lists.nth(1).locator("li").first.inner_text()


def test_everything_is_reached_and_done_by_keys(open_page: OpenPage) -> None:
    page = open_page()
    reached = []

    # The query has the focus when the page opens; a ring shows where it is.
    while not reached or not reached[-1].startswith("Files"):
        name, group, ring = page.evaluate(_FOCUS)
        reached.append(name)
        assert ring == "solid", name
        if (group, name) == ("rp-model-b", "lexical"):
            page.keyboard.press("Space")
        if name == "Rank":
            page.keyboard.press("Enter")
            page.wait_for_selector(".rp-list")
        page.keyboard.press("Tab")

    assert reached == [
        "Query",
        "Documents",
        "each paragraph",
        "each line",
        "embedded",
        "lexical",
        "none",
        "lexical",
        "embedded",
        "Rank",
        "Settings of this call",
        "Files in place of the text",
    ]
    assert page.inner_text("#rp-status") == "9 documents ranked by embedded and lexical."
    # What stands in the result is reached too, and opened.
    assert page.evaluate(_FOCUS)[0] == "Time by stage"
    page.keyboard.press("Enter")
    assert page.locator(".rp-stages").first.get_attribute("open") is not None


_FOCUS = """() => {
    const at = document.activeElement;
    const label = (at.labels && at.labels[0]) || at;
    const ringed = [at, label].map(each => getComputedStyle(each).outlineStyle);
    return [
        label.innerText.trim().split("\\n")[0],
        at.closest("[id^=rp-]")?.id,
        ringed.includes("solid") ? "solid" : ringed[0],
    ];
}"""
"""What has the focus: its label, the part of the page that it is in, the ring around it."""


def test_enter_in_the_query_ranks(open_page: OpenPage) -> None:
    page = open_page()

    page.get_by_label("Query").press("Enter")

    page.wait_for_selector(".rp-list")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(open_page: OpenPage, scheme: str) -> None:
    page = open_page(PHONE, color_scheme=scheme)
    page.get_by_label("Documents").fill("fox " * 200 + "\n\n" + "x" * 2000 + "\n\nx\n\nx")
    page.get_by_role("button", name="Settings of this call").click()
    page.get_by_label("drop").check()
    _beside(page, "lexical")

    _rank(page)

    # The result is brought into view.
    page.wait_for_function(
        "document.getElementById('rp-status').getBoundingClientRect().top < innerHeight / 2"
    )
    assert page.locator(".rp-list > li").count() == 3 + 3 + 4
    page.get_by_text("Whole text").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for box in (section.bounding_box() for section in page.locator(".rp-result *").all()):
        assert box is None or box["x"] + box["width"] <= PHONE["width"]


def test_words_stand_out_from_what_is_behind_them(open_page: OpenPage) -> None:
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        _beside(page, "lexical")
        _rank(page)

        pale = page.evaluate(_PALE)

        assert pale == [], scheme


_PALE = """() => {
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = at => {
        for (; at; at = at.parentElement) {
            const colour = parts(getComputedStyle(at).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.99) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const at of document.querySelectorAll(".gradio-container *")) {
        const words = [...at.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!words || !at.checkVisibility() || at.closest(".rp-hidden")) continue;
        if (["STYLE", "SCRIPT"].includes(at.tagName)) continue;
        const pair = [light(parts(getComputedStyle(at).color)), light(behind(at))].sort();
        const [dark, bright] = pair[0] < pair[1] ? pair : [pair[1], pair[0]];
        const ratio = (bright + 0.05) / (dark + 0.05);
        if (ratio < 4.5) found.push([at.innerText.slice(0, 40), ratio.toFixed(2)]);
    }
    return found;
}"""
"""Texts whose contrast (WCAG 2.1) is below 4.5, with it."""


EVIL = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "${alert(4)}",
    "{{constructor.constructor('alert(5)')()}}",
    "{{#each value}}x{{/each}}",
    "@children",
    "<img src='http://foreign.example/x.png'>",
)


def test_texts_are_shown_and_never_run(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Documents").fill("\n\n".join(EVIL))
    page.get_by_label("Query").fill("<b>fox</b> ${alert(6)}")

    _rank(page)

    shown = page.locator(".rp-answer").first.locator(".rp-text").all_inner_texts()
    assert sorted(shown) == sorted(EVIL)
    assert page.locator(".rp-result :is(img, script, svg)").count() == 0


def test_files_are_ranked_in_place_of_the_text(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name="Files in place of the text").click()
    chooser = page.get_by_label("Text files")
    lines = b'{"text": "bread"}\n"where foxes find food"\n'
    chooser.set_input_files(
        [
            {"name": "notes.jsonl", "mimeType": "", "buffer": lines},
            {"name": "ütf.txt", "mimeType": "text/plain", "buffer": "snöw\n\nfox".encode()},
        ]
    )

    _rank(page)
    shown = page.locator(".rp-before .rp-text").all_inner_texts()
    assert shown == ["bread", "where foxes find food", "snöw", "fox"]

    chooser.set_input_files([{"name": "big.txt", "mimeType": "", "buffer": b"x" * 4_000_001}])
    _rank(page)
    assert "more than this page takes" in page.inner_text(".rp-problem")

    page.get_by_role("button", name="Choose none").click()
    _rank(page)
    assert page.locator(".rp-before li").count() == 9


def test_what_is_wrong_is_said_in_words(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Query").fill(" ")

    _rank(page)

    assert page.get_by_role("alert").inner_text().startswith("the query is blank")
    assert page.inner_text("#rp-status") == "Nothing was ranked."
