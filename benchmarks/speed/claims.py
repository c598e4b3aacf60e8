"""Two claims of the reference specification: mixed precision is 1.5 to 2 times as fast, cached decoding is linear

The first adds: in half the memory. The reference is the same program in float32, or without a cache.

Limits of memory: under autocast the weights, the gradients and AdamW's moments stay in float32, and of the activations
only the inputs of products are halved; norms, softmax and the loss keep float32. "Half the memory" is true of neither.
"""

from collections.abc import Callable
from functools import partial

import torch
from decoding import uncached
from growth import kept_bytes, slope
from harness import Case, Run, timer
from torch import nn

from tinyomni.generation import generate
from tinyomni.thinker import ThinkerLM
from tinyomni.training.stages.thinker import next_token_loss

SIZES = ((8, 64), (16, 256))
NEW = (32, 64, 128)
FASTER, HALF = 1 / 1.5, 0.55


def step(model: nn.Module, ids: torch.Tensor, bf16: bool) -> Run:
    """Forward, backward and AdamW's step; weights, gradients and moments are float32 in both cases."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        loss(model, ids, bf16).backward()
        optimizer.step()

    return run


def loss(model: nn.Module, ids: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Of one batch."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        return next_token_loss(model(ids), ids)


def activations(model: nn.Module, ids: torch.Tensor, bf16: bool) -> Callable[[], float]:
    """MB that are kept for the backward pass."""
    return lambda: kept_bytes(partial(loss, model, ids, bf16), model) / 2**20


def state(model: nn.Module, ids: torch.Tensor, bf16: bool) -> Callable[[], float]:
    """MB of weights, gradients and the optimizer's moments."""

    def run() -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        loss(model, ids, bf16).backward()
        optimizer.step()
        moments = [each for values in optimizer.state.values() for each in values.values()]
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        return sum(each.nbytes for each in (*model.parameters(), *gradients, *moments)) / 2**20

    return run


def decoding_slope(run_of: Callable[[int], Run], device: str) -> float:
    """How the time for all new tokens grows with their number."""
    now, costs = timer(device), []
    run_of(NEW[0])()
    for new in NEW:
        run, start = run_of(new), now()
        run()
        costs.append(now() - start)
    return slope(NEW, costs)


def cases(device: str) -> list[Case]:
    """Sizes as (batch, tokens)."""
    model, found = ThinkerLM().to(device), []
    for batch, tokens in SIZES:
        ids = torch.randint(4, 1300, (batch, tokens), device=device)
        both = [partial(make, model, ids) for make in (step, activations, state)]
        size = f"{batch}×{tokens}"
        found.append(Case(f"bf16 training step {size}", both[0](True), both[0](False), "float32", FASTER))
        found.append(Case(f"activations {size}", both[1](True), both[1](False), "float32", HALF, "MB"))
    found.append(Case("weights, gradients, AdamW's moments", both[2](True), both[2](False), "float32", HALF, "MB"))
    prompt = torch.full((1, 12), 1, device=device)

    def cached(new: int) -> Run:
        return lambda: generate(model, prompt, max_new_tokens=new, eos=None, vocab_limit=1300)

    slopes = [lambda each=each: decoding_slope(each, device) for each in (cached, partial(uncached, model, prompt))]
    found.append(Case(f"time for {NEW[0]} → {NEW[-1]} new tokens", *slopes, "without a cache", 0.8, "slope"))
    return found
