"""The tracer on code that is not the course's, the specification's small language, and the run-time checks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError
from torch import Tensor, nn

from tinyomni.tracing import Spec, SpecError, SpecMismatch, step, tokens, trace
from tinyomni.tracing.annotations import axes
from tinyomni.tracing.checks import checked
from tinyomni.tracing.spec import evaluate, shape


class Toy(nn.Module):
    """Somebody's annotated model."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(11, 6), nn.Linear(6, 4)

    def forward(self, ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words classes"]:
        return self.out(self.mix(self.table(ids)))

    def mix(self, x: Float[Tensor, "batch words width"]) -> Float[Tensor, "batch words width"]:
        return x + x.mean(dim=1, keepdim=True)


@step("Ends")
def ends(
    x: Float[Tensor, "batch words classes"],
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    return x[:, 0], x[:, -1]


@step("Lies about its shape")
def lies(x: Float[Tensor, "batch words classes"]) -> Float[Tensor, "batch classes words"]:
    return x


@step("Counts")
def grow(x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n+1"]:
    return torch.cat([x, x[..., :1]], dim=-1)


def test_calls_nest_and_carry_names_from_annotations_and_sizes_from_tensors() -> None:
    with trace("toy") as seen:
        ends(Toy()(torch.zeros(2, 5, dtype=torch.long)))
    forward, mix, last = seen.steps
    assert [record.call for record in seen.steps] == ["Toy.forward", "Toy.mix", "ends"]
    assert (forward.depth, mix.depth, mix.parent, last.parent) == (0, 1, 0, None)
    assert forward.inputs[0].axes == [("batch", 2), ("words", 5)] and forward.inputs[0].dtype == "int64"
    assert mix.outputs[0].axes == [("batch", 2), ("words", 5), ("width", 6)]
    assert [value.shape for value in last.outputs] == [(2, 4), (2, 4)]
    assert (forward.declared, last.declared, last.title) == (False, True, "Ends")
    assert all(record.status == "ok" for record in seen.steps)


def test_a_trace_changes_no_result_keeps_no_tensor_and_restores_the_hook() -> None:
    import gc
    import weakref

    model, ids = Toy(), torch.zeros(2, 5, dtype=torch.long)
    bare = model(ids)
    sys.setprofile(before := lambda *_: None)
    try:
        with trace() as seen:
            inside = model(ids)
        assert sys.getprofile() is before
        with pytest.raises(KeyboardInterrupt), trace():
            raise KeyboardInterrupt
        assert sys.getprofile() is before
    finally:
        sys.setprofile(None)
    assert torch.equal(bare, inside)
    gone = weakref.ref(inside)
    del inside
    gc.collect()
    assert gone() is None and len(seen.steps) == 2


def test_one_trace_at_a_time() -> None:
    with trace("outer"), pytest.raises(RuntimeError, match="'outer' is still running"), trace("inner"):
        pass


def test_a_wrong_shape_is_reported_at_the_end_with_the_step() -> None:
    with (
        pytest.raises(
            TypeCheckError, match=r"lies: return: \(batch, classes, words\) Float expected, \(2, 5, 4\) came"
        ),
        trace(),
    ):
        lies(torch.zeros(2, 5, 4))
    with trace():
        lies(torch.zeros(2, 4, 4))  # here the shape fits: the tracer cannot know better


def test_variadic_and_computed_axes() -> None:
    with trace() as seen:
        grow(torch.zeros(2, 3, 7))
    assert seen.steps[0].inputs[0].axes == [("lead", 2), ("lead", 3), ("n", 7)]
    assert seen.steps[0].outputs[0].axes == [("lead", 2), ("lead", 3), ("n+1", 8)]
    assert axes(Float[Tensor, "... #a _ b=3 4"], torch.zeros(9, 1, 5, 3, 4)) == [
        ("", 9),
        ("a", 1),
        ("", 5),
        ("b", 3),
        ("", 4),
    ]


SPEC = {
    "given": {"batch": 2, "words": 5},
    "fixed": {"classes": 4, "all": "batch * words"},
    "step": [
        {
            "call": "ends",
            "in": {"x": "batch, words, classes"},
            "out": ["batch, classes", "batch, classes"],
            "tokens": "batch",
        },
        {"call": "grow", "times": 3, "in": {"x": "batch, classes + i"}, "out": "batch, classes + i + 1"},
    ],
    "figure": [{"name": "words in all", "formula": "all", "equals": 10}],
    "ledger": {"words": "words", "of": 9},
}


def run(batch: int = 2, words: int = 5, times: int = 3, told: int | None = None) -> object:
    with trace("toy") as seen:
        tokens("words", words if told is None else told, of=9)
        x = ends(torch.zeros(batch, words, 4))[0]
        for _ in range(times):
            x = grow(x)
    return seen


def test_a_good_run_passes_for_given_sizes_too() -> None:
    assert run().check(Spec(SPEC)).ok
    report = run(3, 7).check(Spec(SPEC), given={"batch": 3, "words": 7})
    assert report.figures == [("words in all", 21, None)]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"batch": 3}, "x: .2, 5, 4. expected"),
        ({"times": 2}, "grow expected 3 times, came 2 times"),
        ({"times": 4}, "grow ran 1 times, but no line"),
        ({"told": 6}, "ledger"),
    ],
)
def test_a_wrong_run_is_named(how: dict[str, int], words: str) -> None:
    with pytest.raises(SpecMismatch, match=words):
        run(**how).check(Spec(SPEC))


