"""One new token behind a KV cache: what the decoder blocks compute, with less work around their matrix products.

    x (batch, 1, dim) → all blocks → the same shape

Such a step takes as long as reading the weights does, and the operations between the products as long again. So the
weights are laid out once per generation as they are read fastest, the scales of the norms go into them, and each block
is a dozen operations. `ThinkerLM` and `TalkerTiny` use it by themselves; the readable blocks run whenever somebody
looks or has changed something: gradients, shape checks, a trace, hooks, other kinds of layers, swapped functions.

Source: Pope et al., Efficiently Scaling Transformer Inference (2022), section 3.5 on memory-bound decoding.
"""

import inspect
import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from tinyomni import attention, layers, rope
from tinyomni.attention import KVCache, SelfAttention
from tinyomni.layers import DecoderBlock, RMSNorm, SwiGLU

KINDS = {nn.ModuleList, nn.Linear, nn.Embedding, DecoderBlock, RMSNorm, SelfAttention, SwiGLU}
NAMESPACES = [vars(each) for each in (attention, layers, rope, *KINDS)]
# without the shape checks, which may be on already: a checked function counts as a changed one
FUNCTIONS = [
    (namespace, name, inspect.unwrap(value) if hasattr(value, "__shapes_checked__") else value)
    for namespace in NAMESPACES
    for name, value in namespace.items()
    if inspect.isfunction(value)
]


class Weights(NamedTuple):
    """Of one block, each as the second factor of a product: (inputs, outputs)."""

    qkv: Float[Tensor, "dim _"]
    o: Float[Tensor, "_ dim"]
    gate_up: Float[Tensor, "dim _"]
    down: Float[Tensor, "_ dim"]


def side_by_side(norm: RMSNorm, *projections: nn.Linear) -> Float[Tensor, "dim _"]:
    """Several projections of the same normalized vector as one, with the norm's scale in it.

    A product of one row with a wide matrix is about twice as fast when each input's weights are next to each other.
    """
    return torch.cat([each.weight * norm.weight for each in projections]).T.contiguous()


class FastStep:
    """The blocks of a model, prepared for one generation: `step(x, cache, mask)`."""

    def __init__(self, model: nn.Module, key_padding_mask: Bool[Tensor, "batch keys"] | None) -> None:
        blocks: Any = model.blocks
        norm: Any = model.norm
        attn = blocks[0].attn
        self.modules = parts(model)
        self.heads, self.kv_heads, self.head_dim = attn.heads, attn.kv_heads, attn.head_dim
        self.eps = blocks[0].norm1.eps
        self.padded = key_padding_mask is not None and not bool(key_padding_mask.all())
        self.cos = attn.cos
        self.sin = torch.cat([-attn.sin[:, : self.head_dim // 2], attn.sin[:, self.head_dim // 2 :]], dim=1)
        self.weights = [
            Weights(
                side_by_side(block.norm1, block.attn.q_proj, block.attn.k_proj, block.attn.v_proj),
                block.attn.o_proj.weight.T,
                side_by_side(block.norm2, block.mlp.gate, block.mlp.up),
                block.mlp.down.weight.T,
            )
            for block in blocks
        ]
        lm_head: Any = head(model)
        self.lm_head: Any = None if lm_head is None else side_by_side(norm, lm_head)

    def normalize(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """RMSNorm without its weight."""
        return x * x.square().mean(dim=-1, keepdim=True).add_(self.eps).rsqrt_()

    @torch.inference_mode()
    def __call__(
        self,
        x: Float[Tensor, "batch 1 dim"],
        cache: KVCache,
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
    ) -> Float[Tensor, "batch 1 dim"]:
        """All blocks; keys and values go into the cache, which is not advanced."""
        batch, both = len(x), self.heads + self.kv_heads
        cos, sin = self.cos[cache.size], self.sin[cache.size]
        mask = mask if self.padded else None
        x = x[:, 0]
        for layer, weights in enumerate(self.weights):
            qkv = torch.mm(self.normalize(x), weights.qkv).view(batch, -1, 1, self.head_dim)
            qk = qkv[:, :both]
            qk = torch.addcmul(qk * cos, qk.roll(self.head_dim // 2, -1), sin)
            keys, values = cache.update(layer, qk[:, self.heads :], qkv[:, both:])
            mixed = F.scaled_dot_product_attention(
                qk[:, : self.heads], keys, values, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
            )
            x = torch.addmm(x, mixed.reshape(batch, -1), weights.o)
            gate, up = torch.mm(self.normalize(x), weights.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), weights.down)
        return x[:, None]

    def logits(self, x: Float[Tensor, "batch 1 dim"]) -> Float[Tensor, "batch 1 vocab"]:
        """The norm and the head of the Thinker."""
        return torch.mm(self.normalize(x[:, 0]), self.lm_head)[:, None]


def parts(model: nn.Module) -> list[nn.Module]:
    """All modules inside a model."""
    return list(model.modules())[1:]


def head(model: nn.Module) -> nn.Module | None:
    """The Thinker's; the outputs of the Talker are narrow, and nothing is gained there."""
    return getattr(model, "lm_head", None)


def untouched(modules: list[nn.Module]) -> bool:
    """Whether nobody looks, and every function and layer is as the library has it."""
    return (
        sys.getprofile() is None
        and not torch._C._len_torch_function_stack()
        and not torch.compiler.is_compiling()
        and all(namespace.get(name) is value for namespace, name, value in FUNCTIONS)
        and not _has_any_global_hook()
        and not any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in modules)
    )


def sizes(block: DecoderBlock) -> tuple[float, ...]:
    """What all blocks of a model have in common."""
    attn = block.attn
    return (attn.heads, attn.kv_heads, attn.head_dim, attn.max_seq_len, attn.causal)


def alike(model: nn.Module, cache: KVCache) -> bool:
    """Whether all layers are of the library's kinds, in float32, and the blocks differ in nothing but their weights."""
    blocks: Any = model.blocks
    return (
        type(cache) is KVCache
        and all(type(module) in KINDS for module in parts(model))
        and all(type(each) is nn.Parameter and each.dtype == torch.float32 for each in model.parameters())
        and len({module.eps for module in parts(model) if isinstance(module, RMSNorm)}) == 1
        and blocks[0].attn.causal
        and blocks[0].attn.max_seq_len > 0
        and all(type(block) is DecoderBlock and sizes(block) == sizes(blocks[0]) for block in blocks)
        and all(torch.equal(block.attn.cos, blocks[0].attn.cos) for block in blocks)
        and all(torch.equal(block.attn.sin, blocks[0].attn.sin) for block in blocks)
        and not any(getattr(each, "bias", None) is not None for each in (*blocks.modules(), head(model)))
    )


def fast_step(model: nn.Module, x: Tensor, cache: KVCache) -> FastStep | None:
    """What runs `model.blocks` for one more token, if it may; it is prepared once and kept with the cache."""
    if x.shape[1] != 1 or not cache.size or cache.fast is False:
        return None
    if (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or type(x) is not Tensor
        or {x.dtype, cache.keys.dtype} != {torch.float32}
        or {x.device.type, cache.keys.device.type} != {"cpu"}
    ):
        return None
    if not untouched(cache.fast.modules if cache.fast else parts(model)):
        return None
    if cache.fast is None:
        cache.fast = alike(model, cache) and FastStep(model, cache.key_padding_mask)
    return cache.fast or None
