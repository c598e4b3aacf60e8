"""Mistakes that do not fail: each is pointed at, and right programs are left alone."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.tracing import distinct_sizes, trace


@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_column_against_a_row_in_a_loss(n: int) -> None:
    def loss(pred: Tensor, target: Tensor) -> Tensor:
        return (pred - target).square().mean()

    with trace(ops=True) as t:
        loss(torch.zeros(n, 1), torch.zeros(n))
    assert "note: look at sub at test_suspicions.py:" in str(t) and f"got ({n}, 1) and ({n},)" in str(t)
    with trace() as t:
        nn.MSELoss()(torch.zeros(n, 1), torch.zeros(n))
    assert "look at MSELoss.forward" in str(t)
    with trace(ops=True) as t:
        loss(torch.zeros(n), torch.zeros(n))
        loss(torch.zeros(n, 1), torch.zeros(n, 1))
        torch.zeros(n, 1) + torch.zeros(n + 1)  # an outer sum, on purpose
    assert "look at" not in str(t)


def test_a_mask_of_another_length_than_the_keys() -> None:
    class Model(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids * attention_mask[:, : input_ids.shape[1]]

    with trace() as t:
        Model()(torch.ones(2, 6, dtype=torch.long), torch.ones(2, 9, dtype=torch.long))
    assert "attention_mask (2, 9) has 9 positions, but there are 6 keys: 6 in input_ids" in str(t)
    with trace() as t:
        Model()(torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long))
    assert "look at" not in str(t)


def swapped(
    q: Float[Tensor, "heads tokens head_dim"], k: Float[Tensor, "heads keys head_dim"]
) -> Float[Tensor, "heads tokens keys"]:
    return (q @ k.transpose(-2, -1)).transpose(-2, -1)


def right(
    q: Float[Tensor, "heads tokens head_dim"], k: Float[Tensor, "heads keys head_dim"]
) -> Float[Tensor, "heads tokens keys"]:
    return q @ k.transpose(-2, -1)


def test_axes_of_equal_size_and_a_run_that_tells_them_apart() -> None:
    q = torch.zeros(3, 5, 5)
    with trace() as t:
        swapped(q, q)
    assert not t.mismatches  # nothing can be seen
    (first, *_) = t.suspicions()
    assert "swapped: tokens and head_dim of `q` were equal (5) in every call" in first
    seen = distinct_sizes(swapped)
    assert seen.mismatches[0].argument == "return" and seen.mismatches[0].axis == "tokens"
    assert not distinct_sizes(right).mismatches and not distinct_sizes(right, head_dim=64).mismatches


def test_a_module_runs_with_distinct_sizes_beside_its_weights() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
            return self.inner(x).transpose(0, 1)

    layer = Layer()
    assert distinct_sizes(layer, width=8).mismatches[0].axis == "batch"
    assert layer.inner.weight.device.type == "cpu"
