"""One token behind a cache: the fast step computes what the blocks do, and steps aside for whoever looks or changes."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyomni import fast_step, layers
from tinyomni.config import TINY, ThinkerConfig
from tinyomni.fast_step import FastStep
from tinyomni.generation import generate
from tinyomni.grade import swap
from tinyomni.talker import TalkerTiny, generate_batch
from tinyomni.thinker import ThinkerLM
from tinyomni.tracing import trace

SMALL = ThinkerConfig(layers=3, d_model=48, heads=4, kv_heads=4, intermediate_size=80, vocab=61, ctx_len=40)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The positions that the fast step has computed; the shape checks, which turn it off, do not count here."""
    taken: list[int] = []
    original = FastStep.__call__

    def counted(step: FastStep, x: Tensor, cache: Any, mask: Any = None) -> Tensor:
        taken.append(cache.size)
        return original(step, x, cache, mask)

    monkeypatch.setattr(FastStep, "__call__", counted)
    now = [(namespace, name, namespace[name]) for namespace, name, _ in fast_step.FUNCTIONS]
    monkeypatch.setattr(fast_step, "FUNCTIONS", now)
    yield taken


def spread(model: nn.Module) -> Any:
    """Weights so large that a mistake shows, and norms that scale."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    for module in model.modules():
        if isinstance(module, layers.RMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def thinker(**changes: int) -> ThinkerLM:
    return spread(ThinkerLM(dataclasses.replace(SMALL, **changes)))


def talker() -> TalkerTiny:
    return spread(TalkerTiny(dataclasses.replace(TINY.talker, layers=2, vocab=50)))


def prompt(batch: int = 2, tokens: int = 7) -> Tensor:
    ids = torch.randint(4, SMALL.vocab, (batch, tokens))
    ids[:, 0] = 1
    return ids


def one_by_one(model: ThinkerLM, ids: Tensor, first: int = 3) -> Tensor:
    """The logits, from a prompt of a few tokens and then single ones."""
    cache = model.new_cache(len(ids))
    parts = [ids[:, :first], *ids[:, first:].split(1, dim=1)]
    return torch.cat([model(part, cache=cache) for part in parts], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_thinkers_logits_are_those_without_a_cache(steps: list[int], batch: int, kv_heads: int) -> None:
    model, ids = thinker(kv_heads=kv_heads), prompt(batch, 40)
    torch.testing.assert_close(one_by_one(model, ids), model(ids), atol=1e-5, rtol=1e-5)
    assert steps == list(range(3, 40))


@torch.no_grad()
def test_they_are_so_at_the_real_size_up_to_the_end_of_the_context(steps: list[int]) -> None:
    model = spread(ThinkerLM())
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.mul_(0.3)
    ids = torch.randint(4, TINY.thinker.vocab, (1, TINY.thinker.ctx_len))
    found, expected = one_by_one(model, ids, first=490), model(ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert steps == list(range(490, TINY.thinker.ctx_len))


@torch.no_grad()
@pytest.mark.parametrize("text", [None, [[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]], [[5, 6, 7], [9, 8, 7]]])
def test_the_talkers_logits_are_those_without_a_cache_padded_or_not(
    steps: list[int], text: list[list[int]] | None
) -> None:
    model, codes = talker(), torch.randint(0, 128, (2, 9, 2))
    ids = torch.tensor(text) if text else None
    cache, parts = model.new_cache(2), []
    for number, part in enumerate(codes.split(1, dim=1)):
        parts.append(model(part, ids if number == 0 else None, cache, with_end=True))
    for whole, pieces in zip(model(codes, ids, with_end=True), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-4)
    assert len(steps) == 8


def test_ids_and_codes_are_those_of_the_readable_blocks(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    think, ids, talk, text = thinker(), prompt(), talker(), torch.tensor([[5, 6, 7, 0], [9, 8, 7, 6]])
    fast = generate(think, ids, max_new_tokens=30, eos=None), generate_batch(talk, text, 40, stop=False)[0]
    assert len(steps) == 29 + 39
    monkeypatch.setattr(fast_step, "untouched", lambda modules: False)
    slow = generate(think, ids, max_new_tokens=30, eos=None), generate_batch(talk, text, 40, stop=False)[0]
    assert len(steps) == 29 + 39
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


class Doubled(nn.Linear):
    """A layer of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_a_hook(model: ThinkerLM) -> None:
    block: Any = model.blocks[1]
    block.mlp.up.register_forward_hook(lambda module, inputs, output: 2 * output)


