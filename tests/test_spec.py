"""Specifications: the small language, files that are wrong, runs that are wrong."""

import re
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.tracing import Spec, SpecError, SpecMismatch, SweepMismatch, Trace, step, tokens, trace
from tinyomni.tracing.floors import Floor, floor_form
from tinyomni.tracing.formula import evaluate, shape
from tinyomni.tracing.spec_file import INSIDE, PLAIN, TABLE_KEYS, TOP


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
        ({"times": 4}, r"grow: expected 3 calls, got 4 \(toy.toml:17\)"),
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
            r"toy.toml:14: unknown axis 'letters'",
        ),
        (('formula = "all"', 'formula = "every"'), r"toy.toml:24: unknown axis 'every'"),
        (("times = 3", "time = 3"), r"toy.toml:19: unknown key 'time' in ..step..\. Did you mean 'times'"),
        (('call = "ends"', 'title = "ends"'), r"toy.toml:12: missing key 'call'"),
        (("equals = 10", ""), r"toy.toml:22: missing key 'equals'"),
        (("batch = 2", 'batch = "2"'), r"toy.toml:4: .*expected an integer"),
        (("batch = 2", "batch = 2\nclasses = 3"), r"duplicate name 'classes'"),
        (("[ledger]", "[account]"), r"toy.toml:9: unknown table or key 'account'"),
        (('want = "n + 1"', 'want = "m + 1"'), r"toy.toml:29: unknown axis 'm'"),
        (('title = "toy"', "title = "), r"toy.toml:2"),
        (('tokens = "batch"', 'tokens = "batch ** 2"'), r"toy.toml:16: .*only"),
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
    (found,) = spec(tmp_path).check_rules({"grow": grow})
    assert found.form == Floor(1, 1, 1)
    with pytest.raises(SweepMismatch):
        spec(tmp_path, ('want = "n + 1"', 'want = "n + 2"')).check_rules({"grow": grow})
    with pytest.raises(SpecError, match="unknown function 'grow'"):
        spec(tmp_path).check_rules({})


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
    "text", ["n * n", "n % 3", "3 - n // 2", "n // 2 * 3", "min(n, 3) + 1", "hop // n", "min(n, 2 * n)"]
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
    with pytest.raises(SpecMismatch, match=r"Inner.forward \(third\): expected 1 call, got 0, then the end"):
        nested().check(Spec({"step": [{**INNER, "module": "third"}]}))


def test_calls_below_a_step_with_inside_belong_to_it_alone() -> None:
    outer = {"call": "Outer.forward", "inside": [{**INNER, "module": "first"}, {**INNER, "module": "second"}]}
    report = nested().check(Spec({"step": [outer, INNER]}))
    assert [step.calls for step in report.steps] == [[0], [3]]
    words = r"inside, Inner.forward \(second\): expected 1 call, got 0, then Inner.forward \(first\)"
    with pytest.raises(SpecMismatch, match=words):
        nested().check(Spec({"step": [{**outer, "inside": outer["inside"][::-1]}, INNER]}))
    # without `inside`, the calls below are steps like others
    assert nested().check(Spec({"step": [{"call": "Outer.forward"}, {**INNER, "times": 3}]})).ok


def test_too_many_calls_are_counted() -> None:
    with pytest.raises(SpecMismatch, match=r"grow: expected 2 calls, got 3, code at .*test_spec.py:"):
        run().check(Spec({"step": [{"call": "ends"}, {"call": "grow", "times": 2}], "ledger": {"words": 5, "of": 9}}))
    # those below a step as well
    once = {"call": "Outer.forward", "inside": [{**INNER, "times": 1}]}
    with pytest.raises(SpecMismatch, match=r"Outer.forward: inside, Inner.forward: expected 1 call, got 2, code at"):
        nested().check(Spec({"step": [once, INNER]}))
    # two items of the same call share what there is
    both = {"call": "Outer.forward", "inside": [INNER, {**INNER, "times": 1}]}
    assert nested().check(Spec({"step": [both, INNER]})).ok


def test_a_step_without_shapes_was_only_called() -> None:
    report = nested().check(Spec({"step": [{"call": "Outer.forward", "inside": []}, INNER]}))
    assert [step.mark for step in report.steps] == ["·", "✔"]
    assert "  ·       Outer.forward" in str(report) and "(called; no shapes to compare)" in str(report)


