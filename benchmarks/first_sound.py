"""Streamed speech: the time to the first 80 ms, and the processor time per second of speech, beside the whole at once.

    python benchmarks/first_sound.py [--graphs runs/onnx] [--threads 2] [--repeats 5]

Each sentence is spoken as a stream and as a whole in turn, warm. Wall time says when something is heard; it is that of
an idle machine only. With `--graphs` the same on onnxruntime.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from tinyomni import Omni
from tinyomni.apps.chat import Backend
from tinyomni.config import SAMPLE_RATE

SENTENCES = ("Yes.", "A big red star.", "There is a big red circle on the left and a small grey ring at the top.")


def stream(model: Backend, text: str) -> tuple[float, float, float]:
    """Seconds until the first piece, processor seconds for all, and seconds of speech."""
    start, busy, first, samples = time.perf_counter(), time.process_time(), 0.0, 0
    for piece in model.codec.stream(model.stream_codes(text)):
        first = first or time.perf_counter() - start
        samples += len(piece)
    return first, time.process_time() - busy, samples / SAMPLE_RATE


def whole(model: Backend, text: str) -> tuple[float, float, float]:
    """The same of the speech at once: all of it comes together."""
    start, busy = time.perf_counter(), time.process_time()
    with torch.no_grad():
        wave = model.codec.decode(model.speech_codes(text))[0]
    return time.perf_counter() - start, time.process_time() - busy, len(wave) / SAMPLE_RATE


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models: dict[str, Backend] = {"torch": Omni.from_pretrained()}
    if args.graphs:
        from tinyomni.onnx.export import graphs_of
        from tinyomni.onnx.runtime import OnnxOmni

        models["onnx"] = OnnxOmni(graphs_of(None, Path(args.graphs), print), args.threads)
    print(
        f"{'backend':8} {'speech':>7} {'first, stream':>14} {'first, whole':>13} {'RTF, stream':>12} {'RTF, whole':>11}"
    )
    for name, model in models.items():
        for text in SENTENCES:
            runs = [(stream(model, text), whole(model, text)) for _ in range(args.repeats + 1)][1:]
            (first, busy, speech), (at_once, busy_whole, _) = (
                tuple(median(run[which][part] for run in runs) for part in range(3)) for which in (0, 1)
            )
            print(f"{name:8} {speech:6.2f}s {1000 * first:11.0f} ms {1000 * at_once:10.0f} ms "
                  f"{busy / speech:12.2f} {busy_whole / speech:11.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
