"""Operations between calls, and gradients: off by default."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.tracing import Trace, trace
from tinyomni.tracing.tensors import Makers, TensorNotes


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 6)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        heads = self.project(x).view(*x.shape[:2], 2, 3).transpose(1, 2)
        return torch.cat([heads, heads.softmax(dim=-1)], dim=-1)[..., :3].transpose(1, 2).flatten(2)


def test_operations_are_recorded_between_the_calls() -> None:
    x = torch.randn(1, 4, 6)
    with trace(ops=True) as t:
        out = Heads()(x)  # making the layers is not shown
    assert [record.call for record in t.steps if record.op] == [
        "linear", "view", "transpose", "softmax", "cat", "getitem", "transpose", "flatten"]  # fmt: skip
    assert "view(1, 4, 2, 3)" in str(t) and "softmax(dim=-1)" in str(t) and "1 call, 8 operations" in str(t)
    view = next(record for record in t.steps if record.call == "view")
    assert str(view.outputs[0]) == "(batch 1, tokens 4, 2, 3)" and view.parent == 0
    assert view.file == "test_ops.py" and view.line == Heads.forward.__code__.co_firstlineno + 1
    assert out.shape == (1, 4, 6) and all(record.ok for record in t.steps)


def test_both_results_of_topk_are_followed() -> None:
    with trace(ops=True) as t:
        values, places = torch.zeros(3, 5).topk(2, dim=1)
        values + places
    assert [(record.call, record.sources) for record in t.steps] == [("zeros", ()), ("topk", (0,)), ("add", (1,))]


def test_edges_are_complete() -> None:
    model, x = Heads(), torch.randn(1, 4, 6)
    with trace(ops=True, modules=True) as t:
        model(x)
    makers = {record.id for record in t.steps}
    for record in t.steps:
        if record.op and record.call != "linear":
            assert record.sources and set(record.sources) <= makers, record.call
    cat = next(record for record in t.steps if record.call == "cat")
    assert [t.steps[source].call for source in cat.sources] == ["transpose", "softmax"]
    view = next(record for record in t.steps if record.call == "view")
    assert [t.steps[source].call for source in view.sources] == ["Linear.forward"]
    assert not any(record.op and t.steps[record.parent or 0].call == "Linear.forward" for record in t.steps)


def test_the_results_are_the_same_and_nothing_happens_by_default() -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 4, 6)
    plain = model(x)
    with trace(ops=True, backward=True) as t:
        traced = model(x)
        traced.sum().backward()
    assert torch.equal(plain, traced)
    with trace() as off:
        model(x)
    assert not any(record.op or record.gradients for record in off.steps) and t.steps


def blocks() -> Trace:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with trace(backward=True) as t:
        model(torch.randn(7, 3)).square().sum().backward()
    return t


def test_an_operation_that_changes_its_tensor_is_shown_what_it_was_given() -> None:
    with trace(ops=True) as t:
        x = torch.zeros(2, 3)
        x.resize_(6).unsqueeze_(0)
        x.squeeze_()
    sides = [(record.call, *(value.shape for value in record.inputs + record.outputs)) for record in t.steps[1:]]
    assert sides == [("resize_", (2, 3), (6,)), ("unsqueeze_", (6,), (1, 6)), ("squeeze_", (1, 6), (6,))]


def test_gradients_have_the_shapes_and_norms_of_autograd(tmp_path: Path) -> None:
    t = blocks()
    torch.manual_seed(0)
    again = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(7, 3)
    first = again[0](x)
    second = again[1](first)
    out = again[2](second)
    expected = torch.autograd.grad(out.square().sum(), [out, first, second, out])
    found = [record.gradients[0] for record in t.steps]
    for gradient, wanted in zip(found, expected, strict=True):
        assert gradient.value.shape == tuple(wanted.shape)
        assert gradient.norm == pytest.approx(wanted.norm().item(), rel=1e-5)
    assert f"grad (7, 2) |{found[0].norm:.2g}|" in str(t)
    t.save(tmp_path / "t.json")
    assert Trace.load(tmp_path / "t.json").steps == t.steps


def test_gradients_of_a_call_without_any() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.detach()

    with trace(backward=True) as t:
        (Cut()(torch.ones(2, requires_grad=True)) + nn.Linear(2, 2)(torch.ones(2))).sum().backward()
    assert [len(record.gradients) for record in t.steps] == [0, 1]


def test_notes_about_many_tensors_are_tidied_up_seldom_and_keep_none_alive() -> None:
    notes, living, tidied = TensorNotes[int](), [torch.empty(0) for _ in range(45_000)], 0
    for number, tensor in enumerate(living):
        before = notes._kept
        notes[tensor] = number
        tidied += notes._kept is not before
    assert tidied == 3 and notes.get(living[7]) == 7  # at 10,000, 20,000, 40,000
    living.clear()
    for number in range(90_000):
        notes[torch.empty(0)] = number
    assert len(notes._kept) <= 80_000 and notes.get(torch.empty(0)) is None


def test_views_come_from_the_call_that_made_their_base() -> None:
    makers, base, other = Makers(), torch.zeros(4, 3), torch.zeros(2)
    makers.note([base], 1)
    view = base[1:]
    assert makers.of([base, view[0], other]) == (1,)
    makers.note([view], 2)  # a call that gave a view made the view, not its base
    assert makers.of([view]) == (2,) and makers.of([base]) == (1,) and makers.of([base[:1]]) == (1,)
    makers.note([other.t()], 3)  # a view of what no call made: other views of it come from there
    assert makers.of([other[:1], view]) == (3, 2)


def test_what_made_a_tensor_goes_with_it() -> None:
    makers = Makers()
    gone = torch.zeros(1)
    makers.note([gone], 1)
    other = torch.zeros(1)
    makers._kept[id(other)] = makers._kept.pop(id(gone))  # as if it had got the place of the first in memory
    assert makers.of([other]) == ()
    makers.note(living := [torch.zeros(0) for _ in range(10_050)], 2)
    assert makers._most > 20_000 and makers.of(living[-1:]) == (2,)  # they were looked through once
