"""`tinyomni trace SCRIPT.py`: what it prints, keeps and returns, for good scripts and bad ones."""

import json
import sys
from pathlib import Path

import pytest

from tinyomni.cli import main

GOOD = """
import sys
import torch
from jaxtyping import Float
from torch import Tensor


def double(x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    return x * 2


double(torch.zeros(2, int(sys.argv[1]) if len(sys.argv) > 1 else 3))
"""


def script(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(text, encoding="utf-8")
    return str(folder / "script.py")


def test_a_good_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "svg", "json")}
    argv, path = list(sys.argv), list(sys.path)
    options = [text for kind, file in files.items() for text in (f"--{kind}", str(file))]
    assert main(["trace", *options, script(tmp_path, GOOD), "7"]) == 0
    assert "double  x (batch 2, width 7) → (batch 2, width 7)" in " ".join(capsys.readouterr().out.split("   "))
    assert "width 7" in files["html"].read_text() and "<svg" in files["svg"].read_text()
    assert json.loads(files["json"].read_text())["steps"][0]["call"] == "double"
    assert (sys.argv, sys.path) == (argv, path)


def test_a_specification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.toml").write_text('[[step]]\ncall = "double"\nout = "2, 3"\n')
    assert main(["trace", "--spec", str(tmp_path / "spec.toml"), script(tmp_path, GOOD)]) == 0
    assert "✔" in capsys.readouterr().out
    assert main(["trace", "--spec", str(tmp_path / "spec.toml"), script(tmp_path, GOOD), "4"]) == 1
    assert "expected (2, 3)" in capsys.readouterr().err
    (tmp_path / "spec.toml").write_text("[[step]]\nname = 3\n")
    assert main(["trace", "--spec", str(tmp_path / "spec.toml"), script(tmp_path, GOOD)]) == 2
    assert "spec.toml:2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("x * 2", "x[0]"), "double: expected the result (batch, width) Float, got (3,) float32"),
        (GOOD + "1 / 0\n", "ZeroDivisionError"),
        (GOOD + "raise SystemExit('enough')\n", "ended with enough"),
        (GOOD + "torch.zeros(2) @ torch.zeros(3)\n", "torch.zeros(2) @ torch.zeros(3)"),
        ("x = 3\n", ""),
        ("x = = 3\n", "SyntaxError"),
    ],
)
def test_a_script_that_fails_or_shows_nothing(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", script(tmp_path, text)]) == 1
    told = capsys.readouterr()
    assert words in told.err and ("double" in told.out or "nothing was traced" in told.out)


def test_a_script_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tmp_path / "none.py")]) == 2
    assert "there is no file" in capsys.readouterr().err
