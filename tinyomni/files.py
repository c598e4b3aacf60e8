"""Outputs that appear whole or not at all: they are written in a temporary folder beside their place, then renamed.

A killed program leaves its folder behind; the next one that writes there removes it.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError

YOUNG = 60  # seconds: a folder that was just made is not held yet
OLD = 86_400  # where there are no locks


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested too deeply
        raise InputError(f"{path} is not valid JSON, or it is damaged ({error})") from error


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a file that takes its place, and that of an older one, when it is whole.

    After an error the older one is as it was. An OSError names the path, not the temporary file.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not (place.is_file() and os.access(place.parent, os.W_OK)):  # such as /dev/stdout
        yield place
        return
    try:
        with temporary_folder(place.parent) as folder:
            yield folder / place.name
            if place.exists():
                shutil.copymode(place, folder / place.name)
            os.replace(folder / place.name, place)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str = "tmp-") -> Iterator[Path]:
    """A folder in `parent` for files that are not whole yet. An OSError in it names `parent`."""
    remove_leftovers(parent, prefix)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as name, held(Path(name)):
            yield Path(name)
    except OSError as error:  # a full disk has no name, and the user did not choose that of a temporary file
        if error.filename is None or str(error.filename).startswith(str(parent / prefix)):
            error.filename = str(parent)
        raise


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool | None]:
    """Hold a folder: no other process can while this one lives. False if another does, None without locks."""
    if os.name == "nt":
        yield None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held: bool | None = True
    except BlockingIOError:
        held = False
    except OSError:  # this file system has no locks
        held = None
    try:
        yield held
    finally:
        os.close(handle)


@functools.cache
def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove what killed programs have left half written; once in a process, since a cache has very many files."""
    for folder in parent.glob(f"{prefix}????????/"):
        with contextlib.suppress(OSError):  # another process has just removed it, or may not be disturbed
            age = time.time() - folder.stat().st_mtime
            with held(folder) as free:
                if age > (OLD if free is None else YOUNG) and free is not False:
                    shutil.rmtree(folder)
