"""The recordings of lesson 23: every file has its row, fits the recogniser, is there once, and is attributed."""

import csv
import hashlib
import runpy
from collections import Counter
from pathlib import Path

from tinyomni.audio import CHARS
from tinyomni.data.custom import open_data
from tinyomni.training.stages.audio import needed_tokens

FOLDER = Path(__file__).resolve().parents[1] / "data" / "real_speech"


def test_every_recording_is_used_once_and_fits_the_recogniser() -> None:
    data = open_data(FOLDER)
    assert data.kind == "speech" and len(data) == len(list(FOLDER.glob("*.flac"))) == 188
    items = [data[row] for row in range(len(data))]
    assert len({hashlib.sha256(item.wave.numpy().tobytes()).digest() for item in items if item.wave is not None}) == 188
    for item in items:
        assert item.wave is not None and set(item.texts["text"]) <= set(CHARS), item.where
        assert needed_tokens(item.texts["text"]) <= len(item.wave) // 640, item.where


def test_second_takes_are_of_words_that_have_a_first_one() -> None:
    with (FOLDER / "metadata.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    first = Counter(row["transcription"] for row in rows if row["take"] == "1")
    second = {row["transcription"] for row in rows if row["take"] == "2"}
    assert set(first.values()) == {1} and second <= set(first)


def test_the_recipe_names_what_is_there() -> None:
    recipe = runpy.run_path(str(FOLDER / "build.py"))
    files = {f"{name.replace('/', '-')}.flac" for name in recipe["TEXTS"] | recipe["AGAIN"]}
    assert files == {path.name for path in FOLDER.glob("*.flac")}


def test_the_recordings_are_attributed_and_small() -> None:
    page, licence = ((FOLDER / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE"))
    assert "Allison Smith" in page and "ShareAlike 3.0" in page and "modified" in page
    assert "THE WORK (AS DEFINED BELOW) IS PROVIDED UNDER THE TERMS" in licence
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 4_000_000
