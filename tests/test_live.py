"""The live page in a real browser, with the network off: what it shows is what PyTorch computes for the same input.

Needs the built page (site/live/README.md; another folder: TINYOMNI_LIVE), Chromium and the package playwright:

    OMP_NUM_THREADS=1 python -m pytest tests/test_live.py

Screenshots at three sizes go to the folder that TINYOMNI_SCREENSHOTS names.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyomni import Omni
from tinyomni.dry_run import AUDIO

TOP = Path(__file__).resolve().parent.parent
LIVE = Path(os.environ.get("TINYOMNI_LIVE", TOP / "site" / "build" / "live"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 300_000  # ms: a guard against a hang, far longer than any step takes on a busy machine
INT8 = 0.02  # probabilities and attention weights: how far those of int8 weights may lie from float32
pytestmark = [
    pytest.mark.skipif(not (LIVE / "tinyomni.html").is_file(), reason=f"{LIVE} is not built: see site/live/README.md"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.from_pretrained()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
             f"--use-file-for-fake-audio-capture={AUDIO}", "--autoplay-policy=no-user-gesture-required"]  # fmt: skip
    flags += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    with playwright.sync_playwright() as browsers:
        home = os.environ | {"HOME": str(tmp_path_factory.mktemp("home"))}
        started = browsers.chromium.launch(executable_path=CHROMIUM, args=flags, env=home)
        yield started
        started.close()


def opened(browser: Any, address: str) -> Any:
    """The page, loaded, with the network switched off behind it; `page.requests` are all addresses it asked for."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(WAIT)
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Ready')")
    page.context.set_offline(True)
    return page


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    """Where the page is served."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(LIVE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser: Any, home: str) -> Iterator[Any]:
    """The page, loaded anew for each test, with a red circle and a blue star on the easel."""
    found = opened(browser, f"{home}index.html")
    draw(found, ("circle", "red", 0.25, 0.5), ("star", "blue", 0.78, 0.5))
    yield found
    assert not found.faults
    assert [each for each in found.requests if not each.startswith((home, "blob:", "data:"))] == []
    found.context.close()


def finished(page: Any) -> None:
    """Wait until the answer is written and spoken."""
    page.wait_for_function("window.tinyomni.answer && document.getElementById('stop').disabled")


def ask(page: Any, question: str) -> str:
    """Type a question, by keyboard alone."""
    page.evaluate("window.tinyomni.answer = null")
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    finished(page)
    return str(page.inner_text("#answer"))


def draw(page: Any, *things: tuple[str, str, float, float]) -> None:
    """Put shapes on an empty easel with the mouse."""
    page.click("#clear")
    for shape, colour, right, down in things:
        page.click(f"#shapes [aria-label={shape}]")
        page.click(f"#colours [aria-label={colour}]")
        box = page.locator("#canvas").bounding_box()
        page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])


def image(page: Any) -> torch.Tensor:
    """What the model was shown."""
    values = page.evaluate("Array.from(window.tinyomni.easel.pixels())")
    return torch.tensor(values).view(3, 224, 224)


def generated(page: Any) -> list[int]:
    return list(page.evaluate("window.tinyomni.glass.steps.map((step) => step.id)"))


def test_a_drawn_circle_and_all_that_is_shown_of_it(page: Any, omni: Omni) -> None:
    assert ask(page, "  what color is the cirlce") == "Red."
    picture = image(page)
    reply = omni.reply("What colour is the circle?", picture).finish()
    assert generated(page) == reply.ids
    codes = page.evaluate("window.tinyomni.roll.codes")
    assert codes == omni.speech_codes(reply.answer)[0].tolist()

    from tinyomni.onnx import graphs
    from tinyomni.onnx.export import without_shape_checks

    with torch.no_grad():
        prompt = omni.embed("What colour is the circle?", picture)
        empty = torch.zeros(4, 1, 4, 0, 64)
        logits, attention, *_ = graphs.Think(omni)(prompt, empty, empty, torch.ones(4, 4))
        with without_shape_checks():  # its axis n_patches+1 is no argument's
            seen = graphs.Image(omni)(picture[None])[1]
    step = page.evaluate(
        "(({attention, top, keys}) => ({attention: [...attention], top, keys}))(window.tinyomni.glass.steps[0])"
    )
    assert step["keys"] == prompt.shape[1] == page.evaluate("window.tinyomni.glass.prompted")
    ours = np.array(step["attention"]).reshape(4, 4, -1)
    np.testing.assert_allclose(ours, attention[:, :, -1], atol=INT8)
    assert step["top"][0]["p"] == pytest.approx(float(logits.softmax(-1).max()), abs=INT8)
    cls = page.evaluate("[...window.tinyomni.glass.seen.cls.data]")
    np.testing.assert_allclose(np.array(cls).reshape(seen.shape), seen, atol=INT8)
    table = page.locator("#shapes-table").text_content()
    assert f"tokens {prompt.shape[1]} × d_model 256" in table and "frames 1 × codebooks 2" in table
    assert f"image 1 + text {prompt.shape[1] - 1} + new {len(reply.ids)}" in page.inner_text("#ledger")


def test_a_recording_and_the_microphone(page: Any, omni: Omni) -> None:
    shown, reply = image(page), None
    page.evaluate("window.tinyomni.answer = null")
    page.set_input_files("#audio-file", str(AUDIO))
    finished(page)
    reply = omni.reply(None, shown, str(AUDIO), trim=True).finish()
    assert generated(page) == reply.ids and reply.transcript and reply.transcript in page.inner_text("#parts")
    assert page.locator("#sound-view").is_visible() and page.locator(".token.audio").count() > 10
    page.evaluate("window.tinyomni.answer = null")
    page.click("#microphone")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Listening')")
    page.wait_for_timeout(1500)  # of the recording that plays for a microphone
    page.click("#microphone")
    finished(page)
    assert page.locator(".token.audio").count() > 10


def test_it_says_what_it_is_not_sure_of(page: Any, omni: Omni, tmp_path: Path) -> None:
    recording = TOP / "data" / "real_speech" / "letters-c.flac"  # "c", that sounds like "three" here
    page.evaluate("window.tinyomni.answer = null")
    page.set_input_files("#audio-file", str(recording))
    finished(page)
    reply = omni.reply(None, image(page), str(recording), trim=True).finish()
    assert reply.doubts_speech and page.inner_text("#status").startswith("Not sure what was said; letter by letter")
    assert page.locator("#answer.unsure").count() == 1


def test_hover_shows_what_a_word_attended_to(page: Any) -> None:
    ask(page, "Where is the star?")
    page.locator(".token.new").first.hover()
    first = page.locator("#chosen").inner_text()
    page.locator(".token.new").nth(3).focus()  # the same by keyboard
    assert page.locator("#chosen").inner_text() != first and "mean of all heads" in first
    page.locator("#heads .head").nth(5).focus()
    assert "layer 2, head 2" in page.locator("#chosen").inner_text()
    dims = page.evaluate("[...document.querySelectorAll('.token')].map((t) => t.style.getPropertyValue('--looked'))")
    assert len(set(dims)) > 3


def test_heads_that_are_switched_off_change_the_run(page: Any) -> None:
    before = ask(page, "What colour is the circle?"), page.evaluate("window.tinyomni.glass.steps[0].logProb")
    buttons = page.locator("#heads .head")
    for number in range(8):
        buttons.nth(number).evaluate("(each) => each.click()")
    changed = ask(page, "What colour is the circle?"), page.evaluate("window.tinyomni.glass.steps[0].logProb")
    for number in range(8):
        buttons.nth(number).evaluate("(each) => each.click()")
    assert changed != before
    assert (ask(page, "What colour is the circle?"), page.evaluate("window.tinyomni.glass.steps[0].logProb")) == before


def test_a_code_is_edited_by_keyboard_and_by_mouse(page: Any) -> None:
    ask(page, "What colour is the circle?")
    original = page.evaluate("window.tinyomni.roll.codes")
    page.locator("#roll").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageDown" if original[1][0] >= 10 else "PageUp")
    assert abs(page.evaluate("window.tinyomni.roll.codes[1][0]") - original[1][0]) == 10
    page.wait_for_function("window.tinyomni.player.sources.size > 0")  # it is heard
    box = page.locator("#roll").bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] * 0.25)
    assert page.locator("#restore").is_enabled()
    page.click("#restore")
    assert page.evaluate("window.tinyomni.roll.codes") == original


def test_pause_and_step(page: Any) -> None:
    page.locator("#question").fill("Describe the image.")
    page.evaluate("window.tinyomni.answer = null")
    page.evaluate("""async () => {
        const pause = document.getElementById('pause');
        document.getElementById('go').click();
        while (pause.disabled) await new Promise((resolve) => setTimeout(resolve));
        pause.click();
    }""")  # at once: the whole answer takes less time than a click of the test
    page.wait_for_timeout(300)  # what was under way
    count = len(generated(page))
    page.wait_for_timeout(300)
    assert len(generated(page)) == count and page.evaluate("window.tinyomni.answer") is None
    page.click("#step")
    page.wait_for_function(f"window.tinyomni.glass.steps.length === {count + 1}")
    page.click("#pause")
    finished(page)


def test_errors_are_shown(page: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    for field, words in (("#image-file", "as an image"), ("#audio-file", "as audio")):
        page.set_input_files(field, str(bad))
        page.wait_for_function("document.getElementById('status').classList.contains('error')")
        assert re.search(f"Cannot decode “bad.png” {words}", page.inner_text("#status"))
        page.evaluate("document.getElementById('status').classList.remove('error')")
    page.locator("#question").fill("red " * 74)
    page.locator("#question").fill(" ")
    page.click("#go")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Type a question')")
    assert ask(page, "What colour is the circle?") == "Red."  # and it still answers


def test_everything_has_a_name_and_fits_a_phone(page: Any) -> None:
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, canvas')]
            .filter((each) => !(each.getAttribute('aria-label') || each.labels?.length || each.textContent.trim()))
            .map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    folder = os.environ.get("TINYOMNI_SCREENSHOTS")
    for name, width, height, scheme in (("desktop", 1280, 900, "light"), ("tablet", 820, 1180, "dark"),
                                        ("phone", 390, 844, "dark")):  # fmt: skip
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if folder:
            page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_one_file_from_disk(browser: Any) -> None:
    page = opened(browser, (LIVE / "tinyomni.html").as_uri())
    draw(page, ("heart", "green", 0.5, 0.5))
    assert ask(page, "What colour is the heart?") == "Green."
    assert [each for each in page.requests if not each.startswith(("file:", "blob:", "data:"))] == [] == page.faults
