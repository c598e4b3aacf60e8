"""Baselines of two open projects (docs/projects.md) that no other command prints.

    python benchmarks/projects.py                     # the shipped tokenizer and weights
    python benchmarks/projects.py --tokenizer mine.model --weights mine.safetensors

Time is processor time on one thread, so that other programs matter little; it still compares only on one machine.
"""

import argparse
import statistics
import time

import torch

from tinyomni import BPETokenizer, Omni
from tinyomni.data import world

PROMPTS = "Describe the image.", "What is the capital of France?", "Which colour is the circle?"


def tokens_per_word(tokenizer: BPETokenizer) -> float:
    """Over 2000 lines of the closed world that no stage trains on."""
    texts = [world.draw_line("test", number) for number in range(2000)]
    return sum(len(tokenizer.encode(text)) for text in texts) / sum(len(text.split()) for text in texts)


def ms_per_token(omni: Omni, repeats: int = 5) -> float:
    """The median of several greedy answers of 32 tokens each, prompt included."""
    times = []
    for _ in range(repeats):
        for prompt in PROMPTS:
            start = time.thread_time()
            tokens = sum(1 for _ in omni.generate(text=prompt, max_new_tokens=32, stream=True))
            times.append(1000 * (time.thread_time() - start) / max(tokens, 1))
    return statistics.median(times)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", metavar="FILE", help="instead of the shipped one")
    parser.add_argument("--weights", metavar="FILE", help="instead of the shipped ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"tokenizer  {tokens_per_word(BPETokenizer(options.tokenizer)):.3f} tokens a word")
    print(f"decode     {ms_per_token(Omni.from_pretrained(options.weights)):.2f} ms a token")


if __name__ == "__main__":
    main()
