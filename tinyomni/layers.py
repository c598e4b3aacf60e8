"""Norms, MLPs and the two kinds of block.

`DecoderBlock` (Thinker, Talker): RMSNorm, causal attention with RoPE, SwiGLU, no biases. `EncoderBlock` (ViT, audio
encoder): LayerNorm, attention to everything, GELU, biases. Both are pre-norm: each part reads a
normalized copy of the residual stream and adds to it, so `block(x)` keeps the shape.

Sources: Zhang & Sennrich, RMSNorm (2019); Shazeer, GLU Variants (2020); Xiong et al., On Layer Normalization (2020).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tinyomni.attention import KVCache, SelfAttention


class RMSNorm(nn.Module):
    """x / root mean square(x) · weight, for each vector."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The mean is taken in float32 at least, also under autocast; the shape and dtype of x are kept."""
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)): one projection gates the other."""

    def __init__(self, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, intermediate_size, bias=False)
        self.up = nn.Linear(dim, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """(…, dim) → the same shape; each token on its own."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GELUMLP(nn.Module):
    """fc2(gelu(fc1(x))), the MLP of the original Transformer with GELU."""

    def __init__(self, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """(…, dim) → the same shape; each token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class DecoderBlock(nn.Module):
    """Causal: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        intermediate_size: int,
        max_seq_len: int,
        kv_heads: int | None = None,
        theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.attn = SelfAttention(dim, heads, kv_heads, causal=True, max_seq_len=max_seq_len, theta=theta)
        self.norm2 = RMSNorm(dim)
        self.mlp = SwiGLU(dim, intermediate_size)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        cache: KVCache | None = None,
        layer: int = 0,
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """(batch, tokens, dim) → the same. `mask` restricts the causal one: False where no token may attend to."""
        x = x + self.attn(self.norm1(x), cache=cache, layer=layer, mask=mask)
        return x + self.mlp(self.norm2(x))


class EncoderBlock(nn.Module):
    """Bidirectional: every token attends to every token."""

    def __init__(self, dim: int, heads: int, intermediate_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, bias=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GELUMLP(dim, intermediate_size)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """(batch, tokens, dim) → the same. `mask` is True where a token may be attended to."""
        x = x + self.attn(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))


def init_weights(model: nn.Module, layers: int, init: Literal["gpt2", "lecun"] = "gpt2") -> None:
    """GPT-2's initialization: normal, deviation 0.02; what writes into the residual stream is divided by √(2 · layers).

    `init="lecun"` keeps the variance of what passes through: deviation 1 / √inputs (LeCun et al., Efficient BackProp,
    1998), 1 for embeddings. GPT-2's 0.02 fits widths around a thousand; at 256 every layer starts out almost at zero.
    """
    lecun = init == "lecun"
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            last = name.endswith(("o_proj", "down", "fc2"))
            std = module.in_features**-0.5 if lecun else 0.02
            nn.init.normal_(module.weight, std=std / (2 * layers) ** 0.5 if last else std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0 if lecun else 0.02)
