"""Specifications: the small language, files that are wrong, runs that are wrong."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.tracing import Spec, SpecError, SpecMismatch, SweepMismatch, Trace, step, tokens, trace
from tinyomni.tracing.floors import Floor, floor_form
from tinyomni.tracing.formula import evaluate, shape


@step("Ends")
def ends(
    x: Float[Tensor, "batch words classes"],
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    return x[:, 0], x[:, -1]


@step("Counts")
def grow(x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n+1"]:
    return torch.cat([x, x[..., :1]], dim=-1)


SPEC = """
title = "toy"
[given]
batch = 2
words = 5
[fixed]
all = "batch * words"
classes = 4
[ledger]
words = "words"
of = 9
[[step]]
call = "ends"
in = { x = "batch, words, classes" }
out = ["batch, classes", "batch, classes"]
tokens = "batch"
[[step]]
call = "grow"
times = 3
in = { x = "batch, classes + i" }
out = "batch, classes + i + 1"
[[quantity]]
name = "words in all"
formula = "all"
equals = 10
[[rule]]
call = "grow"
over = "n"
want = "n + 1"
"""


def spec(tmp_path: Path, *changes: tuple[str, str]) -> Spec:
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
    return Spec.load(tmp_path / "toy.toml")


def run(batch: int = 2, words: int = 5, times: int = 3, told: int | None = None) -> Trace:
    with trace("toy") as seen:
        tokens("words", words if told is None else told, of=9)
        x = ends(torch.zeros(batch, words, 4))[0]
        for _ in range(times):
            x = grow(x)
    return seen


def test_a_good_run_passes_for_given_sizes_too(tmp_path: Path) -> None:
    assert run().check(spec(tmp_path)).ok
    report = run(3, 7).check(tmp_path / "toy.toml", given={"batch": 3, "words": 7})
    assert report.quantities == [("words in all", 21, None)]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"batch": 3}, r"x: expected .2, 5, 4., got .batch 3, .* \(toy.toml:12\)"),
        ({"words": 4}, r"toy.toml:12"),
        ({"times": 2}, r"grow: expected 3 calls, got 2, then the end of the run \(toy.toml:17\)"),
        ({"times": 4}, "grow ran 1 times, but no ..step"),
        ({"told": 6}, "ledger"),
        ({"words": 10}, "more than 9 tokens"),
    ],
)
def test_a_wrong_run_is_named(how: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch, match=words):
        run(**how).check(spec(tmp_path))


def test_all_wrong_lines_are_listed(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch) as caught:
        run(batch=3, times=2, told=7).check(spec(tmp_path, ("equals = 10", "equals = 11")))
    assert len(caught.value.report.problems) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("all = ", "all = 3\nall = "), r"toy.toml:8: .*all|toy.toml:8"),
        (
            ('all = "batch * words"', 'all = "batch * half"\nhalf = "all // 2"'),
            r"toy.toml:\d: .*circular formulas: all → half → all",
        ),
        (('all = "batch * words"', 'all = "batch * sentences"'), r"toy.toml:7: unknown axis 'sentences'"),
        (
            ('in = { x = "batch, words, classes" }', 'in = { x = "batch, letters" }'),
            r"toy.toml:12: unknown axis 'letters'",
        ),
        (('formula = "all"', 'formula = "every"'), r"toy.toml:22: unknown axis 'every'"),
        (("times = 3", "time = 3"), r"toy.toml:17: unknown key 'time' in"),
        (('call = "ends"', 'title = "ends"'), r"toy.toml:12: missing key 'call'"),
        (("equals = 10", ""), r"toy.toml:22: missing key 'equals'"),
        (("batch = 2", 'batch = "2"'), r"toy.toml:4: .*expected an integer"),
        (("batch = 2", "batch = 2\nclasses = 3"), r"duplicate name 'classes'"),
        (("[ledger]", "[account]"), r"toy.toml:9: unknown table account"),
        (('want = "n + 1"', 'want = "m + 1"'), r"toy.toml:26: unknown axis 'm'"),
        (('title = "toy"', "title = "), r"toy.toml:2"),
        (('tokens = "batch"', 'tokens = "batch ** 2"'), r"toy.toml:12: .*only"),
        (('words = "words"', 'words = "letters"'), r"unknown axis 'letters'"),
    ],
)
def test_a_wrong_specification_is_an_error_with_its_line(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        spec(tmp_path, change)


def test_formulas_stand_in_any_order(tmp_path: Path) -> None:
    found = spec(tmp_path, ('all = "batch * words"', 'all = "half * 2"\nhalf = "batch * words // 2"'))
    assert found.axes({})["all"] == 10


def test_an_empty_run_and_an_empty_specification_are_never_green(tmp_path: Path) -> None:
    with trace() as seen:
        pass
    with pytest.raises(SpecMismatch):
        seen.check(spec(tmp_path))
    with pytest.raises(SpecError, match=r"no .*step"):
        Spec({"given": {}})
    with pytest.raises(SpecError, match="unknown axis 'height'"):
        run().check(spec(tmp_path), given={"height": 3})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="UTF-8"):
        Spec.load(tmp_path / "bytes.toml")


def test_rules_hold_for_every_length(tmp_path: Path) -> None:
    (found,) = spec(tmp_path).prove({"grow": grow})
    assert found.form == Floor(1, 1, 1)
    with pytest.raises(SweepMismatch):
        spec(tmp_path, ('want = "n + 1"', 'want = "n + 2"')).prove({"grow": grow})
    with pytest.raises(SpecError, match="no function for the rule"):
        spec(tmp_path).prove({})


# ---- the small language ---------------------------------------------------------------------------------------------


def test_formulas_and_shapes() -> None:
    names = {"n": 7, "hop": 3}
    assert evaluate("max(50, min(1000, 30 * n)) - n // hop + n % hop", names) == 210 - 2 + 1
    assert shape("1, max(n, 9), (n + 1) // 2", names) == (1, 9, 4) and shape("", names) == ()


@pytest.mark.parametrize(
    "bad",
    [
        "n.real", "__import__('os')", "n ** 9", "n / 2", "'a'", "True", "n if n else 1", "unknown", "n +",
        "n // (n - 7)", "[n]", "min()", "min(*n)", "(lambda: 3)()", "n[0]", "f'{n}'", "1.5", "",
    ],
)  # fmt: skip
def test_what_is_no_formula_is_refused(bad: str) -> None:
    with pytest.raises(SpecError):
        evaluate(bad, {"n": 7})


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("n", Floor(1, 0, 1)),
        ("n // 160", Floor(1, 0, 160)),
        ("(n // 160 + 3) // 4", Floor(1, 480, 640)),
        ("(n + 1) // 2 - 1", Floor(1, -1, 2)),
        ("3 * n + hop", Floor(3, 160, 1)),
        ("max(50, min(1000, 30 * n))", Floor(30, 0, 1, 50, 1000)),
        ("min(128, (n // hop + 3) // 4)", Floor(1, 480, 640, None, 128)),
    ],
)
def test_a_formula_becomes_one_floor(text: str, form: Floor) -> None:
    found = floor_form(text, "n", {"hop": 160})
    assert found == form
    assert all(found.at(n) == evaluate(text, {"n": n, "hop": 160}) for n in range(1, 3000, 7))


@pytest.mark.parametrize(
    "text", ["n * n", "n % 3", "3 - n", "n // 2 * 3", "min(n, 3) + 1", "hop // n", "min(n, 2 * n)"]
)
def test_what_has_no_such_form_says_so(text: str) -> None:
    with pytest.raises(SpecError, match="has no form"):
        floor_form(text, "n", {"hop": 160})


def test_calls_without_a_mark_can_be_named_too() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
            return self.inner(x)

        def inner(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
            return x

    with trace() as seen:
        Model()(torch.zeros(2, 3))
    named = {"given": {"n": 3}, "step": [{"call": "Model.forward", "in": {"x": "2, n"}, "out": "2, n"}]}
    assert seen.check(Spec(named)).ok
    with pytest.raises(SpecMismatch, match="expected 2 calls, got 1"):
        seen.check(Spec({"step": [{"call": "Model.inner", "times": 2}]}))
    with pytest.raises(SpecMismatch):
        seen.check(Spec({"step": [{"call": "ner"}]}))


class Inner(torch.nn.Module):
    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return x + 1


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), Inner()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return self.second(self.first(x))


def nested() -> Trace:
    """Outer, then its second part once more."""
    outer = Outer()
    with trace("nested") as seen:
        outer.second(outer(torch.zeros(2, 3)))
    return seen


INNER = {"call": "Inner.forward", "in": {"x": "2, 3"}, "out": "2, 3"}


def test_a_step_names_the_module_where_a_call_has_to_happen() -> None:
    first, second = {**INNER, "module": "first"}, {**INNER, "module": "second"}
    assert nested().check(Spec({"step": [first, {**second, "times": 2}]})).ok
    with pytest.raises(SpecMismatch, match=r"Inner.forward \(first\): expected 2 calls, got 1, then .*second"):
        nested().check(Spec({"step": [{**first, "times": 2}, second]}))
    with pytest.raises(SpecMismatch, match=r"Inner.forward \(third\): expected 1 calls, got 0, then the end"):
        nested().check(Spec({"step": [{**INNER, "module": "third"}]}))


def test_calls_below_a_step_with_inside_belong_to_it_alone() -> None:
    outer = {"call": "Outer.forward", "inside": [{**INNER, "module": "first"}, {**INNER, "module": "second"}]}
    report = nested().check(Spec({"step": [outer, INNER]}))
    assert [step.calls for step in report.steps] == [[0], [3]]
    with pytest.raises(SpecMismatch, match=r"Inner.forward: expected 1 calls inside, got 0"):
        nested().check(Spec({"step": [{**outer, "inside": outer["inside"][::-1]}, INNER]}))
    # without `inside`, the calls below are steps like others
    assert nested().check(Spec({"step": [{"call": "Outer.forward"}, {**INNER, "times": 3}]})).ok


def test_a_complete_specification_names_every_outermost_call() -> None:
    outer = {"step": [{"call": "Outer.forward", "inside": []}]}
    assert nested().check(Spec(outer)).ok
    with pytest.raises(SpecMismatch, match=r"Inner.forward \(second\) ran 1 times, but no ..step.. names it"):
        nested().check(Spec({"complete": True, **outer}))
    # a call is named by what it calls, too
    assert nested().check(Spec({"complete": True, "step": [{**INNER, "times": 3}]})).ok
