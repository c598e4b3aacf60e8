"""The log of a run: `log.jsonl`, one line for each step and each validation."""

import json
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tinyomni.errors import InputError
from tinyomni.training import checkpoint


class Log:
    """Writes `log.jsonl` and a progress bar. Of several processes only the main one does either.

    A run that resumes from step `start` drops the lines after it: those steps are taken again.
    """

    def __init__(self, folder: Path, name: str, start: int, steps: int, is_main: bool) -> None:
        # disable=None: no bar where stderr is no terminal
        self.bar = tqdm(total=steps, initial=start, desc=name, unit="step", disable=None if is_main else True)
        self.file = None
        if is_main:
            path = folder / "log.jsonl"
            kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= start]
            checkpoint.write_atomic(path, "".join(kept).encode())
            self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file:
            self.file.close()

    def write(self, **entry: Any) -> None:
        """Append one line, flushed: it survives a kill."""
        if self.file:
            self.file.write(json.dumps(json_safe(entry)) + "\n")
            self.file.flush()

    def progress(self, text: str) -> None:
        """Move the bar one step further."""
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()


def json_safe(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: json_safe(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; none where there is no file. A last line that a kill cut off is left out.

    Raises InputError that names a damaged line.
    """
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], 1):
        if line.endswith(b"\n"):
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: expected JSON, got {line[:40]!r}: it is damaged") from error
    return entries
