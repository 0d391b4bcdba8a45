"""The page of ``redif show``: whole by itself, usable by keyboard and screen reader, and right in a real browser."""

import json
import re
import shutil
import threading
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from redif_env.showing.films import Film
from redif_env.showing.page import Exhibit, page_of
from redif_env.showing.server import serve

SEEDS, CONDITIONS, SIDE = 3, 2, 8


def film(name, calls, shade):
    """Two frames a call more than one; each tile has a shade that says which film, frame, condition and seed it is."""
    count, frames = SEEDS * CONDITIONS, calls + 1
    tiles = np.empty((frames, count, SIDE, SIDE, 3), np.uint8)
    for frame in range(frames):
        for sample in range(count):
            tiles[frame, sample] = shade + 10 * frame + sample
    spent = [float(call) for call in range(frames)]
    return Film(name, float(calls), 1.5 * calls, spent, np.linspace(900, 100, calls).tolist(), tiles, 255 - tiles)


@pytest.fixture
def exhibit():
    panels = [
        [film("teacher", 9, 0)],
        [film("solver", calls, 100) for calls in (1, 2, 3)],
        [film("<b>mine</b>", 3, 180)],
    ]
    return Exhibit("digits</script>", ("zero", "one"), range(SEEDS), (999.0, 0.0), "cpu", panels)


class Reader(HTMLParser):
    """Everything that a page loads or links to, the ids of its inputs, and what its labels are for."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.inputs, self.labelled, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loaded += [given[key] for key in ("src", "href") if key in given and given[key] != "data:,"]
        if tag in ("input", "select"):
            self.inputs.append(given["id"])
        if tag == "label":
            self.labelled.append(given["for"])


def facts_of(page):
    (data,) = re.findall(r'<script id="facts" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(data)


def test_the_page_needs_nothing_else(exhibit):
    """No script, style or font from elsewhere; every input has a label; names cannot break out of the data."""
    text = page_of(exhibit)
    read = Reader(text)
    assert read.loaded == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert sorted(read.labelled) == sorted(read.inputs)
    assert len(read.inputs) == 4
    assert read.tags.count("script") == 2
    facts = facts_of(text)
    assert facts["title"] == "digits</script>"
    assert [len(panel["films"]) for panel in facts["panels"]] == [1, 3, 1]
    pictures = [url for panel in facts["panels"] for one in panel["films"] for url in one["pictures"]]
    assert len(pictures) == (1 + 3 + 1) * CONDITIONS
    assert all(url.startswith("data:image/png;base64,") for url in pictures)


def test_sheets_hold_the_films(exhibit):
    """A column a frame; samples of each seed and then clean estimates, of one condition."""
    url = facts_of(page_of(exhibit))["panels"][2]["films"][0]["pictures"][1]
    sheet = np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))))
    assert sheet.shape == (2 * SEEDS * SIDE, 4 * SIDE, 3)
    shown = exhibit.panels[2][0]
    second = sheet[SIDE : 2 * SIDE, 3 * SIDE :]
    assert np.array_equal(second, shown.samples[3, SEEDS + 1])
    assert np.array_equal(sheet[(SEEDS + 1) * SIDE : (SEEDS + 2) * SIDE, 3 * SIDE :], shown.estimates[3, SEEDS + 1])


@pytest.fixture
def served(exhibit):
    """The address of the page, served as the command does."""
    with serve(page_of(exhibit), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_the_page_is_served(served):
    with urlopen(served) as answer:
        assert b"<title>ReDiF" in answer.read()
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_taken_port_is_said():
    with serve("", "127.0.0.1", 0) as server:
        port = server.server_address[1]
        with pytest.raises(ValueError, match=f"port={port} cannot be bound .* choose another --port"):
            serve("", "127.0.0.1", port)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def tab(served):
    """A page in a real browser, without a window; what it logs as an error is collected."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make docs installs it")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(color_scheme="dark")
        opened.wrong, asked = [], []
        opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
        opened.on("console", lambda said: opened.wrong.append(said.text) if said.type == "error" else None)
        opened.on(
            "request", lambda request: request.url.startswith((served, "data:")) or opened.wrong.append(request.url)
        )
        opened.goto(served)
        yield opened
        assert [url for url in asked if not url.startswith((served, "data:"))] == []
        browser.close()


SHADE = """([panel, column]) => {
    const canvas = document.querySelector(`#panel-${panel} canvas`);
    return canvas.getContext("2d").getImageData(5 + 68 * column, 5, 1, 1).data[0];
}"""


def drawn(tab, panel, name):
    """Wait until a panel shows a picture and frame; the shades of its tiles."""
    tab.wait_for_selector(f"#panel-{panel}[data-drawn='{name}']")
    return [tab.evaluate(SHADE, [panel, column]) for column in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_in_a_browser(tab):
    """By keyboard alone: class, calls, trajectory and picture; each tile is the film's."""
    assert drawn(tab, 0, "film0-condition0-frame9") == [90, 91, 92]
    assert drawn(tab, 1, "film2-condition0-frame3") == [130, 131, 132]
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "condition"
    tab.keyboard.press("ArrowDown")
    assert drawn(tab, 2, "film0-condition1-frame3") == [213, 214, 215]
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowLeft")
    assert drawn(tab, 1, "film1-condition1-frame2") == [123, 124, 125]
    assert tab.inner_text("#panel-1 .calls") == "2 of 2 network calls"
    assert tab.inner_text("#panel-2 .calls") == "3 of 3 network calls", "a student has its own number"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Home")
    assert drawn(tab, 2, "film0-condition1-frame0") == [183, 184, 185]
    assert tab.get_attribute("#panel-2 canvas", "aria-label") == "<b>mine</b>: 3 samples after 0 of 3 network calls"
    assert tab.locator("#schedule circle.now").count() == 0
    tab.select_option("#view", "estimates")
    tab.wait_for_function("document.querySelector('#panel-2 canvas').ariaLabel.includes('clean')")
    assert tab.evaluate(SHADE, [2, 0]) == 255 - 183
    tab.click("#play")
    assert drawn(tab, 2, "film0-condition1-frame3") == [255 - 213, 255 - 214, 255 - 215]
    assert tab.locator("#schedule circle").count() == 9 + 2 + 3
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert tab.wrong == []
