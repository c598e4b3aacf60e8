"""The plain models that others are compared with, in sizes of our own."""

import torch.nn.functional as F
from torch import Tensor, nn


def llama(vocab: int, width: int, layers: int, heads: int, hidden: int) -> nn.Module:
    """For causal models: transformers' Llama, with its default (SDPA) attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
                    num_attention_heads=heads, max_position_embeddings=2048, tie_word_embeddings=False)
    )  # fmt: skip


def encoder(width: int, layers: int, heads: int, hidden: int, norm_first: bool = True) -> nn.Module:
    """For encoders with full attention: torch's own."""
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True,
                                       norm_first=norm_first)  # fmt: skip
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width) if norm_first else None, enable_nested_tensor=False)


class NanoGPT(nn.Module):
    """A language model as in Karpathy's nanoGPT: learned positions, LayerNorm, GELU, one matrix for q, k and v, and an
    output that shares the token table's weights.

    With `hidden` = 3/2 of a SwiGLU's intermediate size, a block has as many weights as one of ours.
    """

    def __init__(self, vocab: int, width: int, layers: int, heads: int, hidden: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(NanoBlock(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        self.apply(lambda module: nn.init.normal_(module.weight, std=0.02) if isinstance(module, nn.Linear) else None)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, tokens) → (batch, tokens, vocab)."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class NanoBlock(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same."""
        together = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = together.transpose(1, 3).unbind(2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
