"""What can be trained: a module whose forward pass gives a loss.

batch → Stage → (mean loss (), metrics)
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.training.distributed import count_samples


class Stage(nn.Module):
    """Something that can be trained. Only parameters with `requires_grad` are; the rest is frozen.

    `fit` calls `stage.train()` and `stage.eval()`. A stage with frozen modules overrides `train(mode)` to leave them in
    eval mode:

        def train(self, mode: bool = True):
            super().train(mode)
            self.vision.eval()
            return self
    """

    name = "stage"
    weights_file: tuple[tuple[str, str], ...] = ()
    """Of what this stage learns, what a weights file of `Omni` holds: name prefix in the file → name prefix here."""

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The *mean* loss over the batch's targets, and metrics (numbers) to log."""
        raise NotImplementedError

    def weight(self, batch: Any) -> float:
        """The number of targets that the mean is over; asked while the batch is still on the CPU. Default: its samples.

        Without a target it is 0, and the loss has to be 0, not the NaN of an empty mean.
        """
        return count_samples(batch)

    def tokens(self, batch: Any) -> int:
        """What is counted for tokens/s."""
        return int(self.weight(batch))

    def validate(self) -> dict[str, float]:
        """Metrics on held-out data; called in eval mode without gradients. Of `loss`, lower is better."""
        return {}
