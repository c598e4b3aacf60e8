"""Grading a folder, exercises in an editor, what an instructor hands out."""

import csv
import functools
import json
import multiprocessing
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tinyomni import cli
from tinyomni.errors import InputError
from tinyomni.grade import build, check, classroom, handout, milestones, percent, progress, watching
from tinyomni.grade.build import find_solutions
from tinyomni.grade.formulas import plain
from tinyomni.grade.grading import FAILED, grade_answer
from tinyomni.grade.isolation import FORKS, Limits
from tinyomni.grade.notebook import code_cells, find_answered, grade_notebook, read_cells
from tinyomni.grade.registry import exercises, find_lesson, lessons
from tinyomni.grade.self_test import quiz
from tinyomni.training import stages

TOP = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((TOP / "solutions").glob("*.ipynb"))
RIGHT = "def merge_heads(x):\n    return x.transpose(1, 2).flatten(2)"
WRONG = "def causal_mask(queries, keys):\n    return torch.ones(queries, keys, dtype=torch.bool).tril()"
TEXT = "# %% [markdown]\n# `causal_mask` · 10 minutes · ●○○\n"
PERCENT = f"{TEXT}\n# %%\nimport torch\n\n# %%\n{RIGHT}\n\n# %%\n{WRONG}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the progress of whoever runs the tests out of it."""
    monkeypatch.setenv("TINYOMNI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def save(path: Path, *sources: str) -> Path:
    """A notebook of these cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in sources]), path)
    return path


# ---- a folder of submissions ----------------------------------------------------------------------------------------


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    """Four students: one file each, a folder, a Python file, and one that can hurt only itself."""
    folder = tmp_path / "submissions"
    save(folder / "03_attention_ada.ipynb", "import torch", RIGHT, WRONG)
    save(folder / "ben" / "03_attention.ipynb", "import torch, mine", WRONG)
    (folder / "ben" / "mine.py").write_text("x = 1\n")
    (folder / "cleo.py").write_text(PERCENT + "\n# %%\ncheck.causal_mask(causal_mask)\n")
    save(folder / "03_attention_<b>.ipynb", "print('7 of 7 passed')", RIGHT, "import os; os._exit(0)")
    (folder / "dan.ipynb").write_text("{")
    return folder


def test_two_files_never_share_a_result(tmp_path: Path) -> None:
    for name in ("a b.ipynb", "a_b.ipynb", "a/b.ipynb", "a__b.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = classroom.find_submissions(tmp_path)
    assert len({each.name for each in found}) == len(found) == 4
    assert [each.name for each in found] == [each.name for each in classroom.find_submissions(tmp_path)]


def test_a_folder_is_graded_and_continued(
    submissions: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classroom, "fingerprint_of_graders", lambda: "the same, whoever edits the library meanwhile")
    assert cli.main(["grade", str(submissions), "--csv", "--json", "--html"]) == 1  # dan's cannot be read
    out = tmp_path / "submissions-graded"
    rows = {
        row["student"]: row for row in csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines())
    }
    assert list(rows) == ["<b>", "ada", "ben", "cleo", "dan"]
    assert [rows[name]["passed"] for name in rows] == ["1", "1", "0", "1", "0"]
    assert rows["ada"]["causal_mask"] == "failed" and rows["ada"]["merge_heads"] == "passed"
    assert "exited with status 0" in rows["<b>"]["failure"] and "is not a notebook" in rows["dan"]["failure"]
    results = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    exercise, mistake, section, students = classroom.common_mistakes(results)[0]
    assert exercise == "causal_mask" and "aligned at the top left" in mistake and section.startswith("03_attention: ")
    assert students == ["ada", "ben", "cleo"]
    page = (out / "scores.html").read_text(encoding="utf-8")
    assert "aligned at the top left" in page and "<b>" not in page.replace("<b></b>", "") and "&lt;b&gt;" in page
    assert "aligned at the top left" in (out / "feedback" / "cleo.py.html").read_text(encoding="utf-8")
    assert len(list((out / "feedback").iterdir())) == 5 and not home.exists()
    assert "Not graded" in (said := capsys.readouterr().out) and "mine.py" in said
    # all is kept; only what has changed is graded again, and two runs give the same files
    assert [one["student"] for one in classroom.grade_folder(submissions, out, report=print)] == list(rows)
    assert capsys.readouterr().out == ""
    before = {path.name: path.read_bytes() for path in (out / "results").iterdir()}
    (out / "results" / "03_attention_ada.ipynb.json").write_text("{")
    save(submissions / "ben" / "03_attention.ipynb", "import torch, mine", RIGHT)
    classroom.grade_folder(submissions, out, report=print, jobs=1)
    assert sorted(capsys.readouterr().out.splitlines()) == ["ada: 1 of 7  03_attention", "ben: 1 of 7  03_attention"]
    after = {path.name: path.read_bytes() for path in (out / "results").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"ben__03_attention.ipynb.json"}


def test_an_interrupted_run_ends_at_once_and_keeps_what_is_done(tmp_path: Path) -> None:
    folder, out = tmp_path / "submissions", tmp_path / "out"
    save(folder / "03_attention_a.ipynb", "import torch", RIGHT)
    save(folder / "03_attention_b.ipynb", "while True: pass")

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classroom.grade_folder(folder, out, Limits(seconds=500), jobs=2, report=interrupt)
    assert [path.name for path in (out / "results").iterdir()] == ["03_attention_a.ipynb.json"]
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not FORKS, reason="forked processes are for Linux")
@pytest.mark.parametrize("mode", ["namespaces", "subreaper"])
def test_both_modes_that_fork_give_the_same_verdicts(mode: str, tmp_path: Path) -> None:
    path = save(tmp_path / "03_attention.ipynb", "import torch, os", RIGHT, "os.fork() or os._exit(1)", WRONG)
    try:
        result = grade_notebook(path, modes=(mode,))
    except InputError as error:
        pytest.skip(str(error))  # a system that allows no user namespaces
    states = classroom.states_of(result)
    assert states["merge_heads"] == "passed" and states["causal_mask"] == "failed" and result["isolation"] == mode


def test_a_folder_without_submissions_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    save(tmp_path / ".ipynb_checkpoints" / "03_attention.ipynb", RIGHT)
    assert cli.main(["grade", str(tmp_path)]) == 2
    assert "no notebook and no .py file that calls `check`" in capsys.readouterr().err


def test_a_cell_that_swaps_is_left_out_while_grading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = "from tinyomni.grade import swap\nwith swap(merge_heads=merge_heads):\n    raise ValueError('expensive')"
    path = save(tmp_path / "03_attention.ipynb", RIGHT, swapped)
    cli.main(["grade", str(path), "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["passed"] == 1 and result["errors"] == []


def test_other_graders_grade_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1")
    monkeypatch.setattr(classroom, "LIBRARY", tmp_path)
    before = classroom.fingerprint_of_graders()
    assert classroom.fingerprint_of_graders() == before
    (tmp_path / "one.py").write_text("x = 2")
    assert classroom.fingerprint_of_graders() != before


def test_a_spreadsheet_runs_nothing() -> None:
    assert classroom.unformatted("=1+1") == "'=1+1" and classroom.unformatted("ada") == "ada"


# ---- exercises as Python files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_python_files_hold_the_same_cells(solution: Path, tmp_path: Path) -> None:
    text = build.make_python(solution)
    notebook = nbformat.reads(build.make_exercises(solution), as_version=4)
    expected = [
        (cell.cell_type, plain(cell.source) if cell.cell_type == "markdown" else cell.source.strip("\n"))
        for cell in notebook.cells
    ]
    assert percent.parse(text) == expected
    compile(text, solution.name, "exec")  # magics are comments
    path = tmp_path / f"{solution.stem}.py"
    path.write_text(text, encoding="utf-8")
    assert read_cells(path) == expected and not build.has_answers(path)
    path.write_text(text.replace("raise NotImplementedError", "return 1", 1) + "x = 1\n", encoding="utf-8")
    assert build.has_answers(path)


def test_jupytext_reads_the_same_cells() -> None:
    jupytext = pytest.importorskip("jupytext", reason="pip install jupytext to compare with it")
    for solution in SOLUTIONS[:4]:
        text = build.make_python(solution)
        cells = jupytext.reads(text, fmt="py:percent").cells
        assert [(cell.cell_type, cell.source) for cell in cells] == percent.parse(text)


def test_python_files_with_answers_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / SOLUTIONS[0].name).write_bytes(SOLUTIONS[0].read_bytes())
    assert handout.run(["--as-py"], tmp_path) == 0 == handout.run(["--as-py"], tmp_path)
    assert capsys.readouterr().out == "exercises/: 1 .py files made\n" * 2
    made = tmp_path / "exercises" / f"{SOLUTIONS[0].stem}.py"
    made.write_text(made.read_text(encoding="utf-8") + "\nx = 1\n", encoding="utf-8")
    assert handout.run(["--as-py"], tmp_path) == 1 and "has answers in it" in capsys.readouterr().out


def test_python_files_are_made_from_a_release_without_solutions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exercises").mkdir()
    untouched, answered = (tmp_path / "exercises" / solution.name for solution in SOLUTIONS[:2])
    for path, solution in ((untouched, SOLUTIONS[0]), (answered, SOLUTIONS[1])):
        path.write_text(build.make_exercises(solution), encoding="utf-8")
    answered.write_text(answered.read_text(encoding="utf-8").replace("raise NotImplementedError", "pass"))
    assert handout.run(["--as-py"], tmp_path) == 1
    assert f"{answered.name} has answers in it: no Python file" in capsys.readouterr().out
    assert untouched.with_suffix(".py").read_text(encoding="utf-8") == build.make_python(SOLUTIONS[0])
    assert not answered.with_suffix(".py").exists()


def test_cells_of_other_editors() -> None:
    assert percent.parse("x = 1\n") == [("code", "x = 1")]
    header = "# ---\n# jupyter:\n# ---\n\n"
    text = header + "# %%\n# %matplotlib inline\nx = 1\n\n# %% [md] A title\n# text\n#\n# more\n# %%\ny\n"
    assert percent.parse(text) == [("code", "%matplotlib inline\nx = 1"), ("markdown", "text\n\nmore"), ("code", "y")]


# ---- formulas without TeX -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"4. Why divide by $\sqrt{D}$?", "4. Why divide by √D?"),
        (r"$\sqrt{2 D}$, $1 / \sqrt{z}$", "√(2 D), 1 / √z"),
        (r"$t\,\theta^{-2p/D}$", "t θ^(−2p/D)"),
        (r"$\hat x = x + \text{sg}(e_k - x)$", "x̂ = x + sg(e_k − x)"),
        (r"$e^{-\text{CTC loss}}$ and $c_\text{previous}$", "e^(−CTC loss) and c_previous"),
        (r"$$m = F^\top s$$", "m = Fᵀ s"),
        (r"`$HOME` costs $x$; 5 $", "`$HOME` costs x; 5 $"),
        (r"$\unknown{x}$", "unknownx"),
    ],
)
def test_formulas_become_plain_text(tex: str, text: str) -> None:
    assert plain(tex) == text


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_no_tex_is_left_where_nothing_typesets_it(solution: Path) -> None:
    cells = percent.parse(build.make_python(solution))
    prose = [
        re.sub(r"```.*?```|`[^`\n]*`", "", source, flags=re.DOTALL) for kind, source in cells if kind == "markdown"
    ]
    assert not [source for source in prose if re.search(r"[$\\]", source)]
    hints = [hint for each in watching.hints_of(read_cells(solution)).values() for hint in each]
    assert not [hint for hint in hints if re.search(r"[$\\]", re.sub(r"`[^`]*`", "", hint))]


def test_a_section_with_a_formula_in_its_name_can_be_read_everywhere() -> None:
    one = next(each for each in exercises()["attention_scores"].mutants if "$" in each.section)
    verdict = grade_answer(exercises()["attention_scores"], one.function)
    result = {
        "student": "ada",
        "lesson": "03_attention",
        "file": "a",
        "passed": 0,
        "of": 1,
        "failure": "",
        "errors": [],
    }
    result["exercises"] = [verdict.to_json()]
    pages = [classroom.feedback_page(result), classroom.to_html([result]), repr(verdict), verdict._repr_html_()]
    pages.append(watching.Coach().explain(verdict.to_json(), 3, [])[-1])
    assert all("Why divide by √D?" in page and "sqrt" not in page.split("href")[0] for page in pages)


# ---- watching -------------------------------------------------------------------------------------------------------


def test_help_unfolds_with_each_failure(tmp_path: Path) -> None:
    path, said = tmp_path / "03_attention.py", list[str]()
    hints = "# <details><summary>Hint 1: draw it</summary>\n#\n# Two queries, five keys.\n#\n# </details>\n# %%\n"
    text = PERCENT.replace("\n# %%\nimport", f"{hints}import")
    versions = [text, "", text + "\n", text.replace(".tril()", ".tril(0)"), text.replace(".tril()", ".tril(-0)"),
                text.replace(".tril()", ".tril(keys - queries)")]  # fmt: skip
    path.write_text(versions.pop(0))

    def save_next() -> None:
        if not versions:
            raise KeyboardInterrupt
        path.write_text(versions.pop(0))

    with pytest.raises(KeyboardInterrupt):
        watching.watch(path, said.append, wait=save_next)
    first, same, second, third, right = said[1:]
    assert "✔ merge_heads" in first and "aligned at the top left" in first and "Hint 1" not in first
    assert "Nothing new." in same and "Go on with causal_mask" in same
    assert "Hint 1: draw it\n  Two queries, five keys." in second and "Read" not in second
    assert "Read “" in third and "notebooks/03_attention.ipynb" in third
    assert "✔ causal_mask" in right and "Next: attention_scores" in right
    assert progress.load() == {"merge_heads": "passed", "causal_mask": "passed"}


def test_another_kind_of_file_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "course.zip").write_text("")
    with pytest.raises(InputError, match=r"expected a notebook or \.py file, got .*course\.zip"):
        watching.watch(tmp_path / "course.zip", print, wait=lambda: pytest.fail("it watches"))


def test_every_exercise_has_hints_to_unfold() -> None:
    for solution in SOLUTIONS:
        hints = watching.hints_of(read_cells(solution))
        expected = {each.name for lesson in lessons() if lesson.notebook == solution.stem for each in lesson.exercises}
        assert set(hints) == expected and all(len(each) >= 2 for each in hints.values()), solution.name


# ---- what an instructor hands out -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An nbgrader course."""
    folder = tmp_path_factory.mktemp("course")
    handout.write_nbgrader(SOLUTIONS, folder)
    return folder


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_nbgrader_gets_its_metadata(solution: Path, course: Path) -> None:
    notebook = nbformat.read(course / "source" / solution.stem / solution.name, as_version=4)
    nbformat.validate(notebook)
    marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata.nbgrader.grade_id for cell in marked]
    names = [each.name for lesson in lessons() if lesson.notebook == solution.stem for each in lesson.exercises]
    assert len(set(ids)) == len(ids) and [each[6:] for each in ids if each.startswith("check_")] == names
    for cell in notebook.cells:
        solved = "### BEGIN SOLUTION" in cell.source
        assert solved == bool(cell.metadata.get("nbgrader", {}).get("solution")) and "BEGIN STUB" not in cell.source
        if cell.cell_type == "code":
            compile(cell.source, solution.name, "exec")


