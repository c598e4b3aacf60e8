"""The plain models that others are compared with, in sizes of our own."""

from torch import nn


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
