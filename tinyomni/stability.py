"""Numerical guards: NaN, infinity, a loss out of bounds, exploding gradients."""

import contextlib
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses import FakeTensor

_finite_checks = True


@contextlib.contextmanager
def finite_checks(on: bool) -> Iterator[None]:
    """Switch the models' NaN and infinity checks on or off for a block: `with finite_checks(False): ...`."""
    global _finite_checks
    before, _finite_checks = _finite_checks, on
    try:
        yield
    finally:
        _finite_checks = before


def assert_finite(where: str, **tensors: Float[Tensor, "..."]) -> None:
    """Raise a `RuntimeError` that names the module and counts NaN and infinite values, if there are any.

    All tensors of one call are reduced first, so that a GPU is synchronized once, not once for each tensor.
    """
    if not _finite_checks or torch.compiler.is_compiling():
        return
    # a tensor on the meta device, or a fake one, has a shape and no values
    values = [tensor for tensor in tensors.values() if not tensor.is_meta and not isinstance(tensor, FakeTensor)]
    if not values or bool(torch.stack([torch.isfinite(tensor).all() for tensor in values]).all()):
        return
    found = ", ".join(
        f"{name}: NaN={int(torch.isnan(tensor).sum())}, Inf={int(torch.isinf(tensor).sum())}"
        for name, tensor in tensors.items()
        if not bool(torch.isfinite(tensor).all())
    )
    raise RuntimeError(
        f"Numerical instability in {where}: {found}. Look at the step before it: a learning rate that is too high, "
        "a division by zero, a logarithm of zero, or damaged weights."
    )


def full_precision(tensor: Float[Tensor, "..."]) -> contextlib.AbstractContextManager[None]:
    """No autocast in this block, on the tensor's device; the meta device has none."""
    if tensor.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def validate_loss(loss: Float[Tensor, ""] | float, min_loss: float = -1e6, max_loss: float = 1e6) -> None:
    """Raise a `RuntimeError` if the loss is NaN, infinite, or outside [min_loss, max_loss]."""
    value = float(loss.detach()) if isinstance(loss, Tensor) else loss
    if math.isnan(value) or math.isinf(value):
        raise RuntimeError(f"Loss is {value}: skip this batch and look at what is in it.")
    if not min_loss <= value <= max_loss:
        raise RuntimeError(
            f"Loss {value:g} is outside [{min_loss:g}, {max_loss:g}]: skip this batch and look at what is in it."
        )


def gradient_norm(model: nn.Module) -> Float[Tensor, ""]:
    """The L2 norm of all gradients together; 0 where there are none."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def check_gradient_explosion(model: nn.Module, max_grad_norm: float = 100.0) -> tuple[float, bool]:
    """`(grad_norm, is_exploded)`. NaN and infinity count as exploded. With a GradScaler, call `unscale_` before."""
    norm = float(gradient_norm(model))
    return norm, not math.isfinite(norm) or norm > max_grad_norm


def clip_gradients(model: nn.Module, max_grad_norm: float, grad_norm: float | None = None) -> float:
    """Scale the gradients, as one vector, to a norm of at most `max_grad_norm`; returns the norm before.

    Where the norm is known already, `grad_norm` saves computing it again.
    """
    norm = gradient_norm(model) if grad_norm is None else torch.tensor(grad_norm)
    nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, norm)
    return float(norm)
