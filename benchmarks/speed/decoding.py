"""Greedy decoding with a cache beside transformers' `generate`, beside no cache, and in a batch

64 new tokens after a prompt of 12.

Limits: one row reads each weight once for each token, and that is 55% of a step by `torch.profiler` (`mm`, `addmm`);
the rest is some 40 small operations a block. Eight rows read the weights once for all, but their products take 2.6
times as long as those of one row, on one thread: by then it is the arithmetic that takes the time.
"""

import torch
from harness import Case, Run
from thinker import reference_model

from tinyomni.generation import generate
from tinyomni.thinker import ThinkerLM

NEW, PROMPT = 64, 12


def uncached(model: ThinkerLM, ids: torch.Tensor, new: int = NEW) -> Run:
    """Every token from a forward pass over all before it."""

    def run() -> None:
        text = ids
        with torch.inference_mode():
            for _ in range(new):
                text = torch.cat([text, model(text)[:, -1:, :1300].argmax(-1)], dim=1)

    return run


def cases(device: str) -> list[Case]:
    """A goal of 0.5 is twice as fast; eight rows in less than 1.6 times the time of one is five times the rate."""
    ours, reference = ThinkerLM().to(device).eval(), reference_model().to(device).eval()
    ids = torch.randint(4, 1300, (1, PROMPT), device=device)
    ids[:, 0] = 1
    eight = ids.expand(8, -1).contiguous()

    def cached(rows: torch.Tensor) -> Run:
        return lambda: generate(ours, rows, max_new_tokens=NEW, eos=None, vocab_limit=1300)

    def theirs() -> None:
        with torch.inference_mode():
            reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                               do_sample=False, pad_token_id=0)  # fmt: skip

    return [
        Case("64 tokens, cached", cached(ids), theirs, "transformers generate", 0.5),
        Case("64 tokens, cached", cached(ids), uncached(ours, ids), "ours without a cache", 0.25),
        Case("batch of 8", cached(eight), cached(ids), "one row", 1.6),
    ]
