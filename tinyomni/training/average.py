"""The mean of the weights at the ends of several cosines: what is validated and kept, while the optimizer goes on.

Each cosine comes to rest at another place of the same valley; the mean of these places lies nearer to its middle, where
the loss on new data is lower: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization"
(2018), arXiv:1803.05407.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "average."  # of its tensors in a checkpoint


class WeightAverage:
    """The mean of a model's trainable parameters at several moments; before the first of them there is none."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the mean of a checkpoint, if it has one."""
        self.weights = {name: tensors[PREFIX + name].to(each, copy=True) for name, each in self.trainable()
                        if PREFIX + name in tensors}  # fmt: skip

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are averaged, with their names."""
        return ((name, each) for name, each in self.model.named_parameters() if each.requires_grad)

    @torch.no_grad()
    def add(self, number: int) -> None:
        """Take in the weights as they are now, as the `number`-th, counted from 1."""
        for name, parameter in self.trainable():
            mean = self.weights.setdefault(name, parameter.clone())
            mean.lerp_(parameter, 1 / number)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the mean as its weights, if there is one, until the end of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and mean."""
        for name, parameter in self.trainable():
            if name in self.weights:
                kept = parameter.clone()
                parameter.copy_(self.weights[name])
                self.weights[name] = kept

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {PREFIX + name: tensor for name, tensor in self.weights.items()}
