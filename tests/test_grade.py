"""The graders are tested: for every exercise correct answers pass, and every mutant fails with its own diagnosis."""

import contextlib
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni import attention, cli, dry_run, layers
from tinyomni.errors import InputError
from tinyomni.grade import build as builder
from tinyomni.grade import check, encoding, progress, swap
from tinyomni.grade.build import STUB, find_solutions, has_answers, make_exercises, remove_solutions
from tinyomni.grade.comparison import find_difference
from tinyomni.grade.exercise import (
    GRADIENTS,
    RANDOM_CASES,
    AnswerError,
    Exercise,
    Outcome,
    Replacement,
    exercise,
    load_weights,
    observe,
    share_weights,
)
from tinyomni.grade.grading import FAILED, NOT_ATTEMPTED, PASSED, Verdict, grade_answer, judge
from tinyomni.grade.isolation import MODES, EndedEarly, Limits, Worker
from tinyomni.grade.notebook import detect_lesson
from tinyomni.grade.registry import find_exercise, lessons
from tinyomni.grade.swapping import replaced, resolve
from tinyomni.shapes import ShapeError
from tinyomni.tracing import annotations

TOP = Path(__file__).resolve().parent.parent
EXERCISES = [each for lesson in lessons() for each in lesson.exercises]
NOTEBOOKS = [lesson.notebook for lesson in lessons()]
each_exercise = pytest.mark.parametrize("one", EXERCISES, ids=lambda one: one.name)
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the progress of whoever runs the tests out of it."""
    monkeypatch.setenv("TINYOMNI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def text_of(folder: str, name: str) -> str:
    """The text of a notebook; exercises with answers in them as committed, so that doing exercises breaks no test."""
    file = TOP / folder / f"{name}.ipynb"
    if folder == "exercises" and has_answers(file) and (TOP / ".git").exists():
        show = ["git", "-C", str(TOP), "show", f"HEAD:{folder}/{file.name}"]
        return subprocess.run(show, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    return file.read_text(encoding="utf-8")


def cells_of(folder: str, name: str) -> list[nbformat.NotebookNode]:
    """All cells of a notebook, markdown included."""
    return list(nbformat.reads(text_of(folder, name), as_version=4).cells)


def code_of(folder: str, name: str) -> list[str]:
    """The code cells of a notebook."""
    return [cell.source for cell in cells_of(folder, name) if cell.cell_type == "code"]


@functools.cache
def names_of(folder: str, name: str) -> dict[str, Any]:
    """The names a notebook defines; cells that check or swap are skipped."""
    names: dict[str, Any] = {"display": lambda *shown, **more: None}
    for source in code_of(folder, name):
        if not re.search(r"^\s*(check\.|with swap)", source, re.MULTILINE):
            exec(compile(source, f"<{name}>", "exec", dont_inherit=True), names)
    return names


# ---- every exercise -------------------------------------------------------------------------------------------------


@each_exercise
def test_the_solution_passes(one: Exercise) -> None:
    verdict = grade_answer(one, names_of("solutions", one.notebook)[one.answer_name])
    assert verdict.status == PASSED, verdict


@each_exercise
def test_alternative_solutions_pass(one: Exercise) -> None:
    assert one.alternatives
    for right in one.alternatives:
        verdict = grade_answer(one, right)
        assert verdict.status == PASSED, verdict


@each_exercise
def test_the_stub_is_not_attempted_yet(one: Exercise) -> None:
    verdict = grade_answer(one, names_of("exercises", one.notebook)[one.answer_name])
    assert verdict.status == NOT_ATTEMPTED, verdict


@functools.cache
def verdicts_on_mutants(one: Exercise) -> list[Verdict]:
    """Each mutant, run and judged once."""
    return [judge(one, outcomes) for outcomes in one.mutant_outcomes]


@each_exercise
def test_every_mutant_fails_with_its_own_diagnosis(one: Exercise) -> None:
    assert len(one.mutants) >= 3
    for mutant, verdict in zip(one.mutants, verdicts_on_mutants(one), strict=True):
        assert verdict.status == FAILED, f"survives: {mutant.cause}"
        assert mutant.cause in verdict.diagnosis and verdict.section == mutant.section, (
            f"not told apart: {mutant.cause}\n{verdict}"
        )


def test_all_mutants_are_caught_and_diagnosed(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = [verdict for one in EXERCISES for verdict in verdicts_on_mutants(one)]
    caught = sum(verdict.status == FAILED for verdict in verdicts)
    diagnosed = sum(bool(verdict.diagnosis) for verdict in verdicts)
    rates = f"{caught / len(verdicts):.0%} caught, {diagnosed / len(verdicts):.0%} diagnosed"
    with capsys.disabled():
        print(f"\n{len(EXERCISES)} exercises in {len(NOTEBOOKS)} lessons, {len(verdicts)} mutants: {rates}")
    assert caught == diagnosed == len(verdicts) >= 900


@each_exercise
def test_every_exercise_draws_inputs_at_random(one: Exercise) -> None:
    assert one.draw is not None
    drawn, again = ([inputs for name, inputs, _ in one.all_inputs() if name.startswith("random")] for _ in range(2))
    assert len(drawn) == RANDOM_CASES and len({repr(describe(inputs)) for inputs in drawn}) > 1
    assert [repr(describe(inputs)) for inputs in drawn] == [repr(describe(inputs)) for inputs in again]


def describe(value: Any) -> Any:
    """All numbers of some inputs."""
    if isinstance(value, dict):
        return {name: describe(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, torch.nn.Module):
        return describe(list(value.state_dict().values()))
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    return value if isinstance(value, (int, float, str, bytes, Path, type(None))) else type(value).__name__


@each_exercise
def test_the_cases_cover_sizes_and_defaults(one: Exercise) -> None:
    cases = one.all_cases
    first = cases[0].inputs
    sizes: dict[str, set[int]] = {}
    for case in cases:
        for name, value in case.inputs.items():
            if isinstance(value, Tensor):
                for axis in annotations.axes(annotations.choose(one.hint(name), value), tuple(value.shape)):
                    sizes.setdefault(axis.name, set()).add(axis.size)
    named = {}
    for name, value in first.items():
        if isinstance(value, Tensor):
            axes = annotations.axes(annotations.choose(one.hint(name), value), tuple(value.shape))
            named |= {axis.name: axis.size for axis in axes if axis.name and not is_loose(one.hint(name), axis.name)}
    assert all(size > 1 for size in named.values()), named
    assert len(set(named.values())) == len(named), f"two axes of the first case have the same size: {named}"
    for axis in {"batch", "tokens", "queries", "text_tokens"} & set(named):
        assert 1 in sizes[axis], f"no case with {axis} 1"
    for name, parameter in one.signature.parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            given = [case.inputs[name] for case in cases if name in case.inputs]
            assert any(value is not None and find_difference(parameter.default, value) for value in given), name


def is_loose(hint: Any, name: str) -> bool:
    """An axis that may be 1, or is made from others."""
    return any(f"#{name}" in leaf.dim_str.split() for leaf in annotations.leaves(hint))


@each_exercise
def test_the_oracle_fits_its_annotations(one: Exercise) -> None:
    for case in one.all_cases:
        if case.expected.error is None and case.name != GRADIENTS:
            wrong = annotations.mismatched({**case.inputs, "return": case.expected.value}, one.hints)
            assert wrong is None, f"{wrong} in the case “{case.name}”"
    for name in one.signature.parameters:
        assert name in one.hints, f"{name} has no annotation"


@each_exercise
def test_the_stub_has_the_oracles_signature(one: Exercise) -> None:
    stub = names_of("exercises", one.notebook)[one.answer_name]
    if inspect.isclass(stub):
        assert annotations.leaves(typing.get_type_hints(stub.forward)["return"]) is not None
        return
    mine = inspect.signature(stub)
    assert list(mine.parameters) == list(one.signature.parameters)
    for name, parameter in mine.parameters.items():
        assert parameter.default == one.signature.parameters[name].default
    hints = annotations.hints_of(stub)
    assert {name: annotations.show(hint) for name, hint in hints.items()} == {
        name: annotations.show(hint) for name, hint in one.hints.items()
    }


# ---- the notebooks --------------------------------------------------------------------------------------------------


@each_notebook
def test_exercises_are_made_from_solutions(name: str) -> None:
    assert text_of("exercises", name) == make_exercises(TOP / "solutions" / f"{name}.ipynb"), (
        "run: python3 course.py exercises"
    )


def test_every_lessons_exercises_have_their_two_notebooks() -> None:
    for folder in ("solutions", "exercises"):
        assert sorted(path.stem for path in (TOP / folder).glob("*.ipynb")) == NOTEBOOKS


@each_notebook
def test_no_solution_is_left_in_the_exercises(name: str) -> None:
    left = "\n".join(code_of("exercises", name))
    assert "SOLUTION" not in left
    bodies = [body for source in code_of("solutions", name) for body in find_solutions(source)]
    stubs = len(re.findall(rf"^ *{STUB}$", left, re.MULTILINE))
    starters = sum("### BEGIN STUB" in source for source in code_of("solutions", name))
    assert len(bodies) == stubs + starters and len(bodies) >= len([one for one in EXERCISES if one.notebook == name])
    kept = {line.strip() for source in code_of("solutions", name) for line in remove_solutions(source).splitlines()}
    for line in {line.strip() for body in bodies for line in body.splitlines()} - kept:
        assert line not in left.splitlines() and (len(line) < 8 or f" {line}\n" not in left), line


@each_notebook
def test_exercises_run_from_top_to_bottom_with_empty_stubs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"display": lambda *shown, **more: None}
    monkeypatch.chdir(TOP / "exercises")
    for source in code_of("exercises", name):
        exec(compile(source, f"<{name}>", "exec", dont_inherit=True), names)
    assert not progress.load()


@each_notebook
def test_each_exercise_has_a_heading_hints_a_stub_and_its_check(name: str) -> None:
    cells = cells_of("exercises", name)
    mine = [one for one in EXERCISES if one.notebook == name]
    assert cells[0].source.startswith(f"# {name[:2]} · Exercises")
    checks = [re.match(r"check\.(\w+)\((\w+)\)$", cell.source) for cell in cells]
    found = [(at, match[1], match[2]) for at, match in enumerate(checks) if match]
    assert [(name, answer) for _, name, answer in found] == [(one.name, one.answer_name) for one in mine]
    for number, ((at, _, _), one) in enumerate(zip(found, mine, strict=True), 1):
        text, stub = cells[at - 2].source, cells[at - 1].source
        level = "●" * one.level + "○" * (3 - one.level)
        assert text.startswith(f"## {number}. {one.title}\n\n`{one.name}` · {one.minutes} minutes · {level}\n\n")
        assert 2 <= text.count("<details><summary>") == text.count("</details>") <= 3
        assert re.search(rf"^(def|class) {one.answer_name}\b", stub, re.MULTILINE)


@each_notebook
def test_the_sections_named_by_mutants_exist(name: str) -> None:
    for one in [one for one in EXERCISES if one.notebook == name]:
        cells = nbformat.read(TOP / "notebooks" / f"{one.taught_in}.ipynb", as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        missing = {mutant.section for mutant in one.mutants} - set(re.findall(r"^## (.+)$", text, re.MULTILINE))
        assert not missing, f"{one.name}: {missing}"


# ---- the verdict ----------------------------------------------------------------------------------------------------


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


WRONG: dict[str, tuple[Any, str]] = {
    "a number instead of a tensor": (lambda q, k: 3.0, "expected a tensor, got a float"),
    "a scalar that would broadcast": (lambda q, k: torch.zeros(()), "0 axes instead of 4"),
    "a row that would broadcast": (lambda q, k: scores(q, k)[..., :1], r"keys is 1 instead of \d"),
    "axes in another order": (lambda q, k: scores(q, k).mT, "the sizes are right, the order of the axes is not"),
    "a list of tensors": (lambda q, k: list(scores(q, k)), "expected a tensor, got a list"),
    "float64 turned into float32": (lambda q, k: scores(q, k).float(), "expected float64, got float32"),
    "half precision": (lambda q, k: scores(q, k).half(), "dtype"),
    "NaN": (lambda q, k: scores(q, k) * torch.nan, "got nan"),
    "an input modified in place": (lambda q, k: q.mul_(q.shape[-1] ** -0.5) @ k.mT, "q was modified in place"),
    "an error": (lambda q, k: q @ k, "RuntimeError"),
    "its result instead of itself": (torch.zeros(2), "expected attention_scores itself"),
    "another number of arguments": (lambda q: q, "TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(kind: str) -> None:
    answer, words = WRONG[kind]
    verdict = check.attention_scores(answer)
    assert not verdict and verdict.status == FAILED and re.search(words, repr(verdict)), verdict


def test_the_first_difference_is_located_by_axis_names() -> None:
    def answer(q: Tensor, k: Tensor) -> Tensor:
        found = scores(q, k)
        found[:, -1, -1, -1] += 1
        return found

    verdict = check.attention_scores(answer)
    assert re.search(
        r"first difference at batch 0, heads \d, queries \d, keys \d: expected \S+, got \S+ \(\d+ of \d+", repr(verdict)
    )
    assert not verdict.diagnosis  # nobody's known mistake


@pytest.mark.parametrize("nothing", [None, ..., lambda q, k: None, lambda q, k: ...])
def test_an_empty_answer_is_not_attempted(nothing: Any) -> None:
    verdict = check.attention_scores(nothing)
    assert verdict.status == NOT_ATTEMPTED and "not attempted yet" in repr(verdict)


def test_an_answer_that_calls_a_stub_names_the_stub() -> None:
    def share_heads(x: Tensor, heads: int) -> Tensor:
        raise NotImplementedError

    def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Any = None) -> Tensor:
        return share_heads(k, q.shape[1])

    verdict = check.attention(attention)
    assert verdict.status == NOT_ATTEMPTED and "`share_heads`, which it calls, is still a stub" in repr(verdict)


def test_a_diagnosis_says_what_happens_and_where_to_read() -> None:
    verdict = check.attention_weights(lambda scores, mask=None: (
        scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf)).softmax(-2).nan_to_num(0.0)
    )  # fmt: skip
    assert verdict.diagnosis == "This is what happens when the softmax runs over queries instead of keys."
    assert verdict.link == "../notebooks/03_attention.ipynb#8.-Three-shape-preserving-bugs"
    html = verdict._repr_html_()
    assert f"href='{verdict.link}'" in html and html.count("<tr>") == len(verdict.lines) >= 4


def test_html_is_escaped() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<script>"

    html = check.attention_scores(Odd())._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_a_diagnosis_survives_an_error_in_a_derived_case() -> None:
    verdict = check.merge_heads(lambda x: x.view(x.shape[0], x.shape[2], -1))
    assert "tokens get mixed" in verdict.diagnosis


def test_an_error_is_located_in_the_learners_code_wherever_the_course_lies(tmp_path: Path) -> None:
    path = tmp_path / "tinyomni" / "exercises" / "answer.py"
    path.parent.mkdir(parents=True)
    path.write_text("def scores(q, k):\n    return q @ k\n")
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), names)
    assert "RuntimeError, in line 2 of scores: return q @ k" in repr(check.attention_scores(names["scores"]))


def test_an_unknown_exercise_suggests_the_closest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'attention_scores'"):
        check.attention_score  # noqa: B018
    assert "split_heads" in dir(check) and "split_heads" in repr(check)


def test_indistinguishable_mutants_give_no_diagnosis() -> None:
    @exercise("Twice", minutes=1, level=1)
    def twice(x: float) -> float:
        """Double."""
        return 2 * x

    twice.cases(lambda rng: [("three", {"x": 3.0})])
    for why in ("one", "the other"):
        twice.mutant(why, "here")(lambda x: x)
    assert grade_answer(twice, lambda x: x).status == FAILED and not grade_answer(twice, lambda x: x).diagnosis
    assert grade_answer(twice, lambda x: x + x)


def test_a_case_can_expect_an_error() -> None:
    @exercise("Root", minutes=1, level=1, raises=(ValueError,))
    def root(x: float) -> float:
        """Of what is not negative."""
        if x < 0:
            raise ValueError("negative")
        return x**0.5

    root.cases(lambda rng: [("four", {"x": 4.0}), ("negative", {"x": -1.0})])
    assert grade_answer(root, root.oracle)
    for answer, words in ((abs, "wrong result"), (lambda x: abs(x) ** 0.5, "expected ValueError")):
        assert words in repr(grade_answer(root, answer))

    @exercise("Careless", minutes=1, level=1)
    def careless(x: float) -> float:
        """A failing oracle is an error in the exercise."""
        raise ValueError("negative")

    careless.cases(lambda rng: [("four", {"x": 4.0})])
    with pytest.raises(ValueError, match="the oracle fails in case “four”"):
        grade_answer(careless, abs)


def test_an_unedited_starter_is_not_attempted() -> None:
    @exercise("Debug", minutes=1, level=1, starter=lambda x: x - 1)
    def increment(x: float) -> float:
        """One more."""
        return x + 1

    increment.cases(lambda rng: [("one", {"x": 1.0}), ("two", {"x": 2.0})])
    assert grade_answer(increment, lambda x: -1 + x).status == NOT_ATTEMPTED
    assert (
        grade_answer(increment, lambda x: x).status == FAILED
        and grade_answer(increment, lambda x: 1 + x).status == PASSED
    )


@pytest.mark.parametrize(
    ("expected", "actual"),
    [(1, True), (True, 1), (1.0, True), (2, 2.0), ([1], (1,)), ("a", 1), ({1: 2}, {1: 3}), ({1: 2}, {2: 2}),
     ([1, 2], [1]), ((1, torch.zeros(2)), (1, torch.zeros(3))), (torch.tensor(1.0), 1.0), (1.0, torch.tensor(1.0)),
     (torch.zeros(2), torch.zeros(2, 1)), (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)),
     (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.nan])), (None, 0)],
)  # fmt: skip
def test_different_values(expected: Any, actual: Any) -> None:
    assert find_difference(expected, actual) is not None


@pytest.mark.parametrize(
    ("expected", "actual"),
    [(1.0, 1), (1.0, 1.0000001), ([1, "a"], [1, "a"]), ({1: 2, 3: 4}, {3: 4, 1: 2}), (None, None),
     (torch.nan, torch.nan), (torch.tensor([torch.nan, -torch.inf]), torch.tensor([torch.nan, -torch.inf])),
     (True, True)],
)  # fmt: skip
def test_equal_values(expected: Any, actual: Any) -> None:
    assert find_difference(expected, actual) is None


def test_a_wrong_type_is_reported_before_wrong_values() -> None:
    found = find_difference((torch.zeros(2), torch.zeros(3)), (torch.ones(2), 1.0))
    assert found and found.kind == "type" and "item 1" in found.message


# ---- progress -------------------------------------------------------------------------------------------------------


def test_a_passed_exercise_stays_passed_and_the_next_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = EXERCISES[:2]
    assert cli.main(["progress"]) == 0
    assert f"Next: {first.name} " in capsys.readouterr().out
    getattr(check, first.name)(first.alternatives[0])
    getattr(check, first.name)(first.mutants[0].function)
    getattr(check, second.name)(second.mutants[0].function)
    assert progress.load() == {first.name: "passed", second.name: "failed"}
    assert [path.name for path in home.iterdir()] == ["progress.json"]
    assert cli.main(["progress"]) == 0
    output = capsys.readouterr().out
    assert f"Next: {second.name} " in output and " 1 of " in output and "1 in progress" in output
    (home / "progress.json").write_text(json.dumps({each.name: "passed" for each in EXERCISES}))
    assert "All exercises passed." in progress.format_progress()


def test_what_a_killed_program_left_half_written_is_removed(home: Path) -> None:
    for name in ("tmp-aaaaaaaa", "tmp-bbbbbbbb"):
        (home / name).mkdir(parents=True)
        (home / name / "progress.json").write_text("{")
    os.utime(home / "tmp-bbbbbbbb", (0, 0))  # the other one is being written right now
    check.causal_mask(find_exercise("causal_mask").alternatives[0])
    assert sorted(path.name for path in home.iterdir()) == ["progress.json", "tmp-aaaaaaaa"]


def test_a_damaged_progress_file_is_named_and_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    for damage in ("{", "[]", '{"a": 1}'):
        (home / "progress.json").write_text(damage)
        verdict = check.causal_mask(find_exercise("causal_mask").alternatives[0])
        assert verdict and "Your progress was not saved" in repr(verdict)
        assert (home / "progress.json").read_text() == damage
        assert cli.main(["progress"]) == 2
        assert "Move it away" in capsys.readouterr().err


# ---- grading a notebook ---------------------------------------------------------------------------------------------


def notebook(path: Path, *sources: str) -> Path:
    """A notebook of these cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_notebook_is_graded_in_another_process(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = "import torch\ndef merge_heads(x):\n    return x.transpose(1, 2).flatten(2)"
    wrong = "def causal_mask(queries, keys):\n    return torch.ones(queries, keys, dtype=torch.bool).tril()"
    forged = (
        "import os, tinyomni.grade.grading as grading, tinyomni.grade.comparison as comparison\n"
        "grading.judge = grading.grade_answer = lambda *a: grading.Verdict('split_heads', 'passed', 'all cases pass')\n"
        "comparison.find_difference = grading.find_difference = lambda *a, **more: None\n"
        "for number in range(3, 30):\n"
        '    try: os.write(number, b\'{"exercise": "split_heads", "status": "passed", "outcomes": []}\\n\')\n'
        "    except OSError: pass\n"
        "def split_heads(x, heads): return x"
    )
    path = notebook(tmp_path / "mine.ipynb", "%matplotlib inline", right, wrong, "check.merge_heads(merge_heads)",
                    "from pathlib import Path; Path('mine.ipynb').write_text('overwritten')",
                    "import os; os._exit(3)", "def attention(*inputs, **more): pass", forged,
                    "def repeat_kv(*inputs): os._exit(0)",
                    "def attention_weights(*inputs): raise ValueError('\\x1b[2J')")  # fmt: skip
    before = path.read_bytes()
    status = cli.main(["grade", str(path), "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    states = {each["exercise"]: each["status"] for each in result["exercises"]}
    assert status == 1 and path.read_bytes() == before and not home.exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.ipynb", "out.json"]
    assert states["merge_heads"] == "passed" and states["causal_mask"] == "failed"
    assert result["lesson"] == "03_attention" and result["passed"] == 1 and result["of"] == len(states)
    # a cell and an answer that end the process cost only themselves
    assert [each["cell"] for each in result["errors"]] == [4, 6] and "NameError" in result["errors"][0]["error"]
    assert result["failure"] == "ended early: the process exited with status 3"
    assert result["errors"][1]["error"] == f"{result['failure']}; it was left out"
    assert states["attention"] == "not attempted" and states["attention_scores"] == "missing"
    assert states["split_heads"] == states["attention_weights"] == "failed"  # neither patches nor messages pass it
    output = capsys.readouterr().out
    assert "✔ merge_heads" in output and "aligned at the top left" in output and "\x1b" not in output
    assert "✘ repeat_kv: no result: ended early: the process exited with status 0" in output


# ---- isolation: a small worker in place of the real one -------------------------------------------------------------

WORKER = """
import json, os, sys
channel = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    request = json.loads(line)
    exec(request.get("code", ""))
    channel.write('{"id": "forged"}\\n[]\\nno JSON\\n' + json.dumps({"id": request["id"], "ok": True}) + "\\n")
    channel.flush()
"""
WHAT_BREAKS_A_LIMIT = {
    "ran longer than the time limit of 1 s": "while True: pass",
    "ended early: the process exited with status 3": "os._exit(3)",
    "ended early: killed by SIGSEGV": "import signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "wrote more than 1 MB of output": "while True: print('x' * 10000)",
    "used more than 400 MB of memory": "x = b'x' * (500 << 20)\nwhile True: pass",
    "started more than 12 processes": "while True:\n    os.fork() or exec('import time; time.sleep(1000)')",
    "flooded its channel to the grader": "while True: channel.write('x' * 2**20)",
}
SMALL = Limits(seconds=60, memory_mb=400, processes=12, output_mb=1, files_mb=8, open_files=40)
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@functools.cache
def modes() -> list[str]:
    """The modes that this system allows."""
    return [mode for mode in MODES if sys.platform == "linux" and (mode != "namespaces" or has_namespaces())]


def has_namespaces() -> bool:
    """Whether an ordinary process may make them here."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--net", "--ipc", "--mount", "true"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def small_worker(mode: str, folder: Path, limits: Limits = SMALL) -> Iterator[Worker]:
    worker = Worker(mode, [sys.executable, "-c", WORKER], folder, dict(os.environ), limits)
    try:
        assert worker.ask({}, 60)["ok"]  # replies with another id are dropped
        yield worker
    finally:
        worker.stop()
        assert worker.process.returncode is not None and not any(thread.is_alive() for thread in worker.threads)


@linux
@pytest.mark.parametrize("words", WHAT_BREAKS_A_LIMIT)
def test_a_broken_limit_is_named(words: str, tmp_path: Path) -> None:
    with small_worker(modes()[0], tmp_path) as worker, pytest.raises(EndedEarly, match=f"^{words}$"):
        worker.ask({"code": WHAT_BREAKS_A_LIMIT[words]}, 1 if "1 s" in words else 60)


@linux
@pytest.mark.parametrize("mode", MODES)
def test_descendants_end_with_the_worker(mode: str, tmp_path: Path) -> None:
    if mode not in modes():
        pytest.skip("not allowed here")
    leave = "os.setsid(); os.fork() and os._exit(0);" if mode != "group" else ""  # said to survive in that mode
    code = f"if os.fork() == 0:\n    import time; {leave} alive.write('x'); alive.flush(); time.sleep(1000)"
    (tmp_path / "work").mkdir()
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as alive:
        with small_worker(mode, tmp_path / "work") as worker:
            worker.ask({"code": f"global alive; alive = open({str(fifo)!r}, 'w')\n{code}"}, 60)
            os.set_blocking(descriptor, True)
            assert alive.read(1) == b"x"
        assert alive.read() == b""  # at its end as soon as no process holds the other side


@linux
def test_the_disk_and_the_network_are_out_of_reach_in_namespaces(tmp_path: Path) -> None:
    if modes()[0] != "namespaces":
        pytest.skip("not allowed here")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "answer.ipynb").write_text("original")
    outside = tmp_path / "outside"
    refused = {
        f"open({str(outside)!r}, 'w')": "Read-only file system",
        f"open('/proc/{os.getpid()}/mem', 'rb').read(1)": "No such file|Permission denied|Input/output error",
        "open('big', 'wb').write(bytes(9 << 20))": "No space left|too large",
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)": "unreachable",
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))": "not allowed|hard limit",
        "x = [open('/dev/null') for _ in range(100)]": "Too many open files",
        f"os.kill({os.getpid()}, 0)": "No such process",
    }
    with small_worker("namespaces", tmp_path / "work") as worker:
        for code, words in refused.items():
            attempt = (
                f"import re\ntry:\n    {code}\nexcept (OSError, ValueError) as error:\n"
                f"    assert re.search({words!r}, str(error)), str(error)\nelse: os._exit(9)"
            )
            worker.ask({"code": attempt}, 60)
        worker.ask(
            {"code": "assert open('answer.ipynb').read() == 'original'; open('answer.ipynb', 'w').write('x')"}, 60
        )
    assert not outside.exists() and (tmp_path / "work" / "answer.ipynb").read_text() == "original"


@linux
def test_nothing_runs_on_when_the_grader_is_killed(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom tinyomni.grade.isolation import Limits, Worker\n"
        f"worker = Worker({modes()[0]!r}, [sys.executable, '-c', {WORKER!r}], Path({str(tmp_path / 'work')!r}),"
        f" dict(os.environ), Limits())\nworker.ask({{'code': \"x = open({str(fifo)!r}, 'w'); x.write('x'); x.flush();"
        " __import__('time').sleep(1000)\"}, 1000)"
    )
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen([sys.executable, "-c", code]) as grader, open(descriptor, "rb", buffering=0) as alive:
        os.set_blocking(descriptor, True)
        while alive.read(1) != b"x":
            assert grader.poll() is None
            time.sleep(0.05)
        grader.kill()
        assert alive.read() == b""


OUTCOMES = [
    Outcome(torch.tensor([[1.5, torch.nan]])), Outcome(torch.zeros((), dtype=torch.bfloat16)),
    Outcome(torch.zeros(0, 3, dtype=torch.int64)), Outcome([1, (2.5, "x", None, True), {"a": b"\0"}, {3: []}]),
    Outcome(3, modified=("x",)), Outcome(torch.ones(2, 3, dtype=torch.complex64).conj()),
]  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
def test_outcomes_survive_the_way_to_the_grader(outcome: Outcome) -> None:
    back = encoding.decode_outcome(json.loads(json.dumps(encoding.encode_outcome(outcome))), {"x": 1, "y": 2})
    assert find_difference(outcome.value, back.value) is None and back.modified == outcome.modified
    assert type(back.value) is type(outcome.value)


def test_values_that_no_exercise_expects_arrive_as_their_names() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("no")

    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    for value in (Odd(), deep, 10**1000, torch.zeros(3).to_sparse(), {1, 2}, torch.nn.Linear(1, 1)):
        back = encoding.decode_outcome(json.loads(json.dumps(encoding.encode_outcome(Outcome(value)))), {}).value
        if value is not deep:
            assert type(back).__name__ == type(value).__name__ and isinstance(back, encoding.Opaque)
        assert back != value and find_difference(value, back) is not None
    large = encoding.decode_outcome(encoding.encode_outcome(Outcome(torch.zeros(3000, 3000))), {}).value
    assert large.is_meta and large.shape == (3000, 3000)


def test_errors_keep_their_type_name_and_place() -> None:
    class Own(KeyError):
        pass

    def answer() -> None:
        raise error

    undecodable = UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")
    bases = {ValueError("a\x1bb"): ValueError, Own("x"): KeyError, SystemExit(3): SystemExit, undecodable: ValueError}
    for error, base in bases.items():
        outcome = observe(answer, {})
        back = encoding.decode_outcome(encoding.encode_outcome(outcome), {})
        assert type(back.error).__name__ == type(error).__name__ and isinstance(back.error, base)
        assert "\x1b" not in str(back.error)
        assert "of answer: raise error" in back.location and back.raised_in == "answer"


BAD_REPLIES = [
    {}, [], None, 3, {"value": 3}, {"value": ["plain", []], "modified": []}, {"value": ["code", "x"], "modified": []},
    {"value": ["tensor", ["float32", [2], ""]], "modified": []},
    {"value": ["tensor", ["float32", [-1], "AAAA"]], "modified": []},
    {"value": ["tensor", ["float32", [2**39, 2**39], "AAAA"]], "modified": []},
    {"value": ["tensor", ["float32", [2], None]], "modified": []},
    {"value": ["tensor", ["object", [1], ""]], "modified": []},
    {"value": ["dict", [[["list", []], ["plain", 1]]]], "modified": []},
    {"error": [], "text": "", "location": "", "raised_in": ""}, {"error": [["builtins"]], "text": ""},
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_REPLIES, ids=str)
def test_a_malformed_reply_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="malformed reply"):
        encoding.decode_outcome(data, {"x": 1})


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no file"), ("{", "is not a notebook"), ('{"cells": 3}', "is not a notebook"), ("[]", "is not a notebook"),
     ('{"cells": []}', "calls no `check` of an exercise")],
)  # fmt: skip
def test_a_file_that_cannot_be_graded_is_named(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.ipynb"
    if content is not None:
        path.write_text(content)
    assert cli.main(["grade", str(path)]) == 2
    assert words in capsys.readouterr().err


def test_the_lesson_is_detected_from_the_name_or_the_checks(tmp_path: Path) -> None:
    assert detect_lesson(Path("03_attention (1).ipynb"), []) == "03_attention"
    assert detect_lesson(Path("mine.ipynb"), ["check.embed(embed)", "check.merge_pair(f)"]) == "01_tokens"


# ---- swapping -----------------------------------------------------------------------------------------


def parts_of(names: dict[str, Any], name: str) -> dict[str, Any]:
    """The answers of a lesson that have a counterpart in the library."""
    return {one.name: names[one.answer_name] for one in EXERCISES if one.notebook == name and one.replacements}


def library() -> dict[tuple[str, str], Any]:
    """Every name in the library's modules, and the forward of every class."""
    loaded = {name: module for name, module in sys.modules.items() if re.match(r"tinyomni\.(?!grade|tracing)", name)}
    held = {(name, key): value for name, module in loaded.items() for key, value in vars(module).items()}
    classes = {key: value for key, value in held.items() if inspect.isclass(value)}
    return held | {(*key, "forward"): vars(kind).get("forward") for key, kind in classes.items()}


def is_back(held: dict[tuple[str, str], Any]) -> bool:
    """Everything is restored, and modules loaded in the meantime hold no replacement either."""
    now = library()
    functions = [inspect.unwrap(each) for each in now.values() if inspect.isfunction(each)]
    left = [each for each in functions if each.__code__.co_filename == "<string>"]
    return not left and all(now[key] is value for key, value in held.items())


def test_the_dry_run_uses_swapped_answers_and_restores_the_library() -> None:
    omni, given = dry_run.build(), dry_run.default_inputs()
    ids = torch.tensor([[1, 300, 400, 500]])
    logits, held = omni.thinker(ids), library()
    parts: dict[str, Any] = {}
    for name in NOTEBOOKS:
        parts |= parts_of(names_of("solutions", name), name)
    calls: list[str] = []
    parts = {name: counted(name, part, calls) for name, part in parts.items()}
    with swap(**parts):
        calls.clear()
        reports = [dry_run.run(name, omni, given) for name in dry_run.PIPELINES]
        torch.testing.assert_close(omni.thinker(ids), logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dry_run.build().thinker(ids), logits, rtol=1e-4, atol=1e-4)
    assert all(report.ok for report in reports) and len(reports) == 6
    assert {"split_heads", "merge_heads", "attention", "apply_rope", "rope_angles"} <= set(calls)
    assert is_back(held)
    calls.clear()
    assert torch.equal(omni.thinker(ids), logits) and not calls


def counted(name: str, part: Any, calls: list[str]) -> Any:
    """The answer, which also notes its name at every call."""
    if inspect.isclass(part):
        forward = part.forward

        def counting(self: Any, *inputs: Any, **more: Any) -> Any:
            calls.append(name)
            return forward(self, *inputs, **more)

        return type(part.__name__, (part,), {"forward": functools.wraps(forward)(counting)})

    def called(*inputs: Any, **more: Any) -> Any:
        calls.append(name)
        return part(*inputs, **more)

    return called


def test_an_answer_that_does_not_pass_is_not_swapped_in() -> None:
    held = library()
    for name, answer in (("merge_heads", find_exercise("merge_heads").mutants[0].function), ("split_heads", None)):
        with pytest.raises(ValueError, match=f"swap: {name} must pass its check first"), swap(**{name: answer}):
            raise AssertionError("it was swapped in")
    with (
        pytest.raises(ValueError, match=r"embed has no counterpart .*split_heads"),
        swap(embed=1),
    ):
        pass
    with pytest.raises(AttributeError, match="did you mean 'split_heads'"), swap(split_head=1):
        pass
    assert is_back(held)


def test_the_library_is_restored_after_an_error_and_in_late_imports() -> None:
    held, right = library(), find_exercise("merge_heads").alternatives[0]
    with pytest.raises(KeyError), swap(merge_heads=right):
        from tinyomni.attention import merge_heads as mine

        late = sys.modules["tinyomni.config"]
        late.merge_heads = mine  # type: ignore[attr-defined]
        raise KeyError
    assert late.merge_heads is attention.merge_heads  # type: ignore[attr-defined]
    del late.merge_heads  # type: ignore[attr-defined]
    assert is_back(held)


def test_every_call_of_a_swapped_answer_is_shape_checked() -> None:
    def merge_heads(x: Tensor) -> Tensor:
        right = x.transpose(1, 2).flatten(2)
        return right if x.shape[3] < 64 else right[:, 0]  # right in every case of the check

    with (
        swap(merge_heads=merge_heads),
        pytest.raises(ShapeError, match=r"merge_heads: expected the result \(batch"),
    ):
        attention.merge_heads(torch.zeros(1, 2, 3, 64))


def test_a_swapped_class_uses_the_library_layers_weights() -> None:
    class Mine(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(width))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.weight

    part = Replacement("tinyomni.layers.RMSNorm", lambda answer, old: share_weights(answer(old.weight.shape[0]), old))
    norm, x = layers.RMSNorm(4), torch.randn(2, 3, 4)
    before = norm(x)
    with replaced(part, Mine):
        assert torch.equal(norm(x), x - 1)
        norm.weight.data.fill_(2)
        assert torch.equal(norm(x), x - 2) and torch.equal(layers.RMSNorm(4)(x), x - 1)
    assert torch.equal(norm(x), 2 * before) and list(norm.state_dict()) == ["weight"]
    with pytest.raises(AnswerError, match="expected the parameters weight; got bias, weight"):
        share_weights(torch.nn.LayerNorm(4), norm)
    other = share_weights(layers.RMSNorm(4), norm)
    assert other.weight is norm.weight


def test_a_swapped_layer_need_not_accept_unused_arguments() -> None:
    class Mine(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    block, x = layers.DecoderBlock(8, 2, 16, max_seq_len=6), torch.zeros(1, 3, 8)
    with replaced(Replacement("tinyomni.layers.DecoderBlock", lambda answer, old: answer()), Mine):
        assert torch.equal(block(x), x + 1) and torch.equal(block(x, layer=0), x + 1)
        with pytest.raises(TypeError, match="layer"):
            block(x, layer=1)


def test_invoke_calls_an_answer_that_is_a_class() -> None:
    @exercise("Scale", minutes=1, level=1, answer_name="Scale")
    def scale(x: Float[Tensor, "batch dim"], weight: Float[Tensor, "dim"]) -> Float[Tensor, "batch dim"]:
        """Each number by its own weight."""
        return torch.stack([row * weight for row in x])

    scale.cases(lambda rng: [("all sizes different", {"x": rng.randn(2, 3), "weight": rng.randn(3)})])
    scale.invoke(lambda answer, x, weight: load_weights(answer(x.shape[-1]), weight=weight)(x))

    class Scale(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            setattr(self, self.name, torch.nn.Parameter(torch.ones(width)))

        name = "weight"

        def forward(self, x: Tensor) -> Tensor:
            return x * getattr(self, self.name)

    class Empty(torch.nn.Module):
        def __init__(self, width: int) -> None:
            raise NotImplementedError

    assert grade_answer(scale, Scale) and grade_answer(scale, Empty).status == NOT_ATTEMPTED
    Scale.name = "w"
    assert "expected the parameters weight; got w" in repr(grade_answer(scale, Scale))


def test_weights_are_loaded_by_name() -> None:
    layer = load_weights(torch.nn.Linear(2, 3), weight=torch.ones(3, 2), bias=torch.zeros(3))
    assert layer(torch.ones(1, 2)).tolist() == [[2.0, 2.0, 2.0]]
    with pytest.raises(AnswerError, match="expected the parameters weight; got bias, weight"):
        load_weights(torch.nn.Linear(2, 3), weight=torch.ones(3, 2))
    with pytest.raises(AnswerError, match=r"weight: expected shape \(2, 3\), got \(3, 2\)"):
        load_weights(torch.nn.Linear(2, 3), weight=torch.ones(2, 3), bias=torch.zeros(3))


# ---- building exercises ---------------------------------------------------------------------------------------------


def test_a_stub_can_be_a_broken_program() -> None:
    source = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n"
    assert remove_solutions(source) == "def f(x):\n    raise NotImplementedError\n"
    assert remove_solutions(source.rstrip()) == "def f(x):\n    raise NotImplementedError"
    broken = source + "    ### BEGIN STUB\n    # if x:\n    #     return -x\n    ### END STUB\n"
    assert remove_solutions(broken) == "def f(x):\n    if x:\n        return -x\n"
    for wrong in (source.replace("END", "AND"), source.replace("BEGIN", "BEGINNING OF"), source + "### BEGIN STUB\n"):
        with pytest.raises(ValueError, match="unpaired BEGIN or END mark"):
            remove_solutions(wrong)


def test_answers_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "solutions").mkdir()
    name = f"{NOTEBOOKS[0]}.ipynb"
    (tmp_path / "solutions" / name).write_bytes((TOP / "solutions" / name).read_bytes())
    made = tmp_path / "exercises" / name
    assert builder.main(tmp_path) == 0
    exercises = nbformat.read(made, as_version=4)
    exercises.cells[1].outputs = [nbformat.v4.new_output("stream", text="some output")]
    nbformat.write(exercises, made)
    # outputs are no answers
    assert builder.main(tmp_path) == 0 and "some output" not in made.read_text(encoding="utf-8")
    exercises.cells[1].source += "\nx = 1"
    nbformat.write(exercises, made)
    before = made.read_bytes()
    assert builder.main(tmp_path) == 1 and made.read_bytes() == before
    assert f"{name} has answers in it" in capsys.readouterr().out
    made.write_text("{}")
    assert builder.main(tmp_path) == 1 and made.read_text() == "{}"


def test_every_replacement_path_resolves() -> None:
    for one in EXERCISES:
        for part in one.replacements:
            holder, name = resolve(part.path)
            assert name in vars(holder), part.path
