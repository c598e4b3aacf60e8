"""Outputs appear whole or not at all: on a full disk, in a folder that may not be written, after a kill."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tinyomni import cli, files
from tinyomni.data.tts import SpeechCache
from tinyomni.errors import InputError
from tinyomni.evaluation.registry import METRICS
from tinyomni.evaluation.report import Report, result
from tinyomni.files import held, temporary_folder, whole
from tinyomni.io import weights
from tinyomni.metrics import accuracy
from tinyomni.tokenizer import BPETokenizer, train_tokenizer


@pytest.fixture(autouse=True)
def _every_start_cleans() -> Iterator[None]:
    files.remove_leftovers.cache_clear()
    yield


def test_a_file_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    path.chmod(0o640)
    with whole(path) as out:
        out.write_text("new")
        assert path.read_text() == "old" and out.name == "out.json"
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught, whole(path) as out:
        out.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "result.json").write_bytes(content)
    with pytest.raises(InputError, match=r"result\.json is not valid JSON, or it is damaged"):
        files.read_json(path)


def test_a_link_stays_a_link_and_a_device_is_written_itself(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole(tmp_path / "link") as out:
        out.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    with whole("/dev/null") as out:
        assert out == Path("/dev/null")


def test_a_folder_that_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught, temporary_folder(tmp_path / "gone"):
        pass
    assert caught.value.filename == str(tmp_path / "gone")
    with pytest.raises(OSError, match="No space left") as caught, temporary_folder(tmp_path, "tmp-export-"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path)


def leave(folder: Path, name: str, age: float) -> Path:
    """What a killed program leaves behind."""
    (left := folder / name).mkdir(parents=True)
    (left / "half").write_text("h")
    os.utime(left, (time.time() - age,) * 2)
    return left


def test_leftovers_of_killed_programs_are_removed_and_no_others(tmp_path: Path) -> None:
    old = leave(tmp_path, "tmp-abcd1234", 90)
    others = [leave(tmp_path, "tmp-young678", 10), leave(tmp_path, "tmp-of-mine-and-older", 90),
              busy := leave(tmp_path, "tmp-busy1234", 90)]  # fmt: skip
    with held(busy) as free, whole(tmp_path / "out") as out:
        assert free
        out.write_text("x")
    assert not old.exists() and all(each.exists() for each in others)


def test_a_folder_is_held_until_its_program_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tinyomni.files import temporary_folder\n"
        "with temporary_folder(Path(sys.argv[1])) as folder:\n    print(folder, flush=True)\n    time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    left = Path(child.stdout.readline().strip())
    os.utime(left, (0, 0))
    with temporary_folder(tmp_path):
        assert left.exists()
    child.kill()
    child.communicate()
    files.remove_leftovers.cache_clear()
    with temporary_folder(tmp_path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_speech_cache_removes_what_was_interrupted(tmp_path: Path) -> None:
    left = leave(tmp_path, "part-abcd1234", 90)
    SpeechCache(tmp_path).get("key", lambda: torch.zeros(3))
    assert not left.exists() and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a disk that becomes full while a file is written."""
    real = Path.write_bytes, Path.write_text

    def write(self: Path, data: bytes | str, *_: object, **__: object) -> int:
        if tmp_path in self.parents:
            (real[0] if isinstance(data, bytes) else real[1])(self, data[: len(data) // 2])  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, "No space left on device")
        return (real[0] if isinstance(data, bytes) else real[1])(self, data)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr(Path, "write_text", write)
    return tmp_path


def test_a_full_disk_leaves_no_half_tokenizer(full: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        train_tokenizer(["some words and other words"], full / "tokenizer" / "tokenizer.model", 400)
    assert list((full / "tokenizer").iterdir()) == []


def test_a_full_disk_is_an_error_of_the_system_for_weights_too(full: Path) -> None:
    """safetensors itself raises an error of its own, which `tinyomni export` would call a fault."""
    with pytest.raises(OSError, match="No space left"):
        weights.write(full / "w.safetensors", {"a": torch.ones(3)}, {}, BPETokenizer())


@pytest.mark.parametrize("command", ["trace", "dry-run", "speak"])
def test_a_full_disk_is_one_message_and_the_old_output_stays(
    command: str, full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (script := full / "script.py").open("w") as file:
        file.write("from torch import nn, zeros\nnn.Linear(2, 2)(zeros(1, 2))\n")
    with (out := full / "out.wav").open("w") as file:
        file.write("old")
    arguments = {"trace": ["--json", str(out), str(script)], "dry-run": ["--pipeline", "text", "--json", str(out)],
                 "speak": ["hello", "-o", str(out)]}[command]  # fmt: skip
    assert cli.main([command, *arguments]) == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told and str(out) in told and "Traceback" not in told
    assert out.read_text() == "old" and set(full.iterdir()) == {script, out}


def test_a_report_is_written_whole(full: Path) -> None:
    found = Report("smoke", (result(next(iter(METRICS)), accuracy([1, 0]), 2, "smoke"),), {}, ())
    with pytest.raises(OSError, match="No space left"), whole(full / "report.json") as out:
        found.save(out)
    assert list(full.iterdir()) == []
