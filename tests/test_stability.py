"""The guards of training: NaN, infinity, losses out of bounds, gradients that explode."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tinyomni.stability import (
    assert_finite,
    check_gradient_explosion,
    clip_gradients,
    finite_checks,
    full_precision,
    gradient_norm,
    validate_loss,
)


@pytest.mark.parametrize("loss", [torch.nan, torch.inf, -torch.inf, 1e6 + 1, -1e6 - 1])
def test_a_bad_loss_raises(loss: float) -> None:
    with pytest.raises(RuntimeError):
        validate_loss(torch.tensor(loss, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        validate_loss(loss)


def test_a_good_loss_passes_and_bounds_are_inclusive() -> None:
    validate_loss(torch.tensor(1e6))
    validate_loss(0.0, min_loss=0.0)
    with pytest.raises(RuntimeError, match=r"outside \[0, 1\]"):
        validate_loss(1.5, 0.0, 1.0)


def test_explosions_are_seen_and_clipping_is_torchs() -> None:
    one, other = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)
    assert check_gradient_explosion(one) == (0.0, False)
    for model in (one, other):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 3.0 + number)
    norm = (15 * 9 + 5 * 16) ** 0.5
    assert check_gradient_explosion(one, norm + 0.01) == (pytest.approx(norm), False)
    assert check_gradient_explosion(one, norm - 0.01)[1]
    assert clip_gradients(one, 1.0) == pytest.approx(norm)
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    torch.testing.assert_close(one.weight.grad, other.weight.grad)
    for bad in (torch.nan, torch.inf):
        one.bias.grad[2] = bad
        assert check_gradient_explosion(one)[1]


def test_an_explosion_is_a_norm_above_a_hundred_and_a_known_norm_is_used() -> None:
    model = nn.Linear(1, 1, bias=False)
    for size, exploded in ((100.0, False), (100.01, True)):
        model.weight.grad = torch.full((1, 1), size)
        assert check_gradient_explosion(model) == (pytest.approx(size), exploded)
    model.weight.grad = torch.full((1, 1), 8.0)
    assert clip_gradients(model, 1.0, grad_norm=16.0) == 16.0
    assert model.weight.grad.item() == pytest.approx(0.5)


def test_the_norm_is_taken_in_fp32_over_what_has_a_gradient() -> None:
    model = nn.Linear(2, 2).half()
    model.weight.grad = torch.full((2, 2), 300.0, dtype=torch.half)  # its square overflows fp16
    assert gradient_norm(model).dtype == torch.float32
    assert gradient_norm(model).item() == pytest.approx(600.0)


def test_each_tensor_with_a_bad_value_is_named_and_counted_and_no_other() -> None:
    good, bad = torch.ones(3), torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    assert_finite("here", good=good, more=good)
    assert_finite("here")
    for tensors in ({"good": good, "bad": bad}, {"bad": bad, "good": good}):
        with pytest.raises(RuntimeError, match=r"instability in here: bad: NaN=1, Inf=2\. Look"):
            assert_finite("here", **tensors)
    assert_finite("here", shape=bad.to("meta"))  # a shape without values
    with pytest.raises(RuntimeError, match="bad: NaN=1"):
        assert_finite("here", bad=bad, fine=good)


def test_what_has_no_values_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        assert_finite("here", shape=torch.ones(3))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_finite("here", bad=torch.tensor([torch.nan]))


def test_the_checks_are_as_before_after_a_block_without_them() -> None:
    bad = torch.tensor([torch.nan])
    with finite_checks(False):
        with finite_checks(True), pytest.raises(RuntimeError):
            assert_finite("here", bad=bad)
        assert_finite("here", bad=bad)
    with pytest.raises(ZeroDivisionError), finite_checks(False):
        _ = 1 / 0
    with pytest.raises(RuntimeError):
        assert_finite("here", bad=bad)


def test_full_precision_is_without_autocast_and_takes_the_meta_device() -> None:
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
    with full_precision(x.to("meta")):
        pass