def test_rules_are_checked_or_reported_as_unchecked(tmp_path: Path) -> None:
    report = run().check(spec(tmp_path))
    assert [rule.status for rule in report.rules] == ["unchecked"]
    assert "·       rule grow: unchecked: n + 1 for every n; give functions={'grow': …}" in str(report)
    report = run().check(spec(tmp_path), functions={"grow": grow})
    assert report.rules[0].status == "proven" and "✔       rule grow: n + 1 for every n ≥ 1" in str(report)
    report = run().report(spec(tmp_path, ('want = "n + 1"', 'want = "n + 2"')), functions={"grow": grow})
    assert not report.ok and "✘       rule grow: grow: n = 1 gives 2, expected n + 2 = 3" in str(report)
    other = spec(tmp_path, ('over = "n"', 'over = "m"'), ('want = "n + 1"', 'want = "m + 1"'))
    with pytest.raises(SpecError, match=r"toy.toml:26: .*unknown axis 'm' in the annotations of grow"):
        run().check(other, functions={"grow": grow})


def test_shapes_with_wildcards_and_dtypes() -> None:
    one = {"call": "Inner.forward", "module": "*", "in": {"x": "float32[_, 3]"}, "out": "..., 3"}
    assert nested().check(Spec({"step": [{**one, "call": "Inn*", "times": 3}]})).ok
    assert nested().check(Spec({"step": [{**one, "module": "f?rst"}, {**one, "times": 2}]})).ok
    for wrong, words in [
        ({"in": {"x": "int*[_, 3]"}}, r"x: expected int\* \(_, 3\), got float32 \(batch 2, n 3\)"),
        ({"in": {"x": "_, _, 3"}}, r"x: expected \(_, _, 3\), got \(batch 2, n 3\)"),
        ({"out": "..., 4"}, r"out: expected \(\.\.\., 4\), got"),
        ({"out": ["_, 3", "_, 3"]}, r"out: expected \(_, 3\), \(_, 3\), got \(batch 2, n 3\)"),
        ({"in": {"y": "_, 3"}}, r"unknown argument 'y'.* Known: x"),
    ]:
        with pytest.raises(SpecMismatch, match=words):
            nested().check(Spec({"step": [{**one, "times": 3, **wrong}]}))


def test_a_misspelt_call() -> None:
    with pytest.raises(SpecMismatch, match=r"Iner.forward: expected 1 call.*did you mean 'Inner.forward'"):
        nested().check(Spec({"step": [{"call": "Iner.forward"}]}))


def test_a_wrong_item_of_inside_has_its_line_and_a_misspelt_module_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "inside.toml"
    text = """[[step]]
call = "Outer.forward"
inside = [
{ call = "Inner.forward", module = "first", in = { x = "2, 3" } },
{ call = "Inner.forward", module = "second", out = "2, 3" },
]
[[step]]
call = "Inner.forward"
"""
    path.write_text(text, encoding="utf-8")
    assert nested().check(path).ok
    for old, new, words in [
        ('out = "2, 3"', 'out = "2, 4"', r"out: expected \(2, 4\), got .* \(inside.toml:5\)"),
        ('"second"', '"secnod"', r"No such module in this run; did you mean 'second'\? \(inside.toml:5\)"),
    ]:
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(SpecMismatch, match=words):
            nested().check(path)
    with pytest.raises(SpecMismatch, match=r"Inner.forward \(frist\): .*No such module .* did you mean 'first'\?"):
        nested().check(Spec({"step": [{**INNER, "module": "frist"}]}))


