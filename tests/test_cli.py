"""The command itself: its exit statuses, its choices, its start."""

import errno
import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tinyomni import cli
from tinyomni.cli import course
from tinyomni.cli.console import Choices, encodable
from tinyomni.errors import InputError


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make `tinyomni progress` raise this."""

    def run(_: object) -> int:
        raise error

    monkeypatch.setattr(course, "run_progress", run)


def test_wrong_input_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("expected a number, got 'x'")
    error.add_note("See --help.")
    failing(monkeypatch, error)
    assert cli.main(["progress"]) == 2
    assert capsys.readouterr() == ("", "tinyomni progress: expected a number, got 'x'\nSee --help.\n")
    with pytest.raises(InputError):
        cli.main(["progress", "--debug"])


@pytest.mark.parametrize("error", [TypeError("ours"), IndexError("ours"), ValueError("ours"), KeyError("ours"),
                                   FileNotFoundError(2, "ours", "weights"), OSError("ours")])  # fmt: skip
def test_a_fault_of_ours_keeps_its_traceback_and_says_how_to_report_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert cli.main(["progress"]) == 70
    told = capsys.readouterr().err
    assert "Traceback" in told and "raise error" in told and type(error).__name__ in told
    assert "fault of tinyomni" in told and "tinyomni --version" in told
    with pytest.raises(type(error)):
        cli.main(["--debug", "progress"])


def test_a_path_that_the_user_named_is_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "missing" / "trace.json"
    (tmp_path / "script.py").write_text("import torch\n")
    assert cli.main(["trace", "--json", str(out), str(tmp_path / "script.py")]) == 2
    told = capsys.readouterr().err
    assert "No such file or directory" in told and str(out) in told and "Traceback" not in told


def test_messages_name_commands_as_they_are_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, InputError("First: tinyomni train all; tinyomni is closed."))
    monkeypatch.setenv(cli.PROGRAM, "python3 course.py")
    assert cli.main(["progress"]) == 2
    told = capsys.readouterr().err
    assert told == "python3 course.py progress: First: python3 course.py train all; tinyomni is closed.\n"


def test_a_full_disk_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert cli.main(["progress"]) == 2
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "asked"), [
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 187904 bytes. "),
     " (it asked for 187904 bytes)"),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"), " (it asked for 20.00 GiB)"),
    (MemoryError(), ""), (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
])  # fmt: skip
def test_too_little_memory_is_no_fault_of_ours(
    error: Exception, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert cli.main(["progress"]) == 2
    told = capsys.readouterr().err
    assert told == f"tinyomni progress: out of memory{asked}. Close other programs, or give it less at once.\n"
    args = cli.parser().parse_args(["train", "vision"])
    assert "Lower batch_size or raise grad_accum_steps" in cli.input_problem(error, args)


def test_choices_are_those_of_the_registries() -> None:
    from tinyomni.data.world import SPLITS
    from tinyomni.dry_run import PIPELINES
    from tinyomni.evaluation.registry import PARTS
    from tinyomni.training import stages
    from tinyomni.training.settings import PRESETS

    found = {(name, action.dest): [*action.choices] for name, command in cli.commands_of(cli.parser()).items()
             for action in command._actions if isinstance(action.choices, Choices)}  # fmt: skip
    assert found["train", "stage"] == ["all", *stages.names()]
    for name in ("train", "report", "export"):
        assert found[name, "preset"] == [*PRESETS]
    assert found["report", "only"] == [*PARTS]
    assert found["dry-run", "pipeline"] == [*PIPELINES]
    assert found["world", "split"] == [*SPLITS]
    assert found["ask", "voice"] == found["chat", "voice"] == ["1", "2"]


@pytest.mark.parametrize("arguments", [
    ["dry-run", "--pipeline", "smell"], ["train", "sing"], ["train", "omni", "--preset", "huge"],
    ["ask", "--voice", "9"], ["report", "--only", "smell"], ["world", "--split", "all"], ["sing"], [],
])  # fmt: skip
def test_what_is_no_choice_is_refused_with_the_choices(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    told = capsys.readouterr().err
    assert end.value.code == 2 and ("choose from" in told or "required" in told)


def test_start_needs_no_torch() -> None:
    code = "import sys; from tinyomni.cli import main; sys.argv = ['tinyomni', '--help']\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "transcribe" in done.stdout, done.stderr


def test_version_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tinyomni", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith(f"tinyomni {importlib.metadata.version('tinyomni')} (Python 3."), done.stderr


def test_a_console_without_signs_gets_plain_ones() -> None:
    assert encodable("✔ a → b × 3 é", "ascii") == "ok a -> b x 3 ?"
    assert encodable("✔ é", "utf-8") == "✔ é"


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, before = [], warnings.formatwarning
    monkeypatch.setattr(
        course, "run_progress", lambda _: shown.append(warnings.formatwarning("2 rows", UserWarning, "f.py", 3)) or 0
    )
    assert cli.main(["progress"]) == 0
    assert shown == ["warning: 2 rows\n"] and warnings.formatwarning is before


@pytest.mark.parametrize(("package", "extra"), [("sentencepiece", "course"), ("PIL", "course"), ("gradio", "demo"),
                                                ("onnx", "onnx"), ("pocketsphinx", "judge")])  # fmt: skip
def test_a_command_that_needs_more_names_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part"))
    assert cli.main(["progress"]) == 2
    assert f'needs the package {package}, which is not installed: pip install "tinyomni[{extra}]"' in (
        capsys.readouterr().err
    )


def test_a_module_of_ours_that_is_missing_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModuleNotFoundError("No module named 'tinyomni.gone'", name="tinyomni.gone"))
    assert cli.main(["progress"]) == 70
    assert "fault of tinyomni" in capsys.readouterr().err


def test_hints_name_the_options_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "skip them: skip_bad=True (--skip-bad on the command line), or allow_outside=True (--allow-outside) accepts"
    failing(monkeypatch, InputError(text))
    assert cli.main(["progress"]) == 2
    assert "skip them: --skip-bad, or --allow-outside accepts" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_to_be_written_is_no_fault_of_ours(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, OSError(number, "refused", "runs/laptop/vision"))
    assert cli.main(["progress"]) == 2
    assert "refused: runs/laptop/vision" in capsys.readouterr().err
