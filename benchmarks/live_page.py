"""The live page in Chromium: time to the first token and to the first sound, gaps in the sound, memory over questions.

    python benchmarks/live_page.py [--questions 50] [--folder site/build/live]

Needs the built page (site/live/README.md), Chromium and the package playwright. Wall time: of an idle machine only. A
slower machine: run it with less processor time, such as in a control group whose cpu.max is a quarter of two cores.
"""

import argparse
import functools
import http.server
import shutil
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

QUESTIONS = ("What colour is the circle?", "How many things are there?", "Is there a red star?", "Describe the image.",
             "What is on the left?")  # fmt: skip
READY = "document.getElementById('status').textContent.startsWith('Ready')"
TIMES = """() => {
  const page = window.tinyomni.timing = { first: null };
  const shown = ["parts", "answer"].map((id) => document.getElementById(id));
  const seen = new MutationObserver(() => {
    if (shown.some((each) => each.textContent)) page.first ??= performance.now();  // the question empties them first
  });
  shown.forEach((each) => seen.observe(each, { childList: true }));
  page.asked = performance.now();
}"""
AFTER = """() => ({ first: window.tinyomni.timing.first - window.tinyomni.timing.asked,
  gaps: window.tinyomni.player.gaps, facts: document.getElementById('sound-facts').textContent })"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: object) -> None:
        pass


def renderer_memory() -> float:
    """Resident MB of Chromium's largest renderer process."""
    sizes = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if b"--type=renderer" in (status.parent / "cmdline").read_bytes():
                sizes += [int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmRSS" in line]
        except OSError:  # it has ended meanwhile
            pass
    return max(sizes)


def ask(page: Any, question: str) -> dict[str, Any]:
    """One question on a random scene, until it is answered and spoken."""
    page.click("#random")
    page.locator("#question").fill(question)
    page.evaluate("window.tinyomni.answer = null")
    page.evaluate(TIMES)
    page.locator("#question").press("Enter")
    page.wait_for_function("window.tinyomni.answer && document.getElementById('stop').disabled", timeout=300_000)
    found: dict[str, Any] = page.evaluate(AFTER)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("site/build/live"))
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    handler = functools.partial(Quiet, directory=str(args.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as browsers:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        flags = ["--autoplay-policy=no-user-gesture-required", "--no-sandbox"]
        page = browsers.chromium.launch(executable_path=chromium, args=flags).new_page()
        start = time.perf_counter()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_function(READY, timeout=300_000)
        print(f"ready after {time.perf_counter() - start:.1f} s, {renderer_memory():.0f} MB")
        ask(page, QUESTIONS[0])  # the first call of a graph takes longer
        found, memory = [], [renderer_memory()]
        for number in range(args.questions):
            found.append(ask(page, QUESTIONS[number % len(QUESTIONS)]))
            memory.append(renderer_memory())
        firsts = [each["first"] for each in found]
        sounds = [float(each["facts"].split("after ")[1].split(" ms")[0]) for each in found if "after" in each["facts"]]
        print(f"first token after {median(firsts):.0f} ms (median), {max(firsts):.0f} (most)")
        print(f"first sound after the answer's text: {median(sounds):.0f} ms (median), {max(sounds):.0f} (most)")
        print(f"gaps in the sound: {sum(each['gaps'] for each in found)} in {len(found)} answers")
        print(f"memory: {memory[0]:.0f} MB after one question, {memory[-1]:.0f} MB after {len(found)} more")
    server.shutdown()


if __name__ == "__main__":
    main()
