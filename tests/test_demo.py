"""The page in a real browser: Debian's Chromium, headless, with a recording for a microphone.

Screenshots of each state go to the folder that TINYOMNI_SCREENSHOTS names.
"""

import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tinyomni.data.rendering import BACKGROUNDS
from tinyomni.dry_run import AUDIO, IMAGE
from tinyomni.errors import InputError
from tinyomni.io.playback import wav_header
from tinyomni.tracing import trace

pytest.importorskip("gradio", reason="the demo's page needs gradio: pip install 'tinyomni[demo]'")
from test_ask import answering

from tinyomni.apps import demo
from tinyomni.reply import Reply
from tinyomni.tokenizer import BPETokenizer

WAIT = 300_000  # ms: a guard against a hang, far longer than any step takes on a busy machine
DESCRIPTION = "There is a big red star on the left"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning",
                                        "ignore::pytest.PytestUnraisableExceptionWarning")  # fmt: skip


# ---- without a browser ----------------------------------------------------------------------------------------------


def test_a_drawing_gets_a_background_of_the_closed_world(tmp_path: Path) -> None:
    drawn = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawn.save(tmp_path / "empty.png")
    assert demo.read_drawing(None) is None and demo.read_drawing(str(tmp_path / "empty.png")) is None
    drawn.putpixel((3, 4), (255, 0, 0, 255))
    drawn.save(content := io.BytesIO(), "png")
    image = demo.read_drawing(content.getvalue())
    assert image is not None and image.getpixel((3, 4)) == (255, 0, 0) and image.getpixel((0, 0)) == BACKGROUNDS[0]


def test_a_run_shows_text_then_speech_then_figure_and_shapes() -> None:
    model = demo.PageModel(answering())
    shown = list(model.ask(Image.open(IMAGE), "What is it?", None, True, 0))
    assert [each.answer for each in shown] == ["Yes", "Yes.", "Yes.", "Yes.", "Yes.", "Yes."]
    assert [each.speech for each in shown] == [None, None, None, 1, 1, 1] and not shown[-2].shapes
    header, speech = list(model.speeches[1])
    assert len(speech) == 2 * 1280 and header == wav_header(16_000)
    wave, rate = soundfile.read(io.BytesIO(header + speech), frames=1280)
    assert wave.shape == (1280,) and rate == 16_000 and abs(wave).max() > 0
    assert not any(each.scratchpad for each in shown)
    last = shown[-1]
    assert "ViTTiny.forward" in last.shapes and "TalkerTiny.forward" in last.shapes and last.figure.width > 400
    with trace("free"):  # nothing is left running
        pass
    for arguments, words in [((None, " ", None, True, 0), "There is no question"),
                             ((None, "What?", (np.ones(9), 16_000), True, 0), "There are two questions"),
                             ((None, "a" * 301, None, True, 0), "at most 300 characters, got 301")]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            list(model.ask(*arguments))
    load, trimmed = model.omni.load_recording, []
    model.omni.load_recording = lambda audio, trim: trimmed.append(trim) or load(audio, trim)  # type: ignore[method-assign]
    speech, rate = soundfile.read(AUDIO, dtype="float32")
    list(model.ask(None, "", (np.pad(speech, 8000), rate), False, 0))
    assert trimmed[0]  # without the silence around the question
    with pytest.raises(ValueError, match="silent"):
        list(model.transcribe((np.zeros(16_000, dtype=np.float32), 16_000)))
    with pytest.raises(ValueError, match="at least one frame"):
        list(model.transcribe((speech[8000:8020], rate)))
    assert list(model.transcribe((speech[:16_000], rate)))[-1].shapes


def test_speech_is_heard_while_it_is_written() -> None:
    wav = demo.GrowingWav()
    parts = iter(wav)
    assert next(parts) == wav_header(16_000)
    wav.write(torch.ones(2))
    assert next(parts) == b"\xff\x7f\xff\x7f"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, parts, None)
        assert not waiting.done()
        wav.write(torch.zeros(1))
        assert waiting.result(timeout=WAIT / 1000) == b"\0\0"
        waiting = pool.submit(next, parts, None)
        wav.end()
        assert waiting.result(timeout=WAIT / 1000) is None
    assert len(b"".join(wav)) == 44 + 6  # heard again from its start


def test_old_speeches_are_forgotten_and_a_failed_one_ends() -> None:
    model = demo.PageModel(answering())
    for _ in range(demo.MOST_SPEECHES + 2):
        model.new_speech()
    assert list(model.speeches) == list(range(3, demo.MOST_SPEECHES + 3))
    model.omni.stream_codes = lambda *_: iter([torch.tensor([0])])  # type: ignore[method-assign,return-value]
    with pytest.raises(ValueError, match="codebooks"):
        list(model.ask(None, "What is it?", None, True, 0))
    assert max(model.speeches) == demo.MOST_SPEECHES + 3 and model.speeches[max(model.speeches)].complete


