"""The optimizers, AdamW and Muon, and the learning rate.

gradients → optimizer(learning_rate(step)) → weights
"""

import math
from bisect import bisect_right
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.errors import InputError
from tinyomni.layers import DecoderBlock, EncoderBlock
from tinyomni.training.distributed import sharded_map
from tinyomni.training.precision import Policy
from tinyomni.training.settings import Settings

MOMENTUM = 0.95  # of Muon's running mean


def build_optimizer(model: nn.Module, settings: Settings, policy: Policy) -> torch.optim.AdamW:
    """The optimizer that the settings name. Muon orthogonalizes in bf16 where the policy is bf16."""
    if settings.optimizer == "muon":
        return Muon(model, settings, torch.bfloat16 if policy.precision == "bf16" else torch.float32)
    return adamw(model, settings)


def adamw(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: norms and biases have few numbers, each with a meaning of its own.

    Loshchilov & Hutter (2019), arXiv:1711.05101.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("Training: no parameter has requires_grad. Is everything frozen?")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.95))


class Muon(torch.optim.AdamW):
    """Muon for the matrices inside the blocks, AdamW for all else.

    A gradient's matrix is mostly a few strong directions; AdamW follows them, and what is rare is learned late. Muon
    makes all directions of its running mean equally strong, and so learns what is rare as fast as what is common.
    Jordan et al., Muon (2024), kellerjordan.github.io/posts/muon; Liu et al. (2025), arXiv:2502.16982, for the size of
    a step: as long as AdamW's would be, so that one learning rate serves both.

    torch has one too (`torch.optim.Muon`), which always computes in bf16: very slow on a CPU that cannot multiply it.
    """

    def __init__(self, model: nn.Module, settings: Settings, dtype: torch.dtype = torch.float32) -> None:
        blocks = [module for module in model.modules() if isinstance(module, DecoderBlock | EncoderBlock)]
        inside = {p for block in blocks for p in block.parameters() if p.ndim == 2 and p.requires_grad}
        if not inside:
            raise InputError(
                "Training: Muon needs trainable matrices inside transformer blocks, and this stage has none. "
                "Use optimizer=adamw."
            )
        groups = adamw(model, settings).param_groups
        others = [{**group, "params": [p for p in group["params"] if p not in inside]} for group in groups]
        matrices = [p for group in groups for p in group["params"] if p in inside]
        super().__init__([group for group in others if group["params"]], lr=settings.lr)
        self.add_param_group({"params": matrices, "weight_decay": settings.weight_decay, "muon": True})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update: AdamW's groups first, then Muon's."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group.get("muon")]
            super().step()
        finally:
            self.param_groups = groups
        for group in (group for group in groups if group.get("muon")):
            self.step_matrices(group)

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Matrices of one shape are orthogonalized as a batch; with several processes, each does a share of them."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                    state["step"] = torch.tensor(0.0)  # AdamW looks for it when its state is loaded
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = matrix.grad.lerp(momentum, MOMENTUM)  # Nesterov
                by_shape.setdefault(matrix.shape, []).append((matrix, update))
        for shape, found in by_shape.items():
            updates = sharded_map(orthogonalize, torch.stack([update for _, update in found]).to(self.dtype))
            for (matrix, _), update in zip(found, updates.float(), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonalize(
    matrices: Float[Tensor, "batch rows columns"], iterations: int = 5
) -> Float[Tensor, "batch rows columns"]:
    """The same directions, all about equally strong: singular values become 0.7 to 1.2, where they were not near zero.

    An odd polynomial of a matrix does to its singular values what it does to a number, with no decomposition. This one,
    3.4445 s - 4.775 s³ + 2.0315 s⁵, brings all of 0…1 toward 1 in five iterations (Newton-Schulz; coefficients of
    Jordan, 2024).
    """
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up for `warmup` steps, then a cosine down to `lr * min_lr_ratio`. `step` counts from 0.

    After `cycle` steps it starts again, `restarts` times, from `restart_lr` and without warm-up: so a finished run can
    be lengthened (Loshchilov & Hutter, SGDR, 2017, arXiv:1608.03983).
    """
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    ends = cosine_ends(settings)
    number = bisect_right(ends, min(step, settings.steps - 1))
    start, last = ends[number - 1] if number else settings.warmup, ends[number] - 1
    progress = min(1.0, (step - start) / max(1, last - start))
    top = settings.restart_lr or settings.lr if number else settings.lr
    low = settings.min_lr_ratio
    return top * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def cosine_ends(settings: Settings) -> list[int]:
    """The step after the last one of each cosine: the first has `cycle` steps, `restarts` others share the rest."""
    first = min(settings.cycle or settings.steps, settings.steps)
    rest = settings.steps - first
    shares = range(1, settings.restarts + 1) if rest else ()
    return [first, *(first + rest * share // settings.restarts for share in shares)]


def averaged_at(settings: Settings) -> list[int]:
    """The steps after which the weights are averaged: the ends of the cosines after the first, if these are several."""
    ends = cosine_ends(settings)[1:]
    return ends if len(ends) > 1 else []
