"""onnxruntime beside eager PyTorch: the same questions and sentences, processor time per token and per code frame.

    python benchmarks/onnx_backend.py [--graphs runs/onnx] [--questions 200] [--threads 1] [--json FILE]

Both run in this process, in turn, question by question, so that other work on the machine meets both alike; the ratio
is what counts. Beside the times: on how many questions the text is the same, and whether the speech codes are. Graphs
are exported first where there are none (int8 weights, extra `onnx`).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyomni import Omni
from tinyomni.data import world
from tinyomni.data.rendering import render
from tinyomni.evaluation.questions import one_of_each_kind
from tinyomni.onnx.export import graphs_of
from tinyomni.onnx.runtime import OnnxOmni

SENTENCES = ("A red star.", "There is a big red circle on the left.", "I do not know.", "Hello!")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds of processor time that it takes."""
    start = time.process_time()
    return run(), time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", default="runs/onnx", metavar="DIR")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    eager, ours = Omni.from_pretrained(), OnnxOmni(graphs_of(None, Path(args.graphs), print), args.threads)

    seconds, tokens, same = {"eager": 0.0, "onnx": 0.0}, 0, 0
    for number in range(-2, args.questions):  # two to warm up
        scene = world.draw_scene("test", abs(number))
        asked = one_of_each_kind(scene, str(number))
        question = asked[number % len(asked)].text
        image = torch.from_numpy(np.array(render(scene, abs(number)))).permute(2, 0, 1).float() / 255
        found = {}
        for name, model in (("eager", eager), ("onnx", ours)):
            found[name], spent = timed(lambda: model.reply(question, image).finish())  # noqa: B023
            seconds[name] += spent if number >= 0 else 0
        tokens += len(found["eager"].ids) if number >= 0 else 0
        same += number >= 0 and found["eager"].text == found["onnx"].text
    speech, frames, codes = {"eager": 0.0, "onnx": 0.0}, 0, 0
    for text in (SENTENCES[0], *SENTENCES):
        spoken = {}
        for name, model in (("eager", eager), ("onnx", ours)):
            spoken[name], spent = timed(lambda: model.speech_codes(text))  # noqa: B023
            speech[name] += spent
        frames += spoken["eager"].shape[1]
        codes += torch.equal(spoken["eager"], spoken["onnx"])

    rows = {"token, image and question included": (seconds, tokens), "speech frame of 80 ms": (speech, frames)}
    print(f"{'processor ms for each':38}{'eager':>8}{'onnx':>8}{'ratio':>8}")
    for name, (spent, count) in rows.items():
        print(f"{name:38}{1e3 * spent['eager'] / count:8.2f}{1e3 * spent['onnx'] / count:8.2f}"
              f"{spent['eager'] / spent['onnx']:8.2f}")  # fmt: skip
    print(f"same text: {same} of {args.questions} questions; same codes: {codes} of {len(SENTENCES) + 1} sentences")
    if args.json:
        result: dict[str, Any] = {
            name: {key: 1e3 * each / count for key, each in spent.items()} for name, (spent, count) in rows.items()
        }
        Path(args.json).write_text(json.dumps(result | {"same": same, "codes": codes}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