def with_another_kind_of_layer(model: ThinkerLM) -> None:
    changed = Doubled(48, 80, bias=False)
    block: Any = model.blocks[1]
    changed.load_state_dict(block.mlp.up.state_dict())
    block.mlp.up = changed


def with_a_forward_of_its_own(model: ThinkerLM) -> None:
    block: Any = model.blocks[1]
    original = copy.copy(block.mlp).forward
    block.mlp.forward = lambda x: 2 * original(x)


def with_other_angles_in_one_block(model: ThinkerLM) -> None:
    block: Any = model.blocks[1]
    block.attn.cos = block.attn.cos.roll(1, dims=0)


def with_another_epsilon(model: ThinkerLM) -> None:
    block: Any = model.blocks[1]
    block.norm2.eps = 1.0


def with_another_epsilon_in_all(model: ThinkerLM) -> None:
    blocks: Any = model.blocks
    for block in blocks:
        block.norm2.eps = 1.0


def with_a_hook_behind_the_blocks(model: ThinkerLM) -> None:
    model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)


def with_a_bias(model: ThinkerLM) -> None:
    block: Any = model.blocks[1]
    block.mlp.down.bias = nn.Parameter(torch.ones(48))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        with_a_hook,
        with_another_kind_of_layer,
        with_a_forward_of_its_own,
        with_other_angles_in_one_block,
        with_another_epsilon,
        with_another_epsilon_in_all,
        with_a_hook_behind_the_blocks,
        with_a_bias,
    ],
)
def test_a_changed_model_runs_its_own_blocks(steps: list[int], change: Callable[[ThinkerLM], None]) -> None:
    model, ids = thinker(), prompt(tokens=12)
    before = model(ids)
    change(model)
    torch.testing.assert_close(one_by_one(model, ids), model(ids), atol=1e-5, rtol=1e-5)
    assert not steps and not torch.allclose(model(ids), before, atol=1e-3)


@torch.no_grad()
def test_a_hook_that_comes_later_is_called_from_then_on(steps: list[int]) -> None:
    model, ids, seen = thinker(), prompt(), []
    cache = model.new_cache(2)
    model(ids, cache=cache), model(ids[:, :1], cache=cache)
    handle = model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    model(ids[:, :1], cache=cache)
    handle.remove()
    model(ids[:, :1], cache=cache)
    assert seen == [1] and steps == [7, 9]


@torch.no_grad()
def test_a_learners_function_is_used_in_every_step(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    def split_heads(x: Tensor, heads: int) -> Tensor:
        called.append(x.shape[1])
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, heads, -1).transpose(1, 2)

    with swap(split_heads=split_heads):
        called.clear()
        generate(thinker(), prompt(), max_new_tokens=4, eos=None)
    assert called == [7] * 9 + [1] * 27 and not steps


@torch.no_grad()
def test_a_trace_shows_every_block_of_every_step(steps: list[int]) -> None:
    with trace() as seen:
        generate(thinker(), prompt(), max_new_tokens=3, eos=None)
    assert len([step for step in seen.steps if step.call == "DecoderBlock.forward"]) >= 3 and not steps


def test_gradients_come_from_the_readable_blocks(steps: list[int]) -> None:
    model, ids = thinker(), prompt()
    cache = model.new_cache(2)
    with torch.no_grad():
        model(ids, cache=cache)
    assert model(ids[:, :1], cache=cache).requires_grad and not steps


@torch.no_grad()
def test_half_precision_runs_the_readable_blocks(steps: list[int]) -> None:
    ids = prompt()
    generate(thinker().bfloat16(), ids, max_new_tokens=4, eos=None)
    with torch.autocast("cpu", torch.bfloat16):
        generate(thinker(), ids, max_new_tokens=4, eos=None)
    assert not steps
