"""Residual vector quantization beside the two matrix products that it cannot do without

Limits: of (32, 1000, 128) the products take 57% by `torch.profiler`, the largest score of each row 26%, and adding the
squares of the entries 7%. A dozen vectors take some 60 calls into torch, of 1 to 2 µs each; the reference makes 5.
"""

import torch
from harness import Case, Run

from tinyomni.codec import RVQ


def products(rvq: RVQ, x: torch.Tensor) -> Run:
    """The projection, and the products with both codebooks."""

    def run() -> None:
        with torch.inference_mode():
            y = rvq.in_proj(x)
            for book in rvq.codebooks:
                y @ book.T

    return run


def cases(device: str) -> list[Case]:
    """Sizes as (batch, frames, codec_dim)."""
    rvq = RVQ().to(device).eval()
    found = []
    for shape in ((1, 12, 128), (2, 50, 128), (32, 1000, 128)):
        x = torch.randn(shape, device=device)

        def encode(x: torch.Tensor = x) -> None:
            with torch.inference_mode():
                rvq.encode(x)

        found.append(Case(f"encode {shape}", encode, products(rvq, x), "projection and products", 1.2))
    return found
