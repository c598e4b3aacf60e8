"""Forward and training step of the Thinker beside a Llama of the same sizes

Both with the same random weights' sizes, float32, AdamW for the step.
"""

import torch
from harness import Case, Run
from references import llama
from torch import nn

from tinyomni.config import TINY
from tinyomni.thinker import ThinkerLM
from tinyomni.training.stages.thinker import next_token_loss

SIZES = ((1, 6), (1, 64), (1, 256), (8, 64), (8, 256), (16, 256))


def reference_model() -> nn.Module:
    """A Llama of the Thinker's sizes."""
    cfg = TINY.thinker
    return llama(cfg.vocab, cfg.d_model, cfg.layers, cfg.heads, cfg.intermediate_size)


def step(model: nn.Module, ids: torch.Tensor, ours: bool) -> Run:
    """Forward, backward and the optimizer's step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> None:
        with torch.enable_grad():
            optimizer.zero_grad()
            next_token_loss(model(ids) if ours else model(ids, use_cache=False).logits, ids).backward()
            optimizer.step()

    return run


def forward(model: nn.Module, ids: torch.Tensor, **options: bool) -> Run:
    """Without gradients."""

    def run() -> None:
        with torch.inference_mode():
            model(ids, **options)

    return run


def cases(device: str) -> list[Case]:
    """Sizes as (batch, tokens)."""
    ours, reference = ThinkerLM().to(device).eval(), reference_model().to(device).eval()
    found = []
    for batch, tokens in SIZES:
        ids = torch.randint(4, 1300, (batch, tokens), device=device)
        found.append(Case(f"forward {batch}×{tokens}", forward(ours, ids), forward(reference, ids, use_cache=False),
                          "transformers Llama", 1.03))  # fmt: skip
    for batch, tokens in SIZES:
        ids = torch.randint(4, 1300, (batch, tokens), device=device)
        found.append(Case(f"training step {batch}×{tokens}", step(ours, ids, True), step(reference, ids, False),
                          "transformers Llama", 1.03))  # fmt: skip
    return found
