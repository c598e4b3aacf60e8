"""A page in the browser, served to this machine only: draw or choose an image, ask, read and hear the answer.

The spoken answer is heard while it is generated: the page asks for a WAV file that grows (`GrowingWav`). Below the
answer: the spectrograms and codes of this very run, and its shape table. No other machine is contacted.
"""

import io
import itertools
import os
import queue
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tinyomni.apps.chat import stream_speech, uncertainty_note
from tinyomni.config import SAMPLE_RATE
from tinyomni.data import rendering, world
from tinyomni.data.normalization import normalize_question
from tinyomni.errors import InputError
from tinyomni.io import AudioLike, load_audio
from tinyomni.io.images import open_image
from tinyomni.io.playback import pcm16, wav_header
from tinyomni.omni import DESCRIBE, Omni
from tinyomni.reply import Reply, Transcript
from tinyomni.tracing import trace

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
HOST = "127.0.0.1"
CANVAS = (448, 448)
MAX_UPLOAD = "64mb"
MOST_CHARACTERS = 300  # of a typed question; the sequence has room for some hundred tokens
MOST_SPEECHES = 8  # spoken answers that can still be heard; older ones are forgotten
SCENE = Path(__file__).parent.parent / "assets" / "scene.png"
QUESTIONS = ("What colour is the star?", "How many shapes are there?", "What is on the left?", "Is there a circle?")
"""The image and the questions that can be clicked."""

Samples = Float[Tensor, "samples"] | None
Codes = Int[Tensor, "frames codebooks"] | None


# ---- speech while it is generated -----------------------------------------------------------------------------------


class GrowingWav:
    """A WAV file that is read while it is written: iterating gives the header, then each piece as soon as it is there.

    The header names no length, as in any stream; a browser plays what has come so far.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.complete = False
        self.changed = threading.Condition()

    def write(self, piece: Float[Tensor, "samples"]) -> None:
        with self.changed:
            self.pieces.append(pcm16(piece))
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.complete = True
            self.changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        yield wav_header(SAMPLE_RATE)
        for number in itertools.count():
            with self.changed:
                self.changed.wait_for(lambda number=number: self.complete or number < len(self.pieces))
                if number == len(self.pieces):
                    return
            yield self.pieces[number]


# ---- one run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What the page shows; a run fills it field by field."""

    answer: str = ""
    scratchpad: str = ""  # what the model writes before the answer
    certainty: str = ""
    speech: int | None = None  # number of the spoken answer, in `PageModel.speeches`
    figure: Image.Image | None = None
    shapes: str = ""


def read_drawing(file: str | bytes | None) -> Image.Image | None:
    """The image in the editor, an uploaded file or the bytes of one; None where nothing was drawn or chosen."""
    if file is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file) if isinstance(file, str) else Path(folder) / "drawing"
        if isinstance(file, bytes):
            path.write_bytes(file)
        try:
            return flatten(open_image(path))
        except InputError as error:
            raise without_folder(error, path) from error


def flatten(image: Image.Image) -> Image.Image | None:
    """A drawing on a background of the closed world; None where it is transparent everywhere."""
    if image.mode != "RGBA":
        return image
    if image.getchannel("A").getextrema()[1] == 0:
        return None
    return Image.alpha_composite(Image.new("RGBA", image.size, rendering.BACKGROUNDS[0]), image).convert("RGB")


def without_folder(error: InputError, file: str | Path) -> InputError:
    """The same error, which names the file as the user does: the folder that it was put in means nothing to them."""
    return InputError(str(error).replace(str(file), Path(file).name))


def split_scratchpad(result: Reply | Transcript) -> tuple[str, str]:
    """The answer, and what the model wrote before it: transcript, description, lookup."""
    return (result.answer, result.before_answer) if isinstance(result, Reply) else (result.text, "")


def certainty_line(result: Reply | Transcript) -> str:
    """How certain the model was, in words and as a log-probability; also where it was as certain as usual."""
    if result.unsure is None:
        return f"{result.certainty:.3f} (0 is certain; no threshold was measured for these weights)"
    if result.unsure:
        return uncertainty_note(result).strip("()")
    return f"sure: {result.certainty:.3f}, above {result.threshold:.3f} as right answers are (0 is certain)"