def test_the_answer_is_apart_from_the_scratchpad() -> None:
    reply = Reply(iter(()), BPETokenizer(), prompt_tokens=1, spoken=True, threshold=None)
    reply.text = "Where is the star? There is a big red star on the left. Where star left: On the left."
    seen = "Where is the star? There is a big red star on the left. Where star left"
    assert demo.split_scratchpad(reply) == ("On the left.", seen)
    reply.text = seen = "There is a big red star on the left."
    assert demo.split_scratchpad(reply) == (seen, "")


def header_only(width: int, height: int) -> bytes:
    """A PNG whose pixels are missing."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks
    )


def test_a_drawing_of_100_megapixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InputError, match="drawing has more than 80,000,000 pixels") as refused:
        demo.read_drawing(header_only(30_000, 30_000))
    assert tempfile.gettempdir() not in str(refused.value)


def test_twenty_requests_at_once_each_get_their_own_answer() -> None:
    model = demo.PageModel(answering("Is it? Yes. What? No."))
    questions = ["Is it?", "What?"] * 10
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        views = pool.map(lambda question: list(model.ask(None, question, None, False, 0))[-1], questions)
    assert all("Thinker" in view.shapes and view.answer for view in views)


# ---- through HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder for what is sent to any of the servers below: gradio asks for its name at every request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Of a page that is served, without a browser."""
    blocks, launch = demo.build(answering())
    blocks.launch(server_port=free_port(), prevent_thread_lock=True, **launch)
    yield blocks.server_name, blocks.server_port
    blocks.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def request(address: tuple[str, int], method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=WAIT / 1000)
    connection.request(method, path, body or None, headers)
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def test_the_page_is_served_to_this_machine_only(address: tuple[str, int]) -> None:
    assert address[0] == "127.0.0.1" and request(address, "GET", "/")[0] == 200
    info = json.loads(request(address, "GET", "/gradio_api/info")[1])
    assert not info["named_endpoints"] and not info["unnamed_endpoints"]


@pytest.mark.parametrize("path", [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/file=/etc/passwd",
    "/assets/..%2f..%2f..%2f..%2fetc/passwd", "/static/../../../../../etc/passwd",
    "/gradio_api/file=%2e%2e/pyproject.toml",
    f"/gradio_api/file={Path(__file__).resolve()}", "/speech/1.wav", "/speech/../../etc/passwd", "/speech/x.wav",
])  # fmt: skip
def test_no_file_outside_its_folder_is_served(path: str, address: tuple[str, int]) -> None:
    status, body = request(address, "GET", path)
    assert status in (400, 403, 404) and b"root:" not in body and b"importorskip" not in body


def test_an_upload_has_a_limit(address: tuple[str, int]) -> None:
    def upload(size: int) -> int:
        part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="<b>.wav"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        return request(address, "POST", "/gradio_api/upload", part + bytes(size) + b"\r\n--x--\r\n", **headers)[0]

    assert upload(1000) == 200 and upload(65 << 20) == 413