def test_an_empty_run_is_never_green() -> None:
    with trace() as seen:
        pass
    with pytest.raises(SpecMismatch):
        seen.check(Spec(SPEC))
    with pytest.raises(SpecError, match=r"no .*step"):
        Spec({"given": {}})


def test_the_small_language() -> None:
    names = {"n": 7, "hop": 3}
    assert evaluate("max(50, min(1000, 30 * n)) - n // hop + n % hop", names) == 210 - 2 + 1
    assert shape("1, max(n, 9), (n + 1) // 2", names) == (1, 9, 4) and shape("", names) == ()
    for bad in (
        "n.real",
        "__import__('os')",
        "n ** 9",
        "n / 2",
        "'a'",
        "True",
        "n if n else 1",
        "unknown",
        "n +",
        "n // (n - 7)",
        "[n]",
        "min()",
    ):
        with pytest.raises(SpecError):
            evaluate(bad, names)


@pytest.mark.parametrize("change", [{"extra": 1}, {"step": [{"out": "1"}]}, {"step": [{"call": "ends", "size": "1"}]}])
def test_a_wrong_specification_is_an_error(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Spec({**SPEC, **change})
    with pytest.raises(SpecError, match="given, but"):
        run().check(Spec(SPEC), given={"height": 3})


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("title = \n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"bad.toml: .*line 1"):
        Spec.load(tmp_path / "bad.toml")


# ---- checks at run time ---------------------------------------------------------------------------------------------


def test_checks_explain_in_our_words_first() -> None:
    def both(a: Float[Tensor, "tokens d_model"], b: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens"]:
        return (a * b).sum(-1)

    guarded = checked(both)
    assert guarded(torch.ones(2, 3), torch.ones(2, 3)).tolist() == [3.0, 3.0]
    with pytest.raises(
        TypeCheckError,
        match=r"(?s)both: b should be .* d_model .*is 3 in another argument, 5 here.*jaxtyping|Type-check",
    ):
        guarded(torch.ones(2, 3), torch.ones(2, 5))
    with pytest.raises(TypeCheckError, match=r"unsqueeze\(0\)"):
        guarded(torch.ones(3), torch.ones(2, 3))
    with pytest.raises(TypeCheckError, match="dtype"):
        guarded(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3))


@pytest.mark.parametrize("first", ["check", "import"])
def test_checks_switch_on_before_or_after_the_first_import(first: str) -> None:
    switch, room = "import tinyomni; tinyomni.check_shapes()", "import tinyomni.rope"
    order = f"{switch}; {room}" if first == "check" else f"{room}; {switch}"
    code = f"""
import torch
{order}
from tinyomni.rope import apply_rope
from tinyomni import ShapeError
try:
    apply_rope(torch.zeros(1, 2, 3, 4), torch.zeros(5, 4), torch.zeros(5, 4))
except ShapeError as error:
    print(str(error).splitlines()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("apply_rope: cos should be") and "is 3 in another argument, 5 here" in done.stdout