class PageModel:
    """The model behind the page. One run at a time, since a trace watches the whole process."""

    def __init__(self, omni: Omni) -> None:
        self.omni, self.lock = omni, threading.Lock()
        self.speeches: dict[int, GrowingWav] = {}
        self.numbers = itertools.count(1)

    def ask(
        self, image: Image.Image | None, question: str, recording: AudioLike | None, speak: bool, voice: int
    ) -> Iterator[View]:
        """The answer to a question, typed or spoken."""
        if len(question or "") > MOST_CHARACTERS:  # the page allows no more, but not everything comes from the page
            raise InputError(
                f"expected a question of at most {MOST_CHARACTERS} characters, got {len(question):,}. Shorten it."
            )
        question = normalize_question(question or "")
        if not question and recording is None:
            raise InputError("There is no question. Type one, or record one.")
        if question and recording is not None:
            raise InputError("There are two questions, a typed and a spoken one. Clear one of them.")

        def start() -> Reply:
            return self.omni.reply(question or None, image, recording, trim=True)

        return self.run(start, recording, voice if speak else None)

    def transcribe(self, recording: AudioLike | None) -> Iterator[View]:
        """What is said in the recording."""
        if recording is None:
            raise InputError("There is no recording. Record one, or choose a file.")
        return self.run(lambda: self.omni.transcribe(recording), recording, None)

    def run(
        self, start: Callable[[], Reply | Transcript], recording: AudioLike | None, voice: int | None
    ) -> Iterator[View]:
        """Views of a run as it goes on. It runs in one thread, which the trace can follow from start to end."""
        views: queue.Queue[View | BaseException | None] = queue.Queue()

        def work() -> None:
            try:
                with self.lock:
                    with trace("this run") as seen:
                        for step in self.generate(start(), voice):
                            views.put(step[0])
                    # outside the trace: the figure's spectrograms are no part of the run
                    view, wave, codes = step
                    views.put(replace(view, shapes=seen._repr_html_(), figure=self.draw(recording, wave, codes)))
            except BaseException as error:  # raised again by whoever waits for the views
                views.put(error)
            finally:
                views.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (item := views.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def generate(self, result: Reply | Transcript, voice: int | None) -> Iterator[tuple[View, Samples, Codes]]:
        """Text piece by piece, then how certain it is; the spoken answer at its start, and at its end with codes."""
        for _ in result:
            yield View(*split_scratchpad(result)), None, None
        answer, scratchpad = split_scratchpad(result)
        view = View(answer or "(nothing)", scratchpad, certainty_line(result))
        yield view, None, None
        if voice is not None and answer.strip():
            number, wav = self.new_speech()
            view = replace(view, speech=number)
            codes: list[Tensor] = []
            pieces: list[Tensor] = []
            yield view, None, None
            try:
                for piece in stream_speech(self.omni, answer, voice, codes):
                    wav.write(piece)
                    pieces.append(piece)
            finally:
                wav.end()
            yield view, torch.cat(pieces), torch.stack(codes)

    def new_speech(self) -> tuple[int, GrowingWav]:
        """An empty spoken answer and its number; the oldest one is forgotten."""
        number, wav = next(self.numbers), GrowingWav()
        self.speeches[number] = wav
        for old in list(self.speeches)[:-MOST_SPEECHES]:
            del self.speeches[old]
        return number, wav

    @torch.no_grad()
    def draw(
        self,
        recording: AudioLike | None,
        speech: Samples,
        codes: Codes,
    ) -> Image.Image | None:
        """Spectrograms of the input and output speech, and the codes of the output."""
        waves = {"input": None if recording is None else load_audio(recording), "output": speech}
        mels = {name: self.omni.mel(wave[None])[0] for name, wave in waves.items() if wave is not None}
        if not mels:
            return None
        count = len(mels) + (codes is not None)
        figure = Figure(figsize=(7, 2 * count), layout="constrained")
        axes = figure.subplots(count, squeeze=False)[:, 0]
        for axis, (name, mel) in zip(axes, mels.items(), strict=False):
            axis.imshow(mel.T, origin="lower", aspect="auto", interpolation="none")
            axis.set(
                title=f"{name}: log-mel, 10 ms per frame, {tuple(mel.shape)}", xlabel="mel_frames", ylabel="n_mels"
            )
        if codes is not None:
            for book, (name, style) in enumerate((("base", ".-"), ("residual", ".:"))):
                axes[-1].plot(codes[:, book], style, drawstyle="steps-mid", label=name)
            axes[-1].set(title=f"output: codes, 80 ms per frame, {tuple(codes.shape)}", xlabel="frames", ylabel="code")
            axes[-1].set_ylim(0, self.omni.cfg.codec.codebook_size)
            axes[-1].legend(loc="upper right")
        file = io.BytesIO()
        figure.savefig(file, dpi=90, format="png")
        return Image.open(file)


# ---- the page -------------------------------------------------------------------------------------------------------


def build(omni: Omni) -> tuple[Any, dict[str, Any]]:
    """The page, and the arguments to launch it with."""
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError(
            'gradio is not installed. `python3 course.py demo` installs it, or: pip install "tinyomni[demo]"'
        ) from error
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    model = PageModel(omni)

    def serve_speech(request: Request) -> Response:
        wav = model.speeches.get(request.path_params["number"])
        return Response(status_code=404) if wav is None else StreamingResponse(iter(wav), media_type="audio/wav")

    def player(number: int | None) -> str:
        return "" if number is None else f'<audio controls autoplay src="/speech/{number}.wav"></audio>'

    def error_box(message: str) -> Exception:
        return gr.Error(message, duration=None, title="", print_exception=False)  # it stays until it is closed

    def stream(views: Callable[[], Iterator[View]], recording: str | None = None) -> Iterator[list[Any]]:
        try:
            for view in views():
                yield [view.answer, view.scratchpad, view.certainty, player(view.speech), view.figure, view.shapes]
        except InputError as error:
            raise error_box(str(without_folder(error, recording) if recording else error)) from error

    def unread(file: Any, flatten_on_white: bool = False) -> Any:
        return file

    def drawing(editor: dict[str, Any] | None) -> Image.Image | None:
        file = (editor or {}).get("composite")
        try:
            return read_drawing(getattr(file, "path", file))
        except InputError as error:
            raise error_box(str(error)) from error

    def ask(editor: Any, question: str, recording: str | None, speak: bool, voice: str) -> Iterator[list[Any]]:
        image = drawing(editor)
        yield from stream(lambda: model.ask(image, question, recording, speak, int(voice) - 1), recording)

    def caption(editor: Any, speak: bool, voice: str) -> Iterator[list[Any]]:
        image = drawing(editor)
        if image is None:
            raise error_box("There is no image. Draw one, or take a random scene.")
        yield from stream(lambda: model.ask(image, DESCRIBE, None, speak, int(voice) - 1))

    def transcribe(recording: str | None) -> Iterator[list[Any]]:
        yield from stream(lambda: model.transcribe(recording), recording)

    def random_scene() -> Image.Image:
        scene = world.draw_scene("test", random.randrange(10**6))
        return rendering.render(scene, random.randrange(2**32)).resize(CANVAS)

    fonts = ["system-ui", "sans-serif"]  # names only: nothing to fetch
    colours: list[Any] = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in rendering.RGB.values()]
    examples = [[str(SCENE), each] for each in QUESTIONS]
    with gr.Blocks(title="tinyomni", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# tinyomni\nAsk about a scene of coloured shapes, by text or by voice.")
        with gr.Row():
            with gr.Column():
                editor = gr.ImageEditor(
                    label="Image", type="pil", sources=["upload", "clipboard"], canvas_size=CANVAS, height=520,
                    brush=gr.Brush(colors=colours, default_color=colours[0], default_size=60),
                    transforms=[], layers=False, elem_id="image",
                )  # fmt: skip
                # gradio would decode it before `ask` is called, and show no error; `read_drawing` does that instead
                editor.convert_and_format_image = unread  # type: ignore[method-assign]
                scene_button = gr.Button("Random scene")
                question = gr.Textbox(
                    label="Question", placeholder="What colour is the circle?", max_lines=3, max_length=MOST_CHARACTERS,
                    elem_id="question",
                )  # fmt: skip
                gr.Examples(examples, [editor, question], label="Or one of these", api_visibility="private")
                recording = gr.Audio(
                    label="Or a spoken question", sources=["microphone", "upload"], type="filepath",
                    buttons=["download"], elem_id="recording",
                )  # fmt: skip
                with gr.Row():
                    speak = gr.Checkbox(True, label="Speak the answer")
                    voice = gr.Radio(["1", "2"], value="1", label="Voice")
                with gr.Row():
                    ask_button = gr.Button("Ask", variant="primary")
                    caption_button = gr.Button("Describe the image")
                    transcribe_button = gr.Button("Transcribe the recording")
            with gr.Column():
                answer = gr.Textbox(label="Answer", interactive=False, max_lines=4, elem_id="answer")
                scratchpad = gr.Textbox(
                    label="Scratchpad: what the model writes before the answer", interactive=False,
                    max_lines=6, elem_id="scratchpad",
                )  # fmt: skip
                certainty = gr.Textbox(label="Certainty", interactive=False, elem_id="certainty")
                speech = gr.HTML(label="Spoken answer", show_label=True, container=True, elem_id="speech")
                figure = gr.Image(
                    show_label=False, type="pil", interactive=False, buttons=["download", "fullscreen"],
                    alt_text="Spectrograms and codes of this run", elem_id="figure",
                )  # fmt: skip
        with gr.Accordion("Shapes of this run", open=True):
            shapes = gr.HTML(elem_id="shapes")
        one_at_a_time: dict[str, Any] = {
            "outputs": [answer, scratchpad, certainty, speech, figure, shapes], "show_progress_on": answer,
            "concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private",
        }  # fmt: skip
        scene_button.click(random_scene, outputs=editor, api_visibility="private")
        for event in (ask_button.click, question.submit):
            event(ask, [editor, question, recording, speak, voice], **one_at_a_time)
        caption_button.click(caption, [editor, speak, voice], **one_at_a_time)
        transcribe_button.click(transcribe, [recording], **one_at_a_time)
    launch = {
        "server_name": HOST, "share": False, "quiet": True, "enable_monitoring": False, "footer_links": [],
        "max_file_size": MAX_UPLOAD, "ssr_mode": False, "mcp_server": False, "pwa": False, "strict_cors": True,
        "app_kwargs": {"routes": [Route("/speech/{number:int}.wav", serve_speech)]},
        "theme": gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
    }  # fmt: skip
    return page, launch


def main(weights: str | Path | None, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl+C."""
    page, launch = build(Omni.from_pretrained(weights))
    try:
        page.launch(server_port=port, inbrowser=browser, prevent_thread_lock=True, **launch)
    except OSError as error:  # gradio's own message: the port is in use
        raise InputError(f"{error} Another one: --port {port + 1}") from error
    say(f"http://{HOST}:{port}  (Ctrl+C ends it)")
    page.block_thread()