WRONG = {  # text → the line, and what is wrong with it
    "step = 3": (1, r"expected \[\[step\]\] tables, got 3"),
    "[step]\ncall = 'x'": (1, r"expected \[\[step\]\] tables"),
    "[[stop]]\ncall = 'x'": (1, r"unknown table or key 'stop'\. Did you mean 'step'"),
    "given = 3\nSTEP": (1, r"\[given\]: expected a table, got 3"),
    "fixed = [1]\nSTEP": (1, r"\[fixed\]: expected a table"),
    "[fixed]\na = 1\nb = [2]\nSTEP": (3, r"\[fixed\] b: expected an integer or a formula"),
    "[fixed]\na = 1.5\nSTEP": (2, r"\[fixed\] a: expected an integer or a formula"),
    "[fixed]\na = true\nSTEP": (2, r"\[fixed\] a: expected an integer or a formula"),
    "[fixed]\n'a b' = 1\nSTEP": (2, r"\[fixed\] 'a b': expected a name"),
    "[fixed]\nk = 0\nl = '1 // k'\nSTEP": (3, r"formula '1 // k': division by zero"),
    "[ledger]\nof = '9'\nSTEP": (2, r"\[ledger\] of: expected an integer, got '9'"),
    "title = 3\nSTEP": (1, r"title: expected a text in quotes, got 3"),
    "complete = 1\nSTEP": (1, r"complete: expected true or false, got 1"),
    "[[step]]\ncall = 3": (2, r"\[\[step\]\] call: expected a call as the trace prints it, in quotes, got 3"),
    "[[step]]\ncall = ''": (2, r"\[\[step\]\] call: expected a call as the trace prints it"),
    "STEP\nin = 'a, b'": (3, r"\[\[step\]\] in: expected a table of shapes"),
    "STEP\nin = { x = 3 }": (3, r"\[\[step\]\] in: expected a table of shapes"),
    "STEP\nout = 3": (3, r"\[\[step\]\] out: expected a shape in quotes"),
    "STEP\nout = [3]": (3, r"\[\[step\]\] out: expected a shape in quotes"),
    "STEP\nout = '..., ...'": (3, r"shape '\.\.\., \.\.\.': expected at most one"),
    "STEP\nout = 'a[2'": (3, "cannot read the formula"),
    f"STEP\nout = '{'(' * 300}'": (3, "cannot read the formula"),
    "STEP\ntimes = 1.0": (3, r"\[\[step\]\] times: expected an integer, 0 or more, or a formula"),
    "STEP\ntimes = -1": (3, r"\[\[step\]\] times: expected an integer, 0 or more"),
    "STEP\ninside = 'y'": (3, r"\[\[step\]\] inside: expected a list of tables"),
    "STEP\ninside = [{ cal = 'y' }]": (3, r"unknown key 'cal' in inside\. Did you mean 'call'"),
    "STEP\ninside = [\n{ call = 'y', in = { x = '3' } },  # {\n{ cal = 'y' },\n]": (5, "unknown key 'cal' in inside"),
    "STEP\ninside = [\n{ call = 'y' },\n{ call = 'z', out = 'n' },\n]": (5, "unknown axis 'n'"),
    "STEP\n[[step.inside]]\ncall = 'y'\n[[step.inside]]\ncall = 'z'\nout = 'n'": (7, "unknown axis 'n'"),
    "STEP\nout = '2,, 3'": (3, "shape '2,, 3': expected an axis before each comma"),
    "STEP\nout = '2 3, 4'": (3, "shape '2 3, 4': expected commas between the axes, got '2 3'"),
    "STEP\nout = 'flaot32[_, 3]'": (3, "unknown dtype 'flaot32'; did you mean 'float32'"),
    "STEP\nQUANTITY\nequals = '1'": (6, "equals: expected an integer"),
    "STEP\nQUANTITY\nequals = 1.0": (6, "equals: expected an integer"),
    "STEP\nQUANTITY\nequals = 1\nequal = 2": (7, "unknown key 'equal'"),
    "STEP\nRULE\nover = 'n n'\nwant = 'n'": (5, "over: expected the name of an axis"),
    "STEP\nRULE\nover = 'n'\nwant = 'n'\nupto = 0": (7, "upto: expected an integer, 1 or more"),
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_types_are_errors_with_their_line(text: str, tmp_path: Path) -> None:
    line, words = WRONG[text]
    text = text.replace("STEP", "[[step]]\ncall = 'x'").replace("RULE", "[[rule]]\ncall = 'x'")
    text = text.replace("QUANTITY", "[[quantity]]\nname = 'a'\nformula = '1'")
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=rf"bad\.toml:{line}: .*{words}"):
        Spec.load(tmp_path / "bad.toml")


def test_a_long_formula_takes_linear_time() -> None:
    text = "n"
    for _ in range(30):  # each level evaluated its right side twice once: 2**30
        text = f"9 % (1 + {text})" if len(text) % 2 else f"9 // (1 + {text})"
    assert evaluate(text, {"n": 3}) >= 0
    limits = {"n" + " + n" * 400: "1601 characters", "-" * 200 + "n": "deeper than 100", "n" + " * n" * 90: "2..63"}
    for bad, words in limits.items():
        with pytest.raises(SpecError, match=words):
            evaluate(bad, {"n": 9})


