"""A page in the browser, served by this machine to itself: draw or choose a picture, ask, read and hear the answer.

Below the answer: the spectrograms and codes of this very run, and its shape table. Nothing is asked of other machines.
"""

import io
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tinyomni.apps.chat import doubts, spoken, with_pauses
from tinyomni.data import rendering, world
from tinyomni.io.files import SAMPLE_RATE, load_audio, load_speech
from tinyomni.omni import DESCRIBE, NOTED, Omni, Reply, Transcript
from tinyomni.tracing import trace

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
HOST = "127.0.0.1"
CANVAS = (448, 448)


# ---- one run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What the page shows; it fills up while the run goes on."""

    answer: str = ""
    noted: str = ""  # what is written before the answer
    note: str = ""
    sound: tuple[int, np.ndarray] | None = None  # rate, 16-bit samples
    figure: Image.Image | None = None
    shapes: str = ""
    drawing: tuple[Any, Any, Any] = (None, None, None)  # what the figure is made of: recording, sound, codes


def drawn(editor: dict[str, Any] | None) -> Image.Image | None:
    """The picture in the editor, on the ground that easy scenes have; None where nothing was drawn or chosen."""
    picture = (editor or {}).get("composite")
    if picture is None or picture.mode != "RGBA":
        return picture
    if picture.getchannel("A").getextrema()[1] == 0:
        return None
    return Image.alpha_composite(Image.new("RGBA", picture.size, rendering.BACKGROUNDS[0]), picture).convert("RGB")


def samples(recording: tuple[int, np.ndarray] | None) -> tuple[np.ndarray, int] | None:
    """A recording as the page gives it, (rate, samples or samples × channels), as `load_audio` takes it."""
    if recording is None:
        return None
    rate, wave = recording
    return (wave.T if wave.ndim == 2 else wave), rate


def apart(pieces: Reply | Transcript) -> tuple[str, str]:
    """The answer, and what stands before it: what was heard, seen and looked up."""
    answer = pieces.answer if isinstance(pieces, Reply) else pieces.text
    return answer, pieces.text.removesuffix(answer).removesuffix(NOTED).strip()


