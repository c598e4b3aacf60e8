"""Attention: each token has a query, which is compared with all keys, and a value, of which others take a share.

    q, k, v (batch, heads, tokens, head_dim) → softmax(q kᵀ / √head_dim) v

The fast path is torch's `scaled_dot_product_attention`. `attention` computes the same in five readable lines and also
returns the weights; a test compares the two.

Sources: Vaswani et al., Attention Is All You Need (2017), section 3.2; Ainslie et al., GQA (2023) for heads that share
keys and values; Pope et al. (2022) for the KV cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tinyomni.rope import apply_rope, rope_table


def split_heads(x: Float[Tensor, "batch tokens dim"], heads: int) -> Float[Tensor, "batch {heads} tokens head_dim"]:
    """Split each token's vector into `heads` shorter ones."""
    return rearrange(x, "batch tokens (heads head_dim) -> batch heads tokens head_dim", heads=heads)


def merge_heads(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens dim"]:
    """The inverse of `split_heads`. The heads must be next to head_dim before they are joined, or tokens get mixed."""
    return rearrange(x, "batch heads tokens head_dim -> batch tokens (heads head_dim)")


def causal_mask(queries: int, keys: int, device: torch.device | str = "cpu") -> Bool[Tensor, "queries keys"]:
    """True where a query may attend to a key: at its own position and before. The last query is at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    causal: bool = False,
    mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries head_dim"], Float[Tensor, "batch heads queries keys"]]:
    """Readable attention: softmax(q kᵀ / √head_dim) v, and the weights.

    `mask` is True where a query may attend to a key. A query that may attend to none gets zeros.
    """
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(~causal_mask(q.shape[2], k.shape[2], q.device), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1).nan_to_num(0.0) if mask is not None else scores.softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def attend(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    causal: bool = False,
    mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """The same by torch's fused kernel, which never stores the weights.

    For training in bf16 on a CPU the readable version is used: there it is 2 to 6 times as fast, forward and backward.
    """
    # RoPE makes queries and keys fp32 under autocast; the values have the precision of the computation
    if v.dtype is torch.bfloat16 and v.device.type == "cpu" and torch.is_grad_enabled():
        return attention(q, k, v, causal, mask)[0]
    if causal and q.shape[2] == 1:
        causal = False  # the newest token may attend to everything: no mask is needed
    # torch aligns its own causal mask to the top left, which is wrong for a chunk behind a cache
    if causal and (mask is not None or q.shape[2] != k.shape[2]):
        past = causal_mask(q.shape[2], k.shape[2], q.device)
        mask, causal = (past if mask is None else past & mask), False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


class KVCache:
    """Keys and values of all tokens so far, for every layer, in memory that is allocated once.

    `size` counts the tokens that are stored, `max_seq_len` how many fit. A forward pass first writes its tokens with
    `update`, layer by layer, and then moves on with `advance`. Prefill, single steps and chunks are the same thing with
    different numbers of tokens. `key_padding_mask` is True where a key may be attended to, False at padding (the
    opposite of `nn.MultiheadAttention`'s argument of that name); None means that there is no padding.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        max_seq_len: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.keys = torch.zeros(layers, batch, kv_heads, max_seq_len, head_dim, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.key_padding_mask: Bool[Tensor, "batch keys"] | None = None
        self.max_seq_len = max_seq_len
        self.size = 0
        self.fast: Any = None  # the weights of the blocks, prepared by `fast_step`; False where they cannot be

    def check_room(self, where: str, batch: int, tokens: int) -> None:
        """Raise a `ValueError` unless `tokens` more tokens of `batch` sequences fit."""
        if batch != self.keys.shape[1]:
            raise ValueError(
                f"{where}: expected a batch of {self.keys.shape[1]}, for which this KV cache was made, got {batch}. "
                f"Use new_cache({batch})."
            )
        if self.size + tokens > self.max_seq_len:
            raise ValueError(
                f"{where}: {self.size} cached tokens + {tokens} new = {self.size + tokens} > "
                f"max_seq_len = {self.max_seq_len} of the KV cache"
            )

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch kv_heads tokens head_dim"],
        v: Float[Tensor, "batch kv_heads tokens head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_heads keys head_dim"], Float[Tensor, "batch kv_heads keys head_dim"]]:
        """Write the new tokens of one layer; return all its keys and values so far."""
        end = self.size + k.shape[2]
        self.keys[layer, :, :, self.size : end] = k
        self.values[layer, :, :, self.size : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count the tokens that all layers have now written."""
        self.size += tokens

    def __repr__(self) -> str:
        layers, batch, kv_heads, max_seq_len, head_dim = self.keys.shape
        heads = f"{kv_heads} heads of {head_dim}"
        return f"KVCache({self.size} of {max_seq_len} tokens, {layers} layers, batch {batch}, {heads})"


class SelfAttention(nn.Module):
    """Self-attention with its projections: (batch, tokens, dim) → the same shape.

    `causal` attends to the past only. `max_seq_len` is the longest sequence that RoPE has angles for; 0 means no RoPE.
    With `kv_heads` < `heads`, groups of heads share keys and values.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        causal: bool = False,
        max_seq_len: int = 0,
        theta: float = 10_000.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if dim % heads or heads % kv_heads:
            raise ValueError(
                "SelfAttention: dim must be divisible by heads, and heads by kv_heads; "
                f"got dim={dim}, heads={heads}, kv_heads={kv_heads}"
            )
        self.heads, self.kv_heads, self.head_dim, self.causal = heads, kv_heads, dim // heads, causal
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, dim, bias=bias)
        if max_seq_len:
            cos, sin = rope_table(max_seq_len, self.head_dim, theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.max_seq_len = max_seq_len

    def qkv(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
    ]:
        """Queries, keys and values, split into heads, before RoPE."""
        return (
            split_heads(self.q_proj(x), self.heads),
            split_heads(self.k_proj(x), self.kv_heads),
            split_heads(self.v_proj(x), self.kv_heads),
        )

    def rotate(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads tokens head_dim"],
        start: int = 0,
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch kv_heads tokens head_dim"]]:
        """Rotate queries and keys by their positions start, start + 1, …; values are not rotated."""
        end = start + q.shape[2]
        if end > self.max_seq_len:
            raise ValueError(
                f"SelfAttention: {end} positions > max_seq_len = {self.max_seq_len}: the sequence is too long"
            )
        cos, sin = self.cos[start:end], self.sin[start:end]
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        cache: KVCache | None = None,
        layer: int = 0,
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Each token takes from those that it attends to; with a `cache`, `x` holds the new tokens only."""
        q, k, v = self.qkv(x)
        if self.max_seq_len:
            q, k = self.rotate(q, k, start=cache.size if cache is not None else 0)
        if cache is not None:
            k, v = cache.update(layer, k.to(cache.keys.dtype), v.to(cache.values.dtype))
            k, v = k.to(q.dtype), v.to(q.dtype)
        return self.o_proj(merge_heads(attend(q, k, v, causal=self.causal, mask=mask)))
