"""Time to the first token of `ask` and to the first audio of `speak`, and the real-time factor (RTF) of speech.

    python benchmarks/serving.py [--weights FILE] [--device cuda] [--threads 2] [--json FILE]

*cold* is a process of its own, from its start to the first output: Python, imports, weights, the first call. *warm* is
a call in a process that has answered before; the median of several. The real-time factor is seconds of work for one
second of speech: below 1 it is generated faster than it is played. Processor time is printed beside it, because on a
machine that does other work the clock counts that too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

QUESTION, SENTENCE = "What colour is the circle?", "There is a big red circle on the left."


def first(omni: Any, what: str) -> tuple[float, float]:
    """Seconds to the first output, by the clock and by the processor: of a question, a spoken one, or a sentence."""
    from tinyomni.apps.chat import speak_sentences
    from tinyomni.dry_run import AUDIO, IMAGE

    start, work = time.perf_counter(), time.process_time()
    if what == "speak":
        next(speak_sentences(omni, SENTENCE))
    else:
        next(omni.reply(QUESTION, IMAGE) if what == "ask" else omni.reply(None, IMAGE, AUDIO), None)
    return time.perf_counter() - start, time.process_time() - work


def load(weights: str | None, device: str, threads: int) -> Any:
    """The model on its device, with the number of threads set."""
    import torch

    from tinyomni import Omni

    torch.set_num_threads(threads)
    return Omni.from_pretrained(weights).to(device)


def cold(what: str, args: argparse.Namespace) -> float:
    """Seconds from the start of a process to its first output."""
    command = [sys.executable, __file__, "--cold", what, "--device", args.device, "--threads", str(args.threads)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *(["--weights", args.weights] if args.weights else [])],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    line = process.stdout.readline() if process.stdout else ""
    seconds = time.perf_counter() - start
    if process.wait() or line != "first\n":
        raise RuntimeError(f"the process that should {what} failed")
    return seconds


def real_time_factor(omni: Any, times: int) -> tuple[float, float, float]:
    """The RTF by the clock and by the processor, and the seconds of speech."""
    omni.speak(SENTENCE)
    start, work, samples = time.perf_counter(), time.process_time(), 0
    for _ in range(times):
        samples += len(omni.speak(SENTENCE))
    seconds = samples / 16_000
    return (time.perf_counter() - start) / seconds, (time.process_time() - work) / seconds, seconds / times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", metavar="FILE", help="other weights than those that ship")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=10, help="of each warm call")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--cold", choices=["ask", "ask by voice", "speak"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cold:
        first(load(args.weights, args.device, args.threads), args.cold)
        print("first", flush=True)
        return
    omni = load(args.weights, args.device, args.threads)
    found: dict[str, Any] = {}
    print(f"{'seconds to the first output':30}{'cold':>9}{'warm':>9}{'warm, processor':>18}")
    for what in ("ask", "ask by voice", "speak"):
        first(omni, what)
        clock, work = zip(*(first(omni, what) for _ in range(args.times)), strict=True)
        found[what] = {"cold": cold(what, args), "warm": statistics.median(clock), "processor": statistics.median(work)}
        row = found[what]
        print(f"{what:30}{row['cold']:9.2f}{row['warm']:9.3f}{row['processor']:18.3f}")
    clock, work, seconds = real_time_factor(omni, args.times)
    found["real time"] = {"factor": clock, "processor": work, "seconds": seconds}
    print(f"\nreal-time factor of {seconds:.2f} s of speech: {clock:.2f} by the clock, {work:.2f} by the processor")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
