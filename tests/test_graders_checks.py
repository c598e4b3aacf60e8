"""What a check watches beside the values: gradients, forbidden functions, time; and how it shows its verdict."""

import contextlib
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinyomni.grade import check
from tinyomni.grade.checker import Checker
from tinyomni.grade.comparison import format_value
from tinyomni.grade.exercise import GRADIENTS, exercise
from tinyomni.grade.grading import FAILED, PASSED, find_fault, grade_answer
from tinyomni.grade.registry import exercises, find_exercise


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the progress of whoever runs the tests out of it."""
    monkeypatch.setenv("TINYOMNI_HOME", str(tmp_path / "home"))


def test_a_detached_result_is_told_so() -> None:
    verdict = check.embed(lambda ids, table: table.detach()[ids])
    assert verdict.status == FAILED and verdict.summary.startswith("right values, wrong gradient")
    assert "no gradient reaches table: is a value detached" in repr(verdict)


def test_a_gradient_that_is_missing_in_part_is_compared() -> None:
    verdict = check.block(lambda x, norm1, attention, norm2, mlp: (
        (y := x.detach() + attention(norm1(x))) + mlp(norm2(y))
    ))  # fmt: skip
    assert "wrong gradient" in verdict.summary and "gradient of x" in repr(verdict)


def test_gradients_are_compared_where_training_needs_them() -> None:
    watched = [one for one in exercises().values() if one.gradients]
    assert len(watched) >= 24
    assert all([case.name for case in one.all_cases].count(GRADIENTS) == 1 for one in watched)


@pytest.mark.parametrize("way", ["function", "module", "renamed"])
def test_a_forbidden_function_is_found_by_what_runs(way: str) -> None:
    other = torch.nn.functional.linear

    def answer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if way == "module":
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            return layer(x)
        return nn.functional.linear(x, weight, bias) if way == "function" else other(x, weight, bias)

    verdict = check.project(answer)
    assert verdict.status == FAILED and "torch's own `linear` ran" in repr(verdict)
    assert check.project(lambda x, weight, bias: "F.linear" and x @ weight.T + bias)  # a string is not a call


def test_numbers_of_numpy_and_lists_for_tuples_are_right() -> None:
    assert check.duration_cap(
        lambda n, frames_per_token=30, minimum=50, maximum=1000: np.clip(n * frames_per_token, minimum, maximum)
    )
    assert check.teacher_forcing(lambda codes: [nn.functional.pad(codes, (0, 0, 1, 0))[:, :-1], codes])

    @exercise("Half", minutes=1, level=1)
    def half(x: float) -> tuple[float, list[int]]:
        """And a list."""
        return x / 2, [1]

    half.cases(lambda rng: [("three", {"x": 3.0})])
    assert grade_answer(half, lambda x: [np.float32(1.5), [np.int64(1)]]).status == PASSED
    assert grade_answer(half, lambda x: [np.float32(1.5), [np.bool_(True)]]).status == FAILED


def endless(step: Any) -> Any:
    def answer(text: Tensor) -> int:
        while True:
            step()

    return answer


def stubborn() -> None:
    with contextlib.suppress(Exception):
        time.sleep(0.01)


@pytest.mark.parametrize("step", [lambda: None, stubborn], ids=["busy", "stubborn"])
def test_an_endless_loop_ends_with_a_sentence(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checker, "seconds", 0.2)
    verdict = check.min_ctc_length(endless(step))
    assert verdict.status == FAILED
    assert verdict.summary == "it ran for more than 0.2 s: is there a loop that never ends?"


def test_a_check_works_in_another_thread_too() -> None:
    found: list[Any] = []
    right = exercises()["min_ctc_length"].alternatives[0]
    thread = threading.Thread(target=lambda: found.append(check.min_ctc_length(right)))
    thread.start()
    thread.join()
    assert found[0].status == PASSED


def test_a_script_prints_the_verdict_and_a_notebook_shows_it_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exercises()["min_ctc_length"].alternatives[0]
    verdict = check.min_ctc_length(right)
    assert capsys.readouterr().out == f"{verdict}\n"
    monkeypatch.setattr("IPython.get_ipython", object)
    check.min_ctc_length(right)
    assert not capsys.readouterr().out


def test_values_are_told_in_one_line_without_addresses() -> None:
    layer = nn.Linear(2, 3)
    rows = [(torch.zeros(2, 7), torch.zeros(2, 9)), (torch.zeros(4, 7), torch.zeros(4, 9))]
    assert format_value(rows) == "((2, 7) float32, (2, 9) float32), ((4, 7) float32, (4, 9) float32)"
    many = format_value([torch.zeros(20)] * 30)
    assert many.count("float32") == 12 and many.endswith(", …")
    assert format_value({"results": [torch.optim.SGD(layer.parameters())], "n": 3}) == "results: (SGD), n: 3"
    assert [format_value(each) for each in (layer, torch.optim.SGD(layer.parameters()), object())] == [
        "Linear", "SGD", "object"]  # fmt: skip


def test_a_message_is_diagnosed_only_if_it_is_the_same() -> None:
    def answer(parts: dict[str, Tensor], ctx_len: int, message: str) -> Tensor:
        if (total := sum(part.shape[1] for part in parts.values())) > ctx_len:
            terms = " + ".join(f"{name} {len(part)}" for name, part in parts.items())
            raise ValueError(message.format(terms, sum(map(len, parts.values())), total, ctx_len))
        return torch.cat(list(parts.values()), dim=1)

    verdict = grade_answer(find_exercise("fuse"), lambda parts, n: answer(parts, n, "{0} = {1} tokens > {3}"))
    assert "counts with `len`" in verdict.diagnosis
    verdict = grade_answer(find_exercise("fuse"), lambda parts, n: answer(parts, n, "{2} tokens > {3}"))
    assert verdict.status == FAILED and not verdict.diagnosis
    assert "should spell out the sum" in dict(verdict.lines)["difference"]


def test_an_answer_that_changes_a_class_does_not_spoil_the_next_one() -> None:
    def for_all(model: nn.Module, part: str) -> None:
        kind = type(getattr(model, part).requires_grad_(False).eval())
        kind.train = lambda self, mode=True: self  # type: ignore[method-assign]

    def for_one(model: nn.Module, part: str) -> None:
        frozen = getattr(model, part).requires_grad_(False).eval()
        frozen.train = lambda mode=True: frozen

    assert "replaced for a whole class" in check.freeze(for_all).diagnosis
    assert check.freeze(for_one)
    assert nn.Sequential(nn.Linear(1, 1)).eval().train().training


def test_gradients_of_tensors_in_a_dictionary_are_compared() -> None:
    one = find_exercise("fuse")
    case = next(case for case in one.all_cases if case.name == GRADIENTS)
    outcome = one.run(lambda parts, ctx_len: torch.cat(list(parts.values()), dim=1).detach(), case.inputs)
    assert "no gradient reaches parts['image'] and parts['audio'] and parts['text']" in str(outcome.error)


def test_what_the_task_forbids_is_no_wrong_type() -> None:
    verdict = grade_answer(find_exercise("rms_norm"), lambda width, eps: torch.zeros(width))
    assert verdict.summary.startswith("not what the task asks for (case")
    assert dict(verdict.lines)["difference"] == "expected a layer, an nn.Module; got a Tensor"
    assert "got" not in dict(verdict.lines)


@pytest.mark.filterwarnings("ignore")
def test_the_expected_gradients_are_right_where_a_warning_is_no_error() -> None:
    """As in a notebook: an oracle that converts a tensor to a number only warns there that it stops the gradient."""
    for one in exercises().values():
        for case in one.all_cases if one.gradients else ():
            if case.name == GRADIENTS:
                case = dataclasses.replace(case, expected=one.expected_gradients(case.inputs))
                assert not find_fault(one, case, one.run(one.alternatives[0], case.inputs)), one.name
