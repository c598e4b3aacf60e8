"""Rotary position embedding (RoPE): queries and keys are rotated by angles that grow with the position.

    x (batch, heads, tokens, head_dim) → the same shape

A head of width 64 is read as 32 pairs. Pair p of the token at position t is rotated by t · θ^(-2p/64). The dot product
of a query and a key then depends on their distance, not on their positions.

Source: Su et al., RoFormer (2021), https://arxiv.org/abs/2104.09864, section 3. The pairs are (p, p + 32), as in
GPT-NeoX and Llama, not (2p, 2p + 1).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rope_table(
    length: int, head_dim: int, theta: float = 10_000.0
) -> tuple[Float[Tensor, "tokens head_dim"], Float[Tensor, "tokens head_dim"]]:
    """Cosine and sine of every angle, for positions 0 … length - 1."""
    if head_dim % 2:
        raise ValueError(f"rope_table: head_dim must be even, since it is rotated in pairs; got {head_dim}")
    inv_freq = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def apply_rope(
    x: Float[Tensor, "batch heads tokens head_dim"],
    cos: Float[Tensor, "tokens head_dim"],
    sin: Float[Tensor, "tokens head_dim"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Rotate each pair (x1, x2) by its angle: (x1 cos - x2 sin, x2 cos + x1 sin)."""
    x1, x2 = x.chunk(2, dim=-1)
    rotated = torch.cat([-x2, x1], dim=-1)
    return x * cos.to(x.dtype) + rotated * sin.to(x.dtype)
