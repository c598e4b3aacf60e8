"""A first specification from a run, or from two of different sizes."""

import tomllib
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.tracing import Spec, SpecMismatch, Trace, step, tokens, trace
from tinyomni.tracing import draft as draft_module


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def digits(*shape: int) -> Trace:
    with trace("digits") as seen:
        Digits()(torch.zeros(*shape))
    return seen


def test_two_runs_of_a_model_without_annotations_suggest_formulas(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    one, other = digits(2, 1, 28, 28), digits(3, 1, 32, 40)
    text = one.draft_spec(path, other=other)
    assert text == path.read_text(encoding="utf-8") and text.startswith("# COPIED from ") and "TO BE REVIEWED" in text
    data = tomllib.loads(text)
    assert data["given"] == {"x_0": 2, "x_2": 28, "x_3": 28} and data["complete"]
    by_call = {each["call"]: each for each in data["step"]}
    assert by_call["Sequential.forward"]["out"] == "x_0, 8, x_2 // 2, x_3 // 2"
    assert by_call["Linear.forward"] == {
        "call": "Linear.forward", "module": "head", "in": {"input": "x_0, 8"}, "out": "x_0, 10",
    }  # fmt: skip
    assert one.check(path).ok and other.check(path, given={"x_0": 3, "x_2": 32, "x_3": 40}).ok
    with pytest.raises(SpecMismatch, match=r"x: expected \(2, 1, 28, 28\)"):
        other.check(path)
    with pytest.raises(SpecMismatch, match=r"Linear.forward \(head\): expected 1 call, got 0"):
        digits_without_head = Digits()
        digits_without_head.head = nn.Identity()  # type: ignore[assignment]
        with trace() as seen:
            digits_without_head(torch.zeros(2, 1, 28, 28))
        seen.check(path)


@step("Halve")
def halve(x: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames"]:
    return x[:, ::2]


@step("Grow")
def grow(x: Float[Tensor, "batch frames"]) -> Float[Tensor, "batch frames+1"]:
    return torch.cat([x, x[:, :1]], dim=1)


def pick(x: Float[Tensor, "batch n"]) -> Int[Tensor, "batch"]:
    return x.argmax(-1)


def loop(samples: int, turns: int, title: str = "loop") -> Trace:
    with trace(title) as seen:
        tokens("audio", samples // 2, of=512)
        x = halve(torch.zeros(2, samples))
        for _ in range(turns):
            x = grow(x)
    return seen


def test_names_come_from_annotations_and_repeated_calls_are_one_step() -> None:
    one, other = loop(20, 4), loop(36, 7)
    data = tomllib.loads(one.draft_spec(other=other))
    assert data["given"] == {"samples": 20, "calls_of_grow": 4}
    assert data["fixed"] == {"batch": 2}
    assert data["ledger"] == {"audio": "samples // 2", "of": 512}
    first, second = data["step"]
    assert first == {"call": "halve", "in": {"x": "batch, samples"}, "out": "batch, samples // 2"}
    assert second["times"] == "calls_of_grow" and second["in"] == {"x": "batch, samples // 2 + i"}
    alone = tomllib.loads(one.draft_spec())
    assert alone["given"] == {"batch": 2, "samples": 20} and alone["step"][1]["times"] == 4
    assert "From one run no formula can be told" in one.draft_spec()


def generated(turns: int) -> Trace:
    with trace("generate") as seen:
        for _ in range(turns):
            pick(torch.zeros(3, 5))
            halve(torch.zeros(3, 8))
    return seen


def test_calls_that_take_turns_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    text = generated(3).draft_spec(other=generated(5))
    assert "# Left out, because it takes turns with other calls: pick" in text  # @step has to be named: it stays
    assert "takes turns" not in generated(3).draft_spec()
    monkeypatch.setattr(draft_module, "MOST_STEPS", 5)
    assert "takes turns" in generated(3).draft_spec()


def test_what_cannot_be_drafted_is_an_error() -> None:
    with pytest.raises(ValueError, match="step 2 is grow in the first and nothing in the second"):
        loop(20, 4).draft_spec(other=loop(20, 0))
    with trace("empty") as empty:
        pass
    with pytest.raises(ValueError, match=r"expected a run without problems, got 'empty' \(no call was recorded"):
        empty.draft_spec()
    with trace("wrong", strict=False) as wrong:
        pick(torch.zeros(3))
    with pytest.raises(ValueError, match=r"got 'wrong' \(pick: x: expected"):
        wrong.draft_spec()


def test_the_draft_of_a_generation_passes_on_both_runs(tmp_path: Path) -> None:
    from tinyomni import ThinkerLM, generate

    torch.manual_seed(0)
    model = ThinkerLM().eval()

    def run(length: int, new: int) -> Trace:
        with trace("generate") as seen:
            generate(model, torch.ones(1, length, dtype=torch.long), max_new_tokens=new)
        return seen

    text = run(4, 4).draft_spec(tmp_path / "g.toml", other=run(9, 6))
    spec = Spec.load(tmp_path / "g.toml")
    decode = spec.steps[-1]
    assert decode["call"] == "ThinkerLM.forward" and spec.given[decode["times"]] == 3 and "takes turns" in text
    assert decode["in"] == {"ids": "batch, 1"} and run(4, 4).check(spec).ok


def frames(samples: int, offset: int, divisor: int) -> Trace:
    def cut(x: Tensor) -> Tensor:
        return x[:, : (x.shape[1] + offset) // divisor]

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cut(x)

    with trace("cut") as seen:
        Cut()(torch.zeros(1, samples))
    return seen


def test_two_runs_do_not_decide_a_rounding_and_the_draft_says_so() -> None:
    """(samples + 480) // 640: at 16000 and 32000 that is also samples // 640."""
    one, two = frames(16_000, 480, 640), frames(32_000, 480, 640)
    text = one.draft_spec(other=two)
    assert 'out = "1, x_1 // 640"' in text
    assert "#   x_1 // 640: so would (x_1 + b) // 640 for every b in 0…639" in text


@pytest.mark.parametrize(("offset", "divisor"), [(480, 640), (0, 640), (37, 50), (-12, 7), (99, 160)])
def test_more_runs_decide_more(offset: int, divisor: int) -> None:
    lengths = [16_000, *(divisor * k + edge - offset for k in (20, 33, 41) for edge in (-1, 0))]
    runs = [frames(samples, offset, divisor) for samples in lengths]
    text = runs[0].draft_spec(other=runs[1:])
    formula = f"x_1 {'+' if offset > 0 else '-'} {abs(offset)}"
    assert f'"1, {f"({formula})" if offset else "x_1"} // {divisor}"' in text and "so would" not in text, text
    for run, samples in zip(runs, lengths, strict=True):
        assert run.report(Spec(tomllib.loads(text)), given={"x_1": samples}).ok


def halved(*shape: int) -> Trace:
    def both(x: Float[Tensor, "h w"]) -> Float[Tensor, "a b"]:
        return x[::2, ::2]

    with trace("halved") as seen:
        both(torch.zeros(*shape))
    return seen


def test_axes_that_are_equal_in_every_run_are_said_at_the_top() -> None:
    text = halved(32, 32).draft_spec(other=[halved(48, 48), halved(64, 64)])
    assert "#   h // 2: so would w // 2 and (h + b) // 2 for every b in 0…1" in text
    text = halved(32, 32).draft_spec(other=[halved(48, 40), halved(64, 63)])
    assert "#   h // 2: so would (h + b) // 2" in text and "so would w" not in text
    # without annotations, axes of one size have one name
    text = digits(2, 1, 28, 28).draft_spec(other=digits(2, 1, 32, 32))
    assert "#   x_2: also axis 3 of x, as large in every run" in text


def test_sizes_without_a_formula_are_said_at_the_top() -> None:
    def odd(x: Tensor) -> Tensor:
        return torch.zeros((3 * x.shape[0] + 1) // 2, 5)

    runs = []
    for size in (32, 48, 51):
        with trace("odd", names={"odd": {"x": "n"}}) as seen:
            odd(torch.zeros(size))
        runs.append(seen)
    text = runs[0].draft_spec(other=runs[1:])
    assert (
        "written is _" in text and "#   48, then 72, then 77: axis 0 of out of odd" in text and 'out = "_, 5"' in text
    )
