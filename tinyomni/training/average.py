"""An exponential moving average of the weights (EMA): what is validated and kept, while the optimizer moves the others.

The steps of an optimizer wander around what they look for, the more so the higher the learning rate; their mean lies
nearer to it. Polyak & Juditsky (1992); Izmailov et al., "Averaging Weights Leads to Wider Optima" (2018).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "average."  # of its tensors in a checkpoint


class WeightAverage:
    """The average of a model's trainable parameters. After n steps `decay` is at most (1 + n) / (10 + n), so that the
    weights of the beginning are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {}

    def start(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with the average of a checkpoint, or begin with the weights as they are."""
        self.weights = {name: tensors.get(PREFIX + name, each.detach()).to(each, copy=True)
                        for name, each in self.model.named_parameters() if each.requires_grad}  # fmt: skip

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step (1, 2, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights, until the end of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average."""
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                kept = parameter.clone()
                parameter.copy_(self.weights[name])
                self.weights[name].copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {PREFIX + name: tensor for name, tensor in self.weights.items()}
