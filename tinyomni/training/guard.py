"""What guards a run: no other process in its folder, and no signal in the middle of a step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tinyomni.errors import InputError

LOCK = "run.lock"


class Interrupted(KeyboardInterrupt):
    """A run that a signal ended between two steps; its last step is saved. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """SIGINT and SIGTERM are noted in `received` and answered after the step. A second one interrupts at once.

    Inactive with several processes, which would wait for each other, and outside the main thread: it gets no signals.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if self.active:
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.received:
            raise Interrupted(number)
        self.received = number


def leave_signals_to_the_trainer(worker: int) -> None:
    """For a process that loads data: Ctrl+C, or the end of a job on a cluster, is sent to all processes of a run. The
    one that trains answers it after the step, and for that it needs the others.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Hold the folder for this process; a killed one loses its hold. Raises InputError if another process has it.

    Not on Windows, nor on file systems without locks.
    """
    if folder is None or os.name == "nt":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise InputError(
                f"Training: process {file.read().strip() or 'unknown'} already trains in {folder}. "
                "Wait for it, stop it, or use another folder (--out)."
            ) from error
        except OSError:
            pass  # this file system has no locks
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