def send(address: tuple[str, int], name: str, content: bytes) -> dict[str, Any]:
    """Upload a file; what the page then knows of it."""
    part = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answered = request(address, "POST", "/gradio_api/upload", part + content + b"\r\n--x--\r\n", **headers)[1]
    return {"path": json.loads(answered)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def press_by_http(address: tuple[str, int], button: str, data: list[Any]) -> dict[str, Any]:
    """Do what the page does when a button is pressed; the last thing that it is told."""
    config = json.loads(request(address, "GET", "/config")[1])
    wanted = next(each["id"] for each in config["components"] if each["props"].get("value") == button)
    number = next(each["id"] for each in config["dependencies"] if [wanted, "click"] in each["targets"])
    body = json.dumps({"data": data, "fn_index": number, "session_hash": button}).encode()
    request(address, "POST", "/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
    events = request(address, "GET", f"/gradio_api/queue/data?session_hash={quote(button)}")[1].decode().split("\n\n")
    told = [json.loads(each.removeprefix("data: ")) for each in events if each.strip()]
    return next(each for each in reversed(told) if each["msg"] == "process_completed")


def test_what_cannot_be_read_is_refused_as_elsewhere(address: tuple[str, int]) -> None:
    def error_of(button: str, data: list[Any]) -> str:
        told = press_by_http(address, button, data)
        assert not told["success"]
        return str(told["output"]["error"])

    png, wav = IMAGE.read_bytes(), AUDIO.read_bytes()
    for name, content, words in (("cut.wav", wav[:20_000], "truncated"), ("text.wav", b"What is it?" * 9, "decode")):
        message = error_of("Transcribe the recording", [send(address, name, content)])
        assert message.startswith("load_audio: ") and f" {name}" in message and words in message
    for name, content, words in (
        ("cut.png", png[: len(png) // 2], "damaged or truncated"), ("text.png", b"What is it?" * 9, "expected PNG"),
        ("large.png", header_only(30_000, 30_000), "more than 80,000,000 pixels"),
    ):  # fmt: skip
        drawing = {"background": None, "layers": [], "composite": send(address, name, content)}
        message = error_of("Describe the image", [drawing, False, "1"])
        assert message.startswith("load_image: ") and f" {name}" in message and words in message
    assert error_of("Ask", [None, "a" * 200_000, None, False, "1"]).startswith("expected a question of at most 300")
    whole = {"background": None, "layers": [], "composite": send(address, "scene.png", png)}
    assert press_by_http(address, "Describe the image", [whole, False, "1"])["success"]
    assert press_by_http(address, "Transcribe the recording", [send(address, "speech.wav", wav)])["success"]


@pytest.mark.parametrize(
    ("threshold", "words"), [(-0.5, "sure: 0.000, above -0.500"), (0.5, "not sure: "), (None, "no threshold")]
)
def test_certainty_says_something_also_when_the_model_is_sure(threshold: float | None, words: str) -> None:
    reply = Reply(iter(()), BPETokenizer(), prompt_tokens=1, spoken=False, threshold=threshold)
    reply.log_probs = [0.0]
    assert words in demo.certainty_line(reply)


# ---- in the browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, int, list[str]]]:
    """A browser, the port of the demo, and requests to other machines, of the browser and of the server."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    if CHROMIUM is None:
        pytest.skip("the browser test needs Chromium: apt install chromium")
    outside: list[str] = []
    connect, patch = socket.socket.connect, pytest.MonkeyPatch()

    def watched(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            outside.append(f"server: {address}")
        return connect(self, address)

    patch.setattr(socket.socket, "connect", watched)
    blocks, launch = demo.build(answering(f"Is it? {DESCRIPTION}: Yes."))
    port = free_port()
    blocks.launch(server_port=port, prevent_thread_lock=True, **launch)
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
             f"--use-file-for-fake-audio-capture={AUDIO}", "--autoplay-policy=no-user-gesture-required"]  # fmt: skip
    flags += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    with playwright.sync_playwright() as browsers:
        home = os.environ | {"HOME": str(tmp_path_factory.mktemp("home"))}
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=flags, env=home)
        yield browser, port, outside
        browser.close()
    blocks.close()
    patch.undo()


@pytest.fixture
def page(started: tuple[Any, int, list[str]]) -> Iterator[Any]:
    """The page, loaded anew for each test; neither it nor the server may ask anything of other machines."""
    browser, port, outside = started
    opened = browser.new_page(viewport={"width": 1280, "height": 1400})
    opened.set_default_timeout(WAIT)
    opened.on("request", lambda request: outside.append(request.url) if not re.match(
        rf"(http|ws)://(127\.0\.0\.1|localhost):{port}/|(data|blob):", request.url) else None)  # fmt: skip
    opened.goto(f"http://127.0.0.1:{port}/")
    opened.get_by_role("button", name="Ask", exact=True).wait_for()
    yield opened
    opened.close()
    assert outside == []


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("TINYOMNI_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def answer(page: Any) -> Any:
    return page.locator("#answer textarea")


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def value_is(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#answer textarea').value == text", arg=text)


def scratchpad_is(page: Any, text: str, timeout: float = WAIT) -> None:
    shown = "text => document.querySelector('#scratchpad textarea').value == text"
    page.wait_for_function(shown, arg=text, timeout=timeout)


def shapes_with(page: Any, words: str, timeout: float = WAIT) -> None:
    shown = "words => document.querySelector('#shapes').textContent.includes(words)"
    page.wait_for_function(shown, arg=words, timeout=timeout)


def press_until(page: Any, button: str, seen: Callable[[float], None]) -> None:
    """Press the button, again if need be: an image or a recording may not have been sent yet, and gives no sign when it
    is. `seen` waits for what the button is to show, up to a time in ms.
    """
    from playwright.sync_api import TimeoutError as PageTimeout

    for _ in range(20):
        press(page, button)
        with contextlib.suppress(PageTimeout):
            seen(WAIT / 20)
            return
        for toast in page.get_by_test_id("toast-close").all():  # about what was still missing
            toast.click()
    pytest.fail(f"{button} did not show it")


def error(page: Any, words: str, timeout: float = WAIT) -> None:
    toast = page.locator(".toast-body", has_text=words)
    toast.wait_for(timeout=timeout)
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")


def test_ask_by_text_about_a_random_scene(page: Any) -> None:
    press(page, "Random scene")
    page.locator("#image canvas").first.wait_for()
    page.locator("#question textarea, #question input").first.fill("What is it?")
    press_until(page, "Ask", lambda most: shapes_with(page, "ViTTiny.forward", most))
    value_is(page, "Yes.")
    shapes_with(page, "TalkerTiny.forward")
    page.locator("#figure img").wait_for()
    shot(page, "text")


def test_an_example_fills_in_image_and_question_and_a_long_question_is_cut(page: Any) -> None:
    box = page.locator("#question textarea, #question input").first
    page.get_by_text(demo.QUESTIONS[1], exact=True).click()
    page.wait_for_function(
        "text => document.querySelector('#question textarea, #question input').value == text", arg=demo.QUESTIONS[1]
    )
    shot(page, "example")
    box.fill("What is it? " * 150)
    assert len(box.input_value()) <= demo.MOST_CHARACTERS and box.bounding_box()["height"] < 150
    box.fill("What is it?")


def test_the_answer_can_be_played(page: Any) -> None:
    page.locator("#question textarea, #question input").first.fill("What is it?")
    press(page, "Ask")
    value_is(page, "Yes.")
    page.locator("#speech audio").wait_for(state="attached")
    seconds = page.evaluate("""async () => {
        const audio = document.querySelector('#speech audio');
        if (!audio.ended) await new Promise(done => audio.onended = done);  // it began by itself
        return audio.currentTime;
    }""")
    assert seconds == pytest.approx(0.08, abs=0.03)


def test_a_drawing_is_seen(page: Any) -> None:
    page.locator("#image").get_by_role("button", name="Clear canvas").click()
    page.locator("#image").get_by_role("button", name="Brush").click()
    box = page.locator("#image canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2 + 20, steps=5)
    page.mouse.up()
    press_until(page, "Describe the image", lambda most: shapes_with(page, "Describe the image.", most))
    shapes_with(page, "ViTTiny.forward")
    shot(page, "drawing")


def test_ask_by_the_microphone(page: Any) -> None:
    page.locator("#question textarea, #question input").first.fill("")
    page.locator("#recording").get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    page.locator("#recording").get_by_role("button", name="Stop", exact=True).first.click()
    page.locator("#recording").get_by_role("button", name="Clear").wait_for()
    page.wait_for_timeout(1500)
    press(page, "Ask")
    value_is(page, "Yes.")
    scratchpad_is(page, f"Is it? {DESCRIPTION}")
    shapes_with(page, "AudioEncoderTiny.forward")
    shot(page, "microphone")
    page.locator("#recording").get_by_role("button", name="Clear").click()


def test_ask_by_a_file_and_transcribe_it(page: Any) -> None:
    page.locator("#question textarea, #question input").first.fill("What is it?")
    press(page, "Ask")
    scratchpad_is(page, DESCRIPTION)  # not what the test before this one left
    page.locator("#question textarea, #question input").first.fill("")
    choose(page, AUDIO)
    press_until(page, "Ask", lambda most: scratchpad_is(page, f"Is it? {DESCRIPTION}", most))
    value_is(page, "Yes.")
    press(page, "Transcribe the recording")
    shapes_with(page, "CTCHead.forward")
    shot(page, "file")


def choose(page: Any, path: Path) -> None:
    """Choose an audio file in the upload input."""
    clear = page.locator("#recording").get_by_role("button", name="Clear")
    if clear.count():
        clear.click()
    page.locator("#recording").get_by_role("button", name="Upload file").click()
    with page.expect_response(re.compile("/upload")) as sent:  # before that, the page still asks with the old recording
        page.locator("#recording input[type=file]").set_input_files(path)
    sent.value.finished()
    clear.wait_for()


def test_what_is_wrong_is_shown(page: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", torch.zeros(16_000).numpy(), 16_000)
    soundfile.write(tmp_path / "long.wav", (torch.rand(100_000) - 0.5).numpy(), 16_000)
    choose(page, tmp_path / "silence.wav")
    press_until(page, "Ask", lambda most: error(page, "Was the microphone on?", most))
    choose(page, tmp_path / "long.wav")
    too_long = page.locator(".toast-body", has_text="5.12 s fit: cut the recording")
    press_until(page, "Ask", lambda most: too_long.wait_for(timeout=most))
    shot(page, "error")
    error(page, "5.12 s fit: cut the recording")
    page.locator("#question textarea, #question input").first.fill("What?")
    press(page, "Ask")
    error(page, "There are two questions")
    page.locator("#recording").get_by_role("button", name="Clear").click()
    question = page.locator("#question textarea, #question input").first
    assert question.get_attribute("maxlength") == str(demo.MOST_CHARACTERS)
    page.locator("#question textarea, #question input").first.fill("")
    press(page, "Ask")
    error(page, "There is no question")