class Model:
    """The model behind the page. One run at a time: a trace watches the whole process."""

    def __init__(self, omni: Omni) -> None:
        self.omni, self.free = omni, threading.Lock()

    def run(self, work: Callable[[Callable[[Shown], None]], Shown]) -> Iterator[Shown]:
        """What `work` shows, as it shows it. It runs in one thread, which the trace can follow from end to end."""
        shown: queue.Queue[Shown | BaseException | None] = queue.Queue()

        def whole() -> None:
            try:
                with self.free:
                    with trace("this run") as seen:
                        last = work(shown.put)
                    shown.put(replace(last, shapes=seen._repr_html_(), figure=self.draw(*last.drawing)))
            except BaseException as error:
                shown.put(error)
            finally:
                shown.put(None)

        threading.Thread(target=whole, daemon=True).start()
        while (item := shown.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def ask(
        self, picture: Image.Image | None, question: str, recording: Any, speak: bool, voice: int
    ) -> Iterator[Shown]:
        """The answer to a question, typed or spoken."""
        question = (question or "").strip()
        if not question and recording is None:
            raise ValueError("Asking: there is no question. Type one, or record one.")
        if question and recording is not None:
            raise ValueError("Asking: there are two questions, a typed and a spoken one. Clear one of them.")

        def work(show: Callable[[Shown], None]) -> Shown:
            reply = self.omni.reply(question or None, picture, None if recording is None else load_speech(recording))
            return self.finish(reply, recording, speak, voice, show)

        return self.run(work)

    def transcribe(self, recording: Any) -> Iterator[Shown]:
        """What is said in the recording."""
        if recording is None:
            raise ValueError("Writing down: there is no recording. Record one, or choose a file.")
        return self.run(lambda show: self.finish(self.omni.transcribe(recording), recording, False, 0, show))

    def finish(
        self, pieces: Reply | Transcript, recording: Any, speak: bool, voice: int, show: Callable[[Shown], None]
    ) -> Shown:
        """Text piece by piece, then what is doubtful, then the sound, then the pictures."""
        for _ in pieces:
            show(Shown(*apart(pieces)))
        answer, noted = apart(pieces)
        now = Shown(answer or "(nothing)", noted, doubts(pieces))
        show(now)
        waves, codes = [], []
        said = answer if isinstance(pieces, Reply) else ""
        if speak and said.strip():
            for code, sentence in spoken(self.omni, said, voice):
                codes.append(code)
                waves.append(sentence)
        wave = with_pauses(waves) if waves else None
        if wave is not None:
            now = replace(now, sound=(SAMPLE_RATE, (wave * 32767).round().short().numpy()))
            show(now)
        return replace(now, drawing=(recording, wave, torch.cat(codes) if codes else None))

    @torch.no_grad()
    def draw(
        self,
        recording: tuple[np.ndarray, int] | None,
        said: Float[Tensor, "said_samples"] | None,
        codes: Int[Tensor, "frames codebooks"] | None,
    ) -> Image.Image | None:
        """Spectrograms of what was heard and said, and the codes between text and sound."""
        heard = None if recording is None else load_audio(recording)
        mels = [("heard: log-mel, 10 ms a frame", heard), ("said: log-mel, 10 ms a frame", said)]
        rows = [(title, self.omni.mel(wave[None])[0]) for title, wave in mels if wave is not None]
        if not rows:
            return None
        count = len(rows) + (codes is not None)
        sheet = Figure(figsize=(7, 2 * count), layout="constrained")
        axes = sheet.subplots(count, squeeze=False)[:, 0]
        for axis, (title, mel) in zip(axes, rows, strict=False):
            axis.imshow(mel.T, origin="lower", aspect="auto", interpolation="none")
            axis.set(title=f"{title} {tuple(mel.shape)}", xlabel="mel_frames", ylabel="n_mels")
        if codes is not None:
            for book, (name, style) in enumerate((("base", ".-"), ("residual", ".:"))):
                axes[-1].plot(codes[:, book], style, drawstyle="steps-mid", label=name)
            axes[-1].set(title=f"codes, 80 ms a frame {tuple(codes.shape)}", xlabel="frames", ylabel="code")
            axes[-1].set_ylim(0, self.omni.cfg.codec.codebook_size)
            axes[-1].legend(loc="upper right")
        file = io.BytesIO()
        sheet.savefig(file, dpi=90, format="png")
        return Image.open(file)


# ---- the page -------------------------------------------------------------------------------------------------------


def build(omni: Omni) -> tuple[Any, dict[str, Any]]:
    """The page, and how it is to be launched."""
    try:
        import gradio as gr
    except ImportError as error:
        raise ValueError('The demo needs gradio: pip install "tinyomni[demo]"') from error
    model = Model(omni)

    def wrong(words: str) -> Exception:
        return gr.Error(words, duration=None, title="", print_exception=False)  # it stays until it is closed

    def shown(run: Callable[..., Iterator[Shown]], *given: Any) -> Iterator[list[Any]]:
        try:
            for each in run(*given):
                yield [each.answer, each.noted, each.note, each.sound, each.figure, each.shapes]
        except (ValueError, TypeError, IndexError, OSError) as error:
            raise wrong(str(error)) from error

    def ask(editor: Any, question: str, recording: Any, speak: bool, voice: str) -> Iterator[list[Any]]:
        yield from shown(model.ask, drawn(editor), question, samples(recording), speak, int(voice) - 1)

    def caption(editor: Any, speak: bool, voice: str) -> Iterator[list[Any]]:
        picture = drawn(editor)
        if picture is None:
            raise wrong("Captioning: there is no picture. Draw one, or take a random scene.")
        yield from shown(model.ask, picture, DESCRIBE, None, speak, int(voice) - 1)

    def transcribe(recording: Any) -> Iterator[list[Any]]:
        yield from shown(model.transcribe, samples(recording))

    def scene() -> Image.Image:
        return rendering.picture(world.draw_scene("test", random.randrange(10**6)), random.randrange(2**32)).resize(
            CANVAS
        )

    fonts = ["system-ui", "sans-serif"]  # names only: nothing to fetch
    colours: list[Any] = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in rendering.RGB.values()]
    with gr.Blocks(title="tinyomni", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# tinyomni\nAsk about a scene of coloured shapes, by text or by voice.")
        with gr.Row():
            with gr.Column():
                editor = gr.ImageEditor(
                    label="Picture", type="pil", sources=["upload", "clipboard"], canvas_size=CANVAS, height=520,
                    brush=gr.Brush(colors=colours, default_color=colours[0], default_size=60),
                    transforms=[], layers=False, elem_id="picture",
                )  # fmt: skip
                random_scene = gr.Button("Random scene")
                question = gr.Textbox(label="Question", placeholder="What colour is the circle?", elem_id="question")
                recording = gr.Audio(
                    label="Or a spoken question",
                    sources=["microphone", "upload"],
                    type="numpy",
                    buttons=["download"],
                    elem_id="recording",
                )
                with gr.Row():
                    speak = gr.Checkbox(True, label="Speak the answer")
                    voice = gr.Radio(["1", "2"], value="1", label="Voice")
                with gr.Row():
                    ask_it = gr.Button("Ask", variant="primary")
                    describe = gr.Button("Describe the picture")
                    write_down = gr.Button("Write down the speech")
            with gr.Column():
                answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
                noted = gr.Textbox(
                    label="Written before it: heard, seen, looked up", interactive=False, elem_id="noted"
                )
                note = gr.Textbox(label="How certain", interactive=False, elem_id="note")
                sound = gr.Audio(
                    label="Spoken answer", type="numpy", interactive=False, buttons=["download"], elem_id="sound"
                )
                figure = gr.Image(
                    show_label=False, type="pil", interactive=False, buttons=["download", "fullscreen"],
                    alt_text="Spectrograms and codes of this run", elem_id="figure",
                )  # fmt: skip
        with gr.Accordion("Shapes of this run", open=True):
            shapes = gr.HTML(elem_id="shapes")
        out = [answer, noted, note, sound, figure, shapes]
        one: dict[str, Any] = {
            "outputs": out, "show_progress_on": answer, "concurrency_id": "model", "concurrency_limit": 1,
            "api_visibility": "private",
        }  # fmt: skip
        random_scene.click(scene, outputs=editor, api_visibility="private")
        for event in (ask_it.click, question.submit):
            event(ask, [editor, question, recording, speak, voice], **one)
        describe.click(caption, [editor, speak, voice], **one)
        write_down.click(transcribe, [recording], **one)
    how = {
        "server_name": HOST, "share": False, "quiet": True, "enable_monitoring": False, "footer_links": [],
        "ssr_mode": False, "mcp_server": False, "pwa": False, "strict_cors": True,
        "theme": gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
    }  # fmt: skip
    return page, how


def main(weights: str | Path | None, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl+C."""
    page, how = build(Omni.from_pretrained(weights))
    page.launch(server_port=port, inbrowser=browser, prevent_thread_lock=True, **how)
    say(f"http://{HOST}:{port}  (Ctrl+C ends it)")
    page.block_thread()
