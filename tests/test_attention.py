"""Attention, RoPE, norms, MLPs and blocks, compared with torch and transformers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRotaryEmbedding, apply_rotary_pos_emb

from tinyomni.attention import KVCache, SelfAttention, attend, attention, merge_heads, split_heads
from tinyomni.layers import DecoderBlock, EncoderBlock, RMSNorm, SwiGLU
from tinyomni.rope import apply_rope, rope_table

B, H, T, D = 2, 3, 5, 8


def qkv(kv_heads: int = H, keys: int = T) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(B, H, T, D), torch.randn(B, kv_heads, keys, D), torch.randn(B, kv_heads, keys, D)


def test_split_and_merge_are_each_others_inverse_and_split_by_head() -> None:
    x = torch.randn(B, T, H * D)
    heads = split_heads(x, H)
    assert heads.shape == (B, H, T, D)
    assert torch.equal(heads[1, 2, 3], x[1, 3, 2 * D : 3 * D])
    assert torch.equal(merge_heads(heads), x)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [H, 1])
@pytest.mark.parametrize("keys", [T, T + 4])
def test_readable_attention_is_a_slow_loop_and_the_fused_kernel(causal: bool, kv_heads: int, keys: int) -> None:
    q, k, v = qkv(kv_heads, keys)
    out, weights = attention(q, k, v, causal=causal)
    slow = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = t + keys - T + 1 if causal else keys
                scores = [float(q[b, h, t] @ k[b, h * kv_heads // H, s]) / D**0.5 for s in range(seen)]
                share = torch.tensor(scores).softmax(0)
                slow[b, h, t] = sum(share[s] * v[b, h * kv_heads // H, s] for s in range(seen))
    torch.testing.assert_close(out, slow, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attend(q, k, v, causal=causal), slow, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
    if causal:
        assert weights.triu(keys - T + 1).abs().max() == 0


@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_one_group_are_neighbours(causal: bool) -> None:
    """1 < kv_heads < heads: repeated in any other order, the keys would meet the wrong queries."""
    q, k, v = torch.randn(B, 6, T, D), torch.randn(B, 3, T, D), torch.randn(B, 3, T, D)
    pairs = [attend(q[:, [h]], k[:, [h // 2]], v[:, [h // 2]], causal=causal) for h in range(6)]
    torch.testing.assert_close(attention(q, k, v, causal=causal)[0], torch.cat(pairs, dim=1))
    torch.testing.assert_close(attend(q, k, v, causal=causal), torch.cat(pairs, dim=1))


@pytest.mark.parametrize("sizes", [(10, 3, 1), (12, 4, 3), (12, 2, 4)])
def test_heads_that_do_not_divide_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="dim must be divisible by heads, and heads by kv_heads"):
        SelfAttention(*sizes)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_keys_change_nothing_and_a_row_without_keys_is_no_nan(causal: bool) -> None:
    q, k, v = qkv()
    mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
    mask[0, ..., 3:] = False
    mask[1] = False
    loud = k.clone(), v.clone()
    loud[0][0, :, 3:], loud[1][0, :, 3:] = 99.0, -99.0
    for function in (attend, lambda *a, **kw: attention(*a, **kw)[0]):
        once, twice = function(q, k, v, causal=causal, mask=mask), function(q, *loud, causal=causal, mask=mask)
        assert torch.equal(once[0], twice[0])
        assert torch.isfinite(once).all()
    torch.testing.assert_close(
        attend(q, k, v, causal=causal, mask=mask), attention(q, k, v, causal=causal, mask=mask)[0]
    )


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_training_in_bf16_on_a_cpu_uses_the_readable_version(
    causal: bool, mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    fine = [torch.randn(B, H, T, D, generator=random).requires_grad_() for _ in "qkv"]
    seen = (torch.arange(T) < torch.tensor([[T], [T - 2]]))[:, None, None] if mask else None
    fused = F.scaled_dot_product_attention

    def gradients() -> list[Tensor]:
        half = [x.detach().bfloat16().requires_grad_() for x in fine]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # as RoPE leaves them: queries and keys in fp32, values in bf16
            out = attend(half[0].float(), half[1].float(), half[2], causal=causal, mask=seen)
        assert out.dtype == torch.bfloat16
        return [out, *torch.autograd.grad(out.float().square().sum(), half)]

    calls: list[int] = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    out = attend(*fine, causal=causal, mask=seen)
    want = [out, *torch.autograd.grad(out.square().sum(), fine)]
    assert calls == [1]
    for ours, expected in zip(gradients(), want, strict=True):
        assert float(((ours.float() - expected).norm() / expected.norm()).detach()) < 0.02
    assert calls == [1]
    with torch.no_grad():
        attend(*(x.bfloat16() for x in fine), causal=causal, mask=seen)
    assert calls == [1, 1]


def test_torch_gets_a_mask_or_is_told_to_be_causal_never_both(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, told = F.scaled_dot_product_attention, []

    def spy(*args: Tensor, attn_mask: Tensor | None, is_causal: bool, **more: bool) -> Tensor:
        told.append((attn_mask is not None, is_causal))
        return fused(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    (q, k, v), mask = qkv(), torch.ones(B, 1, 1, T, dtype=torch.bool)
    attend(q, k, v, causal=True)  # torch's own mask fits
    attend(q[:, :, -1:], k, v, causal=True)  # the newest token may attend to everything
    attend(q[:, :, -2:], k, v, causal=True)  # behind a cache torch's own does not fit
    attend(q, k, v, causal=True, mask=mask)
    assert told == [(False, True), (False, False), (True, False), (True, False)]


def test_rope_is_llamas_and_depends_on_the_distance_only() -> None:
    q, k, _ = qkv()
    config = LlamaConfig(hidden_size=D * H, num_attention_heads=H, head_dim=D)
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(T)[None])
    want_q, want_k = apply_rotary_pos_emb(q, k, cos, sin)
    mine = rope_table(T, D)
    torch.testing.assert_close(apply_rope(q, *mine), want_q)
    torch.testing.assert_close(apply_rope(k, *mine), want_k)

    cos, sin = rope_table(60, D)
    one, other = torch.randn(1, 1, 1, D), torch.randn(1, 1, 1, D)

    def score(at: int, to: int) -> torch.Tensor:
        first, second = (
            apply_rope(one, cos[at : at + 1], sin[at : at + 1]),
            apply_rope(other, cos[to : to + 1], sin[to : to + 1]),
        )
        return (first * second).sum()

    torch.testing.assert_close(score(7, 3), score(41, 37))
    assert not torch.isclose(score(7, 3), score(7, 4))


def test_the_angles_are_the_formula_at_every_position() -> None:
    length, dim = 4000, 64
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), 10_000 ** (-2 * pairs / dim)).repeat(1, 2)
    cos, sin = rope_table(length, dim)
    torch.testing.assert_close(cos, angle.cos().float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(sin, angle.sin().float(), atol=2e-3, rtol=0)
    for layer in (SelfAttention(2 * dim, 2, max_seq_len=length), DecoderBlock(2 * dim, 2, 8, length).attn):
        assert torch.equal(layer.cos, cos) and torch.equal(layer.sin, sin)
        assert not layer.state_dict().keys() & {"cos", "sin"}
    with pytest.raises(ValueError, match="head_dim must be even"):
        rope_table(5, 7)


def test_a_plain_layer_has_no_bias_no_rope_and_sees_the_future() -> None:
    layer, x = SelfAttention(H * D, H), torch.randn(B, T, H * D)
    assert layer.state_dict().keys() == {f"{name}_proj.weight" for name in "qkvo"}
    plain = qkv()
    assert torch.equal(attend(*plain), attend(*plain, causal=False))
    assert torch.equal(attention(*plain)[0], attention(*plain, causal=False)[0])
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(layer(x)[:, 0], layer(changed)[:, 0])
    order = torch.randperm(T)
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]))  # without RoPE no position counts
    assert [SelfAttention(12, 6, groups).k_proj.out_features for groups in (None, 6, 3, 1)] == [12, 12, 6, 2]


def test_positions_begin_at_zero_and_the_longest_sequence_fits() -> None:
    layer = SelfAttention(H * D, H, causal=True, max_seq_len=T)
    q, k, _ = layer.qkv(torch.randn(B, T, H * D))
    for mine, plain in zip(layer.rotate(q, k), (q, k), strict=True):
        assert torch.equal(mine, apply_rope(plain, layer.cos, layer.sin)) and torch.equal(mine[:, :, 0], plain[:, :, 0])
    with pytest.raises(ValueError, match=rf"{T + 1} positions > max_seq_len = {T}"):
        layer.rotate(q, k, start=1)


def test_a_layer_with_a_cache_of_its_own_is_the_first() -> None:
    x = torch.randn(B, T, H * D)
    for layer in (SelfAttention(H * D, H, causal=True, max_seq_len=T), DecoderBlock(H * D, H, 40, max_seq_len=T)):
        cache = KVCache(layers=1, batch=B, kv_heads=H, max_seq_len=T, head_dim=D)
        parts = []
        for part in x.split([2, 1, T - 3], dim=1):
            parts.append(layer(part, cache=cache))
            cache.advance(part.shape[1])
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x))


def test_attention_rotates_queries_and_keys_but_not_values(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SelfAttention(H * D, H, causal=True, max_seq_len=T)
    x = torch.randn(B, T, H * D)
    q, k, v = layer.qkv(x)
    seen = {}

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
        seen.update(q=q, k=k, v=v)
        return v

    monkeypatch.setattr("tinyomni.attention.attend", spy)
    layer(x)
    assert not torch.allclose(seen["q"][:, :, 1:], q[:, :, 1:])
    assert not torch.allclose(seen["k"][:, :, 1:], k[:, :, 1:])
    assert torch.equal(seen["v"], v)


def test_kv_cache_counts_and_refuses_more_than_fits() -> None:
    cache = KVCache(layers=2, batch=B, kv_heads=H, max_seq_len=6, head_dim=D)
    k = torch.randn(B, H, 4, D)
    keys, values = cache.update(0, k, -k)
    assert torch.equal(keys, k) and torch.equal(values, -k)
    cache.advance(4)
    keys, _ = cache.update(0, k[:, :, :2], k[:, :, :2])
    assert keys.shape == (B, H, 6, D) and torch.equal(keys[:, :, :4], k)
    assert cache.size == 4
    cache.check_room("test", B, 2)  # exactly what is left
    with pytest.raises(ValueError, match=r"4 cached tokens \+ 3 new = 7 > max_seq_len = 6"):
        cache.check_room("test", B, 3)
    with pytest.raises(ValueError, match=r"expected a batch of 2.*got 5"):
        cache.check_room("test", 5, 1)


def test_rms_norm_and_swiglu_are_torchs_and_the_formulas() -> None:
    x = torch.randn(B, T, D)
    mine, theirs = RMSNorm(D), nn.RMSNorm(D, eps=1e-6)
    mine.weight.data = theirs.weight.data = torch.rand(D)
    torch.testing.assert_close(mine(x), theirs(x))
    for size in (0.0, 1e-3):  # where eps counts
        torch.testing.assert_close(mine(x * size), theirs(x * size))
    assert mine(x.bfloat16()).dtype == torch.bfloat16
    mlp = SwiGLU(D, 12)
    llama = LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=12, num_attention_heads=2))
    pairs = {"gate_proj": mlp.gate, "up_proj": mlp.up, "down_proj": mlp.down}
    llama.load_state_dict({f"{name}.weight": layer.weight for name, layer in pairs.items()})
    torch.testing.assert_close(mlp(x), llama(x))


def test_encoder_block_is_torchs_layer_with_and_without_padding() -> None:
    block = EncoderBlock(H * D, H, 40)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = nn.TransformerEncoderLayer(H * D, H, 40, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    attn = block.attn
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]),
            "self_attn.in_proj_bias": torch.cat([attn.q_proj.bias, attn.k_proj.bias, attn.v_proj.bias]),
            "self_attn.out_proj.weight": attn.o_proj.weight,
            "self_attn.out_proj.bias": attn.o_proj.bias,
            "linear1.weight": block.mlp.fc1.weight,
            "linear1.bias": block.mlp.fc1.bias,
            "linear2.weight": block.mlp.fc2.weight,
            "linear2.bias": block.mlp.fc2.bias,
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
        }
    )
    x = torch.randn(B, T, H * D)
    torch.testing.assert_close(block(x), theirs(x), atol=1e-5, rtol=1e-5)
    padded = torch.tensor([[False] * T, [False, False, False, True, True]])
    mine = block(x, mask=~padded[:, None, None, :])
    torch.testing.assert_close(mine[~padded], theirs(x, src_key_padding_mask=padded)[~padded], atol=1e-5, rtol=1e-5)