@pytest.mark.parametrize("option", ["--nbgrader", "--otter"])
def test_what_an_instructor_has_edited_is_not_overwritten(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> tuple[int, str]:
        return handout.run([option, str(tmp_path)]), capsys.readouterr().out

    def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> str:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        edit(notebook)
        path.write_text(json.dumps(notebook), encoding="utf-8")
        return path.read_text(encoding="utf-8")

    assert run()[0] == 0 and run()[0] == 0  # made again: nobody has edited anything
    source, points, other, executed, *_ = sorted(tmp_path.rglob("*.ipynb"))
    edited = {
        source: change(source, lambda notebook: notebook["cells"][0].update(source="A question of my own")),
        points: change(points, lambda notebook: notebook["cells"][-1]["metadata"].update(nbgrader={"points": 3})),
    }
    other.write_text("not made here", encoding="utf-8")
    code = next(cell for cell in json.loads(executed.read_text())["cells"] if cell["cell_type"] == "code")
    change(executed, lambda notebook: [cell.update(execution_count=1) for cell in notebook["cells"] if cell == code])
    status, said = run()
    assert status == 1 and said.count("was edited and not overwritten") == 3
    assert {path: path.read_text(encoding="utf-8") for path in edited} == edited
    assert other.read_text(encoding="utf-8") == "not made here"
    assert '"execution_count": 1,' not in executed.read_text(encoding="utf-8")


def test_a_check_of_nbgrader_raises_for_a_wrong_answer(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    source = handout.NBGRADER_CHECK.format(exercise="merge_heads", answer="merge_heads")
    for answer in (RIGHT, "def merge_heads(x): return x.flatten(2)", "def merge_heads(x): raise NotImplementedError"):
        names: dict[str, Any] = {"display": lambda verdict: None}
        exec(answer, names)
        if answer == RIGHT:
            exec(source, names)
        else:
            with pytest.raises(AssertionError):
                exec(source, names)
    assert not home.exists()  # somebody else's answers are not one's own progress


@pytest.mark.filterwarnings("ignore")  # of nbgrader and what it needs
@pytest.mark.parametrize("name", ["03_attention", "18_unified_dry_run"])
def test_nbgrader_grades_from_assignment_to_feedback(name: str, tmp_path: Path) -> None:
    apps = pytest.importorskip("nbgrader.apps", reason="pip install nbgrader to run it")
    solution = TOP / "solutions" / f"{name}.ipynb"
    handout.write_nbgrader([solution], tmp_path)
    config = pytest.importorskip("traitlets.config").Config()
    exec((tmp_path / "nbgrader_config.py").read_text(encoding="utf-8"), {"get_config": lambda: config})
    config.CourseDirectory.root = str(tmp_path)
    config.ExecutePreprocessor.timeout = config.ExecutePreprocessor.iopub_timeout = 900  # however busy the machine is
    api = apps.NbGraderAPI(config=config)
    assert api.generate_assignment(name)["success"]
    released = json.loads((tmp_path / "release" / name / solution.name).read_text(encoding="utf-8"))
    answered = json.loads(solution.read_text(encoding="utf-8"))
    solved = {cell["id"]: cell["source"] for cell in answered["cells"]}
    programs = [cell for cell in released["cells"] if cell["cell_type"] == "code" and "def " in "".join(cell["source"])]
    assert not any("### BEGIN SOLUTION" in "".join(cell["source"]) for cell in programs)
    for student in ("untouched", "one_wrong", "right"):
        if student != "untouched":
            for cell in programs:
                cell["source"] = solved[cell["id"]]
        if student == "one_wrong":
            programs[-1]["source"] = "def nothing(): pass"  # no other answer calls the last one
        folder = tmp_path / "submitted" / student / name
        folder.mkdir(parents=True)
        (folder / solution.name).write_text(json.dumps(released), encoding="utf-8")
        result = api.autograde(name, student)
        assert result["success"], result
        assert api.generate_feedback(name, student)["success"]
        assert list((tmp_path / "feedback" / student / name).glob("*.html"))
    number = len(find_lesson(name).exercises)
    with api.gradebook as gradebook:
        scores = {
            student: gradebook.find_submission(name, student).score for student in ("untouched", "one_wrong", "right")
        }
    assert scores == {"untouched": 0, "one_wrong": number - 1, "right": number}


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_otter_gets_a_question_for_each_exercise(solution: Path) -> None:
    notebook = nbformat.reads(json.dumps(handout.for_otter(solution)), as_version=4)
    nbformat.validate(notebook)
    names = [each.name for lesson in lessons() if lesson.notebook == solution.stem for each in lesson.exercises]
    marks = [cell.source.split("\n")[0] for cell in notebook.cells if cell.cell_type == "raw"]
    each = [f"# {edge} {kind}" for kind in ("SOLUTION", "TESTS") for edge in ("BEGIN", "END")]
    assert marks == ["# ASSIGNMENT CONFIG", *["# BEGIN QUESTION", *each, "# END QUESTION"] * len(names)]
    assert [cell.source.split("\n")[1] for cell in notebook.cells if "BEGIN QUESTION" in cell.source] == [
        f"name: {name}" for name in names]  # fmt: skip
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, solution.name, "exec")
            assert "### " not in cell.source
            twice = "swap(" in cell.source or "milestone(" in cell.source or cell.source.startswith("check.")
            assert twice == (cell.metadata.get("tags") == ["otter_ignore"])


def test_a_test_of_otter_raises_for_a_wrong_answer(home: Path) -> None:
    names: dict[str, Any] = {}
    exec(handout.OTTER_TEST.format(exercise="merge_heads", answer="merge_heads"), names)
    exec(RIGHT, names)
    names["test_merge_heads"](names["merge_heads"])
    for wrong in (lambda x: x.flatten(2), None):  # None: what otter passes on if the name is not defined
        with pytest.raises(AssertionError):
            names["test_merge_heads"](wrong)
    assert not home.exists()  # somebody else's answers are not one's own progress


@pytest.mark.filterwarnings("ignore")  # of otter-grader and what it needs
@pytest.mark.parametrize("name", ["03_attention", "18_unified_dry_run"])
def test_otter_grades_from_assignment_to_score(name: str, tmp_path: Path, home: Path) -> None:
    assign = pytest.importorskip("otter.assign", reason="pip install otter-grader to run it")
    run = pytest.importorskip("otter.run")
    solution = TOP / "solutions" / f"{name}.ipynb"
    handout.write_otter([solution], tmp_path)
    assign.main(str(tmp_path / solution.name), str(tmp_path / "dist"), no_run_tests=True, no_pdfs=True)
    (archive,) = (tmp_path / "dist" / "autograder").glob("*.zip")
    released = nbformat.read(tmp_path / "dist" / "student" / solution.name, as_version=4)
    solved = [cell.source for cell in nbformat.read(solution, as_version=4).cells if "BEGIN SOLUTION" in cell.source]
    stubs = [cell for cell in released.cells if "otter_answer_cell" in cell.metadata.get("tags", [])]
    assert [stub.source for stub in stubs] == [build.remove_solutions(source).rstrip() for source in solved]
    number, scores = len(find_lesson(name).exercises), {}
    for student in ("untouched", "one_wrong", "right"):
        if student != "untouched":
            for stub, source in zip(stubs, solved, strict=True):
                stub.source = source
        if student == "one_wrong":
            stubs[-1].source = "def nothing(): pass"  # no other answer calls the last one
        nbformat.write(released, tmp_path / f"{student}.ipynb")
        found = run.main(str(tmp_path / f"{student}.ipynb"), autograder=str(archive), output_dir=None, no_logo=True)
        scores[student] = found.total
    assert scores == {"untouched": 0, "one_wrong": number - 1, "right": number} and not home.exists()


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The text files of the release and of the exam."""
    if not (TOP / ".git").exists():
        pytest.skip("needs a git checkout")
    texts = {}
    for kind in ("release", "exam"):
        archive = tmp_path_factory.mktemp("releases") / f"{kind}.zip"
        assert handout.run([f"--{kind}", str(archive)]) == 0
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if name.endswith((".py", ".ipynb", ".md", ".toml"))]
            texts[kind] = {name.split("/", 1)[1]: file.read(name).decode() for name in names}
    return texts


def test_a_release_holds_no_solution(releases: dict[str, dict[str, str]]) -> None:
    for texts in releases.values():
        assert not [name for name in texts if name.startswith(("solutions/", "tests/"))]
        assert "course.py" in texts and "notebooks/03_attention.ipynb" in texts
        for solution in SOLUTIONS:
            sources = "\n".join(
                "".join(cell["source"]) for cell in json.loads(texts[f"exercises/{solution.name}"])["cells"]
            )
            bodies = [body for source in code_cells(solution) for body in find_solutions(source)]
            assert bodies and not [body for body in bodies if len(body) > 60 and body in sources]
    graders = [text for name, text in releases["release"].items() if name.startswith("tinyomni/grade/lessons/lesson_")]
    assert len(graders) == len(lessons())
    assert not [name for name in releases["exam"] if name.startswith("tinyomni/grade/lessons/lesson_")]
    exams = [releases["exam"][f"exercises/{solution.name}"] for solution in SOLUTIONS]
    assert not [text for text in exams if "swap(" in text]


def test_without_graders_a_check_judges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        ("checker", "exercises"), ("registry", "exercises"), ("progress", "lessons"), ("notebook", "lessons"),
    ):  # fmt: skip
        monkeypatch.setattr(f"tinyomni.grade.{module}.{name}", lambda: {})
    assert "your instructor grades it" in repr(check.merge_heads(None))
    assert "your instructor" in progress.format_progress()
    with pytest.raises(InputError, match="holds no graders: your instructor has them"):
        find_answered(SOLUTIONS[0], code_cells(SOLUTIONS[0]))


def test_a_release_without_a_deleted_lesson(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "README.md").write_text("kept")
    (tmp_path / "19_bigger.ipynb").write_text("{}")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "19_bigger.ipynb").unlink()
    archive = tmp_path / "new" / "course.zip"
    handout.write_release(tmp_path, archive)
    assert zipfile.ZipFile(archive).namelist() == ["tinyomni-course/README.md"]
    assert [each.name for each in archive.parent.iterdir()] == ["course.zip"]


@pytest.mark.parametrize("option", ["--release", "--exam", "--nbgrader", "--otter"])
def test_a_place_that_cannot_be_written_ends_with_a_sentence(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert handout.main([option, str(tmp_path / "file" / "inside")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err or not (TOP / ".git").exists()


def test_a_release_needs_a_git_checkout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a git checkout"):
        handout.write_release(tmp_path, tmp_path / "course.zip")


# ---- programs to debug ----------------------------------------------------------------------------------------------


DEBUGGING = TOP / "exercises" / "debugging.py"


@functools.cache
def broken_programs() -> dict[str, Any]:
    """Exercise → the broken program in the file as it was committed, so that mending it breaks no test."""
    text = DEBUGGING.read_text(encoding="utf-8")
    if (TOP / ".git").exists():
        show = ["git", "-C", str(TOP), "show", "HEAD:exercises/debugging.py"]
        found = subprocess.run(show, capture_output=True, text=True, encoding="utf-8")
        text = found.stdout if found.returncode == 0 else text
    programs: dict[str, Any] = {}
    for kind, source in percent.parse(text):
        if kind == "code" and not source.startswith("check."):
            exec(compile(source, "debugging", "exec", dont_inherit=True), programs)
    return {name: each for name, each in programs.items() if name in exercises()}


def test_each_broken_program_keeps_the_shape_and_is_wrong() -> None:
    assert len(broken_programs()) == 19
    for name, program in broken_programs().items():
        verdict = grade_answer(exercises()[name], program)
        assert verdict.status == FAILED, name
        assert any(words in verdict.summary for words in ("wrong values", "wrong result")), f"{name}: {verdict}"


def test_the_file_to_debug_is_graded_with_its_own_exercises() -> None:
    lesson = find_answered(DEBUGGING, code_cells(DEBUGGING))
    assert [each.name for each in lesson.exercises] == list(broken_programs())


# ---- the self-test and the milestones, with input that cannot be used -----------------------------------------------


def test_the_quiz_says_how_to_answer() -> None:
    said, prompts, answers = list[str](), list[str](), iter(["x", "q"])

    def read(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    quiz("3", 1, read, said.append)  # lesson 03
    assert said[0].startswith("\n03 · ") and prompts == ["a, b or c (Enter: later, q: end) > "] * 2
    with pytest.raises(InputError, match="at least 1 question, got -2"):
        quiz("03", -2)


def test_a_milestone_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"milestone 05: there is no folder .*nowhere"):
        milestones.milestone("5", tmp_path / "nowhere")


# ---- the instructor's page ------------------------------------------------------------------------------------------


def test_the_projected_hours_follow_from_the_presets_and_the_model_card() -> None:
    card = (TOP / "tinyomni" / "weights" / "MODEL_CARD.md").read_text(encoding="utf-8")
    page = (TOP / "docs" / "instructors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d[\d,]+,\d{3}) \w+ \| (.*) \|$", page, re.MULTILINE)
    assert [stage for stage, *_ in rows] == ["thinker", "vision", "audio", "codec", "talker", "omni"]
    for stage, samples, hours in rows:
        settings = stages.get(stage).presets["gpu"]
        count = settings.steps * settings.batch_size * settings.grad_accum_steps
        assert samples == f"{count:,}"
        trained = re.search(rf"^\| {stage} \| \d+ \| [^|]* \| ([\d.]+) \| (\d+) \|", card, re.MULTILINE)
        if trained is None:
            assert hours == "not in the card"
        else:
            expected = round(count * float(trained[1]) / float(trained[2]) / 60)
            assert hours == f"{expected} hour{'s' * (expected != 1)}"