def test_a_complete_specification_names_every_outermost_call() -> None:
    outer = {"step": [{"call": "Outer.forward", "inside": []}]}
    assert nested().check(Spec(outer)).ok
    with pytest.raises(SpecMismatch, match=r"Inner.forward \(second\) ran once, but no ..step.. names it"):
        nested().check(Spec({"complete": True, **outer}))
    # a call is named by what it calls, too
    assert nested().check(Spec({"complete": True, "step": [{**INNER, "times": 3}]})).ok


def test_the_page_lists_every_table_and_key() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tracer.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (?:\(top\)|`(\[+\w+\]+)`) \| `(\w+)` \|", page, re.MULTILINE))
    keys = {(f"[[{table}]]", key) for table, kinds in TABLE_KEYS.items() for key in kinds}
    assert listed == keys | {("", key) for key in TOP} | {("[ledger]", "of")}
    assert {f"`[{table}]`" for table in PLAIN} <= set(re.findall(r"^\| (`\[\w+\]`) \|", page, re.MULTILINE))
    assert ", ".join(f"`{key}`" for key in INSIDE) in page


def test_a_file_that_is_toml_but_no_specification(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SPEC.lstrip().encode())  # as some editors on Windows write it
    assert run().check(path).ok
    for text, words in [
        (f"a = {'[' * 5000}", r"^toy\.toml: expected tables and lists inside each other a few times"),
        (f"[given]\nn = {'9' * 5000}", r"^toy\.toml: expected integers up to 2\*\*63"),
        (f"[given]\nn = 0x{'f' * 5000}", r"^toy\.toml: expected integers up to 2\*\*63"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match=words):
            Spec.load(path)


def test_given_sizes_are_integers(tmp_path: Path) -> None:
    for size in ("5", None, 5.0, True):
        with pytest.raises(SpecError, match=rf"^toy\.toml: given 'words': expected an integer, got {size!r}$"):
            run().check(spec(tmp_path), given={"words": size})  # type: ignore[dict-item]
    with pytest.raises(SpecError, match=r"unknown axis 1 for \[given\]"):
        run().check(spec(tmp_path), given={1: 2})  # type: ignore[dict-item]
    with pytest.raises(SpecError, match=r"expected given={axis: size}, got \[1\]"):
        run().check(spec(tmp_path), given=[1])  # type: ignore[arg-type]


def test_what_has_no_value_has_a_line(tmp_path: Path) -> None:
    sizes = ('over = "n"', 'over = "n"\nsizes = { lead = -1 }')
    for change, line, words in [
        (("times = 3", "times = 99999999999999999999"), 19, r"the value is larger than 2\*\*63"),
        (("times = 3", 'times = "words // 0"'), 19, "division by zero"),
        (('words = "words"', 'words = "words // 0"'), 10, "division by zero"),
        (sizes, 29, r"\[\[rule\]\] sizes: expected a table of integers, 0 or more, .*got {'lead': -1}"),
    ]:
        with pytest.raises(SpecError, match=rf"^toy\.toml:{line}: .*{words}"):
            run().check(spec(tmp_path, change), functions={"grow": grow})
    with pytest.raises(SpecError, match=r"^toy\.toml:26: .*takes no n up to"):
        spec(tmp_path).check_rules({"grow": refuse})


def refuse(x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    raise ValueError("no")


def test_calls_in_another_order() -> None:
    wrong = Spec({"step": [{"call": "grow", "times": 3}, {"call": "ends"}], "ledger": {"words": 5, "of": 9}})
    assert [each.partition(", code at")[0] for each in run().report(wrong).problems] == [
        "grow: grow: expected 3 calls, got 0, then ends; grow ran 3 times after ends; expected before it"
    ]
    # a call in between that no step names does not change the order
    with trace() as seen:
        Inner()(torch.zeros(2, 3))
        ends(torch.zeros(1, 2, 3))
        Inner()(torch.zeros(2, 3))
    problems = "\n".join(seen.report(Spec({"step": [{"call": "Inner.forward", "times": 2}]})).problems)
    assert "expected 2 calls, got 1, then ends; Inner.forward ran once after ends" in problems
    assert "ends ran once, but no [[step]] names it" in problems and "expected before" not in problems
    # more calls than a step names are not calls that none names
    problems = "\n".join(seen.report(Spec({"step": [{"call": "Inner.forward"}, {"call": "ends"}]})).problems)
    assert problems == "Inner.forward ran once more than its [[step]] says"
