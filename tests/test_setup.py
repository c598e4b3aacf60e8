"""course.py, the doctor, and that the files which name packages agree."""

import ast
import builtins
import dis
import json
import os
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyomni import cli
from tinyomni.cli import doctor
from tinyomni.data.other_makers import MAKERS

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
import course  # noqa: E402


def pins() -> dict[str, str]:
    lines = (TOP / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(re.match(r"([\w.-]+)==([^ ;]+)", line).groups() for line in lines if re.match(r"[\w.-]+==", line))


def declared(*extras: str) -> set[str]:
    """The packages that pyproject.toml names, always and for these extras."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    return {re.split(r"[=<>]", each)[0].lower() for each in named}


def imported(*folders: str) -> set[str]:
    """The packages of others that Python files and notebooks in these folders import."""
    found = set()
    for folder in folders:
        sources = [path.read_text(encoding="utf-8") for path in (TOP / folder).rglob("*.py")]
        for path in (TOP / folder).rglob("*.ipynb"):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
            sources.append(re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE))
        for source in sources:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((node.module or "").split(".")[0])
    own = {
        "tinyomni",
        "course",
        *(path.stem for folder in ("tests", "benchmarks", "site") for path in (TOP / folder).glob("*")),
        *(path.stem for folder in ("tests", "benchmarks") for path in (TOP / folder).glob("*/*.py")),
    }
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "IPython": "ipython", "espeakng_loader": "espeakng-loader"}
    return {names.get(each, each) for each in found - own - sys.stdlib_module_names}


def test_every_import_is_of_a_declared_package() -> None:
    # no extra can hold these: they are built where they are installed, one of them without its dependencies
    optional = {"ttspico", "samtts"}
    assert {maker.install.split()[-1] for maker in MAKERS.values()} > optional
    assert imported("tinyomni") - optional <= declared("course", "judge", "demo", "onnx")
    assert imported("notebooks", "exercises", "solutions") <= declared("course")
    assert imported("tests") <= declared("course", "test", "judge", "demo", "onnx")
    assert imported("benchmarks") <= declared("course", "test", "bench")


def test_a_learner_gets_no_tools_of_developers() -> None:
    tools = {"mypy", "ruff", "librosa", "transformers", "playwright", "pocketsphinx", "hypothesis", "import-linter"}
    assert not declared("course") & tools and tools <= declared("judge", "test")


def test_pins_hold_every_package_and_no_host_or_path() -> None:
    assert declared("course", "test", "judge", "demo", "onnx", "bench") <= set(pins())
    assert pins()["torch"] == pins()["torchaudio"] == doctor.TORCH == "2.11.0"
    text = (TOP / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    assert declared() == {"torch", "jaxtyping", "beartype"}


def test_conda_users_get_the_same() -> None:
    text = (TOP / "environment.yml").read_text(encoding="utf-8")
    assert "- -c constraints.txt" in text and "- -e .[course,judge,test]" in text
    # no version is repeated there but Python's, which the project must allow
    assert re.findall(r"[=<>]+\s*([\d.]+)", text) == ["3.11"]


def test_ci_calls_the_readmes_command() -> None:
    assert "python3 course.py test" in (TOP / ".ci" / "run").read_text(encoding="utf-8")
    assert "python3 course.py test" in (TOP / "README.md").read_text(encoding="utf-8")


def test_one_version_and_the_same_pythons_everywhere() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (TOP / "CITATION.cff").read_text(encoding="utf-8")
    workflow = (TOP / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    pythons = [f"3.{minor}" for minor in range(course.OLDEST[1], course.NEWEST[1] + 1)]
    assert f"python: {json.dumps(pythons)}" in workflow and "python course.py test" in workflow
    assert project["requires-python"] == f">=3.{course.OLDEST[1]},<3.{course.NEWEST[1] + 1}"


def test_course_needs_the_standard_library_only() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import course; print(course.PYTHON)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(TOP)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["sing"], ["test", "--fast"]])
def test_course_explains_itself_without_setting_up(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "set_up", lambda *_: pytest.fail("nothing is to be installed"))
    assert course.main(arguments) == (0 if arguments in ([], ["help"], ["--help"]) else 2)


def test_a_wrong_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course.sys, "version_info", (3, 10, 1))
    with pytest.raises(SystemExit, match=r"3\.11 to 3\.13"):
        course.set_up()


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, uv: list[str]) -> list[list[str]]:
    """Run set_up in an empty folder without installing anything; the commands that it would have run."""
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).write_text("x", encoding="utf-8")
    venv = folder / ".venv"
    for name, value in {
        "HERE": folder,
        "VENV": venv,
        "BIN": venv / "bin",
        "PYTHON": venv / "bin" / "python",
        "STAMP": venv / "stamp",
    }.items():
        monkeypatch.setattr(course, name, value)
    done: list[list[str]] = []

    def fake(command: list[object], **_: object) -> subprocess.CompletedProcess[str]:
        done.append([str(part) for part in command])
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin" / "python").touch()
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(course.subprocess, "run", fake)
    monkeypatch.setattr(course, "follow", fake)
    monkeypatch.setattr(course, "find_uv", lambda: uv)
    # the venv works once it is there; a private uv cannot be had
    monkeypatch.setattr(course, "works", lambda command: "-c" in command and course.PYTHON.exists())
    return done


@pytest.mark.parametrize("uv", [["uv"], []])
def test_set_up_installs_once_and_again_when_the_pins_change(
    uv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = install(monkeypatch, tmp_path, uv)
    course.set_up()
    assert done[-1][-4:] == ["-c", "constraints.txt", "-e", ".[course]"]
    assert (done[-1][0] == "uv") == bool(uv)
    count = len(done)
    course.set_up()
    assert len(done) == count
    (tmp_path / "constraints.txt").write_text("y", encoding="utf-8")
    course.set_up()
    assert len(done) > count


def test_what_a_command_needs_is_added_and_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = install(monkeypatch, tmp_path, ["uv"])
    course.set_up()
    course.set_up(["test"])
    assert done[-1][-1] == ".[course,test]"
    count = len(done)
    for extras in ([], ["test"]):
        course.set_up(extras)
    assert len(done) == count
    (tmp_path / "constraints.txt").write_text("y", encoding="utf-8")
    course.set_up()
    assert done[-1][-1] == ".[course,test]"


def test_how_to_activate_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, tmp_path, ["uv"])
    course.set_up()
    assert f"source {Path('.venv/bin/activate')}" in capsys.readouterr().out or os.name == "nt"
    course.set_up(["test"])
    course.set_up()
    assert "activate" not in capsys.readouterr().out


def test_an_interrupted_installation_is_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = install(monkeypatch, tmp_path, ["uv"])
    course.set_up()
    (tmp_path / ".venv" / "stamp").unlink()
    count = len(done)
    course.set_up()
    assert len(done) > count and (tmp_path / ".venv" / "stamp").exists()


def test_cpu_asks_uv_for_the_small_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = install(monkeypatch, tmp_path, ["uv"])
    course.set_up(cpu=True)
    assert "--torch-backend cpu" in " ".join(done[-1])
    count = len(done)
    course.set_up()  # it keeps to that build
    assert len(done) == count


def test_every_command_of_tinyomni_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = cli.commands_of(cli.parser())
    assert sorted(course.PASSED_ON) == sorted(commands)
    assert all(re.search(rf"\b{name}\b", course.__doc__) for name in commands)
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(course, "set_up", lambda extras, cpu: done.append((tuple(extras), cpu)))
    monkeypatch.setattr(course, "run", lambda *command, folder: done.append((*command[1:], folder)) or 3)
    monkeypatch.chdir(tmp_path)
    assert course.main(["--cpu", "ask", "--image", "mine.png", "What is it?"]) == 3
    assert done == [((), True), ("-m", "tinyomni", "ask", "--image", "mine.png", "What is it?", tmp_path)]
    done.clear()
    course.main(["trace", "script.py", "--cpu"])  # the script's own option
    assert done == [((), False), ("-m", "tinyomni", "trace", "script.py", "--cpu", tmp_path)]


def test_nothing_is_written_to_the_home() -> None:
    env = course.environment()
    for name in ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "HF_HOME", "XDG_CACHE_HOME"):
        assert env[name].startswith(str(TOP) + os.sep)


# ---- doctor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("torch", "torchaudio", "words"),
    [
        ("2.13.0", "2.11.0", "two releases"),
        ("2.11.0", "2.10.0", "two releases"),
        ("2.13.0+cpu", "2.11.0", "two releases"),
        ("2.11.0+cpu", "2.11.0+cu130", "two builds"),
        ("2.10.0", "2.10.0", "tested with 2.11.0 only"),
        (None, "2.11.0", "torch missing"),
        ("2.11.0", None, "torchaudio missing"),
    ],
)
def test_broken_pairs_are_named_with_a_cure(torch: str | None, torchaudio: str | None, words: str) -> None:
    good, _, text = doctor.check_torch(torch, torchaudio)
    assert (not good and words in text and "2.11.0" in text) or "course.py" in text


def test_good_pairs_pass() -> None:
    assert all(
        doctor.check_torch(*both)[0] for both in [("2.11.0", "2.11.0"), ("2.11.0+cpu", "2.11.0"), ("2.11.0+cu130",) * 2]
    )


def test_a_broken_pair_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda package: {"torch": "2.13.0"}.get(package, "2.11.0"))
    monkeypatch.setattr(
        doctor, "check_import", lambda package: pytest.fail("tried to import a pair that is known to be broken")
    )
    assert any(not good and "two releases" in text for good, _, text in doctor.findings())


def test_the_doctor_is_content_here_and_its_exit_status_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    assert doctor.main(lines.append) == 0, lines
    monkeypatch.setattr(doctor, "check_tokenizer", lambda: doctor.Finding(False, "tokenizer", "gone"))
    assert doctor.main(lines.append) == 1 and "WRONG  tokenizer: gone" in lines


def test_the_doctor_names_packages_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {
        "einops": "raise ImportError('libx.so:\\n missing')", "ijson": "import os; os._exit(7)", "tqdm": "x = 1",
        "onnx": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "gradio": "raise SystemExit('no')",
    }  # fmt: skip
    for name, code in broken.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "packages", lambda: dict.fromkeys((*broken, "not_there"), "course"))
    found = {each.name: each for each in doctor.check_packages()}
    assert set(found) == {"einops", "ijson", "onnx", "gradio"} and not any(each.good for each in found.values())
    assert "cannot be imported: ImportError: libx.so: missing" in found["einops"].text
    assert "ends the process (exit status 7)" in found["ijson"].text and "SystemExit: no" in found["gradio"].text
    monkeypatch.setattr(doctor, "packages", lambda: {"tqdm": "course"})
    assert doctor.check_packages() == [doctor.Finding(True, "packages", "1 can be imported")]


def test_a_kernel_of_another_python_is_named(tmp_path: Path) -> None:
    assert not doctor.check_kernel(tmp_path)[0]
    (tmp_path / "kernel.json").write_text(
        json.dumps({"argv": ["/another/python", "-m", "ipykernel"]}), encoding="utf-8"
    )
    assert "/another/python" in doctor.check_kernel(tmp_path)[2]
    for damaged in ("{", "{}", "[]", '{"argv": []}'):
        (tmp_path / "kernel.json").write_text(damaged, encoding="utf-8")
        assert "is damaged" in doctor.check_kernel(tmp_path).text


def test_the_command_survives_a_console_without_signs() -> None:
    code = "from tinyomni.cli.console import say; say('✔ a → b × 3')"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "ok a -> b x 3", done.stderr


def test_a_uv_that_does_not_work_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course.shutil, "which", lambda name: "broken-uv")
    monkeypatch.setattr(course, "works", lambda command: command[0] != "broken-uv")
    assert course.find_uv() == [sys.executable, "-m", "uv"]
    monkeypatch.setattr(course, "works", lambda command: False)
    assert course.find_uv() == []


# ---- names ----------------------------------------------------------------------------------------------------------


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A module's code, and that of all its functions and classes."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from codes_in(each)


def undefined(source: str, file: str = "") -> set[str]:
    """Names that code uses and nothing defines. Linters cannot look for them: to them the axes in annotations are names
    too.
    """
    module = compile(source, file, "exec", dont_inherit=True)
    known, used = {*dir(builtins), *dir(types.ModuleType("")), "__file__", "__path__", "__annotations__"}, set()
    for code in codes_in(module):
        for step in dis.get_instructions(code):
            if step.opname == "STORE_GLOBAL" or (code is module and step.opname == "STORE_NAME"):
                known.add(step.argval)
            elif step.opname == "LOAD_GLOBAL" or (code is module and step.opname == "LOAD_NAME"):
                used.add(step.argval)
    return used - known


def test_every_name_is_defined() -> None:
    assert undefined("import os\ndef f(x: Sequence) -> int:\n    return port + os") == {"Sequence", "port"}
    folders = [TOP / name for name in ("tinyomni", "tests", "benchmarks", "site")]
    files = [path for folder in folders for path in folder.rglob("*.py") if "node_modules" not in path.parts]
    files.append(TOP / "course.py")
    found = {path.name: undefined(path.read_text(encoding="utf-8"), str(path)) for path in files}
    assert {name: names for name, names in found.items() if names} == {}
