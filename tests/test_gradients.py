"""Gradients in float64, against finite differences, of every piece that is written by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from tinyomni.attention import SelfAttention, attend, attention
from tinyomni.codec import PostNet, dct_basis
from tinyomni.layers import GELUMLP, DecoderBlock, EncoderBlock, RMSNorm, SwiGLU
from tinyomni.rope import apply_rope, rope_table
from tinyomni.vocoder import soft_clip

MASK = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])[None, None]


def heads(count: int) -> Tensor:
    return torch.randn(1, count, 3, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("which", [lambda *inputs: attention(*inputs)[0], attend], ids=["attention", "attend"])
def test_attention(which: Callable[..., Tensor], mask: Tensor | None, kv_heads: int) -> None:
    q, k, v = heads(4), heads(kv_heads), heads(kv_heads)
    for causal in (False, True):
        assert gradcheck(lambda q, k, v, causal=causal: which(q, k, v, causal, mask), (q, k, v))


def test_rope() -> None:
    cos, sin = (table.double() for table in rope_table(3, 4))
    assert gradcheck(lambda x: apply_rope(x, cos, sin), (heads(2),))


LAYERS = {
    "RMSNorm": lambda: RMSNorm(8),
    "SwiGLU": lambda: SwiGLU(8, 6),
    "GELUMLP": lambda: GELUMLP(8, 6),
    "SelfAttention": lambda: SelfAttention(8, 4, 2, causal=True, max_seq_len=4),
    "DecoderBlock": lambda: DecoderBlock(8, 2, 6, max_seq_len=4),
    "EncoderBlock": lambda: EncoderBlock(8, 2, 6),
    "PostNet": lambda: PostNet(8, 4, channels=3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_weights(name: str) -> None:
    layer: nn.Module = LAYERS[name]().double()
    for parameter in layer.parameters():  # also those that begin as zeros or ones
        nn.init.normal_(parameter, std=0.5)
    names = [key for key, _ in layer.named_parameters()]
    x = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        found = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return found[0] if isinstance(found, tuple) else found

    assert gradcheck(call, (x, *layer.parameters()))


def test_the_clip_of_the_vocoder_and_the_cosine_transform() -> None:
    wave = torch.tensor([-3.0, -0.9, -0.3, 0.0, 0.5, 0.85, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(soft_clip, (wave,))
    basis = dct_basis(4, 6)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4))
