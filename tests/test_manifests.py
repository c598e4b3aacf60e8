"""Manifests: valid rows are read completely, bad ones are counted and named with their file and line."""

import csv
import gzip
import io
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from tinyomni.data import manifests
from tinyomni.data.manifests import Item, Manifest, ManifestError, SkippedRows, TextFiles

TONE = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * 0.5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with good and bad pictures and recordings, and one recording beside it."""
    top = tmp_path_factory.mktemp("files")
    (folder := top / "data").mkdir()
    soundfile.write(folder / "a.wav", TONE, 16_000)
    soundfile.write(top / "beside.wav", TONE, 16_000)
    (folder / "link.wav").symlink_to(top / "beside.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    for name, rate, channels, subtype in (("8", 8_000, 1, "PCM_U8"), ("24", 96_000, 6, "PCM_24")):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
        soundfile.write(folder / f"{name}.wav", np.tile(tone[:, None], (1, channels)), rate, subtype=subtype)
    soundfile.write(folder / "none.wav", TONE[:0], 16_000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(16_000) == 99, np.nan, TONE), 16_000, subtype="FLOAT")
    soundfile.write(folder / "whole.flac", np.random.default_rng(0).normal(size=64_000) * 0.1, 16_000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:60_000])
    (folder / "cut.wav").write_bytes((folder / "a.wav").read_bytes()[:9_000])
    (folder / "words.wav").write_text("no sound", encoding="utf-8")
    (folder / "empty.wav").touch()

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    for name, image in {
        "a.png": picture, "cmyk.jpg": picture.convert("CMYK"), "one.png": picture.crop((0, 0, 1, 1)),
        "wide.png": Image.new("RGB", (20_000, 20), "red"), "bomb.png": Image.new("1", (20_000, 4_001)),
        "16.png": Image.fromarray(np.full((50, 50), 32_896, dtype=np.uint16)),
        "clear.png": Image.new("RGBA", (9, 9), (255, 0, 0, 0)),
    }.items():  # fmt: skip
        image.save(folder / name)
    picture.save(folder / "whole.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:3_000])
    (folder / "sound.png").write_bytes((folder / "a.wav").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half = Image.new("RGB", (100, 100))
    half.paste((255, 255, 255), (0, 0, 100, 50))
    half.save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.fixture
def write(files: Path) -> Callable[[str, str | bytes], Path]:
    def save(name: str, text: str | bytes) -> Path:
        (files / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return files / name

    return save


Write = Callable[[str, str | bytes], Path]


# ---- valid manifests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(write: Write, bom: str, end: str) -> None:
    rows = ['a.wav,"One, two ""three""",x', "", 'a.wav,"two\nlines",y', '"a.wav",Zwölf 6" pipes,']
    data = Manifest(write("free.csv", bom + end.join(["audio,text,reader", *rows])))
    assert data.kind == "speech" and [data.where(i) for i in range(3)] == ["free.csv:2", "free.csv:4", "free.csv:6"]
    assert [data[i].texts for i in range(3)] == [
        {"text": 'One, two "three"', "reader": "x"},
        {"text": "two\nlines", "reader": "y"},
        {"text": 'Zwölf 6" pipes', "reader": ""},
    ]
    torch.testing.assert_close(data[-1].wave, torch.from_numpy(TONE).float(), atol=1e-4, rtol=0)
    assert list(data.lengths) == [1, 1, 1]


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))), min_size=1))
@settings(max_examples=60, deadline=None)
def test_any_text_that_was_written_as_csv_comes_back(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Image.new("L", (1, 1)).save(Path(folder) / "a.png")
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL)
        writer.writerows([("image", "caption", "more"), *(("a.png", f"{caption}.", more) for caption, more in rows)])
        Path(folder, "rows.csv").write_bytes(text.getvalue().encode())
        data = Manifest(Path(folder, "rows.csv"))
        assert [data.row(i) for i in range(len(data))] == [
            {"image": "a.png", "caption": f"{caption}.", "more": more} for caption, more in rows
        ]


def test_jsonl_keeps_further_columns(write: Write) -> None:
    text = '\ufeff{"image": "a.png", "question": "What?", "answer": "Ä", "n": 1.50, "tags": ["é"]}\n \n{"answer": "b", '
    data = Manifest(write("free.jsonl", text + '"question": "q", "image": "a.png", "caption": "c"}'))
    assert data.kind == "question" and data.where(1) == "free.jsonl:3"
    assert data[0].texts == {"question": "What?", "answer": "Ä", "n": "1.5", "tags": '["é"]'}
    assert data[1].texts["caption"] == "c" and list(data.lengths) == [6, 2]


def test_images_and_audio_of_every_format(write: Write) -> None:
    names = ["a.png", "cmyk.jpg", "one.png", "wide.png", "16.png", "clear.png", "turned.jpg"]
    data = Manifest(write("pictures.csv", "image,caption\n" + "".join(f"{name},x\n" for name in names)))
    pixels = [data[i].pixels for i in range(len(names))]
    assert all(p.shape == (3, 224, 224) for p in pixels)
    assert pixels[4].mean().item() == pytest.approx(128 / 255, abs=0.01) and pixels[5].min() == 1
    assert pixels[6][:, :90].mean() < 0.1 < 0.9 < pixels[6][:, -90:].mean()
    sound = Manifest(write("sound.csv", "audio,text\n8.wav,x\n24.wav,x\n"))
    for item in (sound[0], sound[1]):
        torch.testing.assert_close(item.wave[500:-500], torch.from_numpy(TONE).float()[500:-500], atol=0.02, rtol=0)


def test_audio_is_resampled_once(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("cached.csv", "audio,text\n24.wav,x\na.wav,x\n")
    first = Manifest(path, cache=tmp_path)[0].wave
    assert len(list(tmp_path.iterdir())) == 1  # a.wav has the right rate
    monkeypatch.setattr(manifests, "load_audio", None)
    assert torch.equal(Manifest(path, cache=tmp_path, check="headers")[0].wave, first)
    os.utime(path.parent / "24.wav", (0, 0))  # another file under the same name is another recording
    with pytest.raises(TypeError):
        Manifest(path, cache=tmp_path, check="headers")[0]


def as_is(items: list[Item]) -> list[Item]:
    return items


def test_workers_agree_and_texts_are_not_kept_in_memory(write: Write) -> None:
    data = Manifest(write("many.csv", "audio,text\n" + "".join(f"a.wav,{'x' * 1000} {i}\n" for i in range(1000))))
    loaded = [item for batch in DataLoader(data, batch_size=100, num_workers=2, collate_fn=as_is) for item in batch]
    assert [item.texts["text"][1001:] for item in loaded] == [str(i) for i in range(1000)]
    assert len(pickle.dumps(data)) < 40_000
    with pytest.raises(IndexError, match="outside 0 … 999"):
        data[1000]


# ---- bad rows ---------------------------------------------------------------------------------------

BAD_CELLS = {
    "a.wav,": "text is empty",
    "a.wav, ": "text is empty",
    ",x": "audio is empty",
    "a.wav": "expected 2 cells, got 1",
    "a.wav,Hello, you": "expected 2 cells, got 3. Put a text that contains a comma in quotes",
    '"a.wav"x,x': "invalid CSV.*quote",
    '"a.wav,x': "invalid CSV.*never closed",
    "gone.wav,x": "no such file: .*gone.wav",
    "sub\\a.wav,x": "Use / as path separator",
    ".,x": "expected a file, got a folder",
    "empty.wav,x": "is empty",
    "words.wav,x": "cannot decode audio",
    "a.png,x": "cannot decode audio",
    "none.wav,x": "no samples",
    "nan.wav,x": "NaN",
    "cut.wav,x": "truncated",
    "cut.flac,x": "truncated|decode",
    "loop.wav,x": "no such file",
    "../beside.wav,x": "is outside the folder",
    "link.wav,x": "is outside the folder",
    "/etc/passwd,x": "is outside the folder",
    "a\0.wav,x": "null",
    f"{'a' * 300}.wav,x": "too long",
}
BAD_PICTURES = {
    "gone.png,x": "no such file",
    "cut.jpg,x": "damaged or truncated",
    "sound.png,x": "cannot decode image",
    "bomb.png,x": "more than 80,000,000",
}
BAD_JSON = {
    '{"audio": "a.wav"}': "got no text",
    '{"audio": "a.wav", "text": 5}': "text must be a string, got 5",
    '{"audio": "a.wav", "text": null}': "text must be a string, got null",
    '{"audio": "a.wav", "text": "x",}': "invalid JSON.*column 3[12]",
    '{"audio": "a.wav", "text": "x", "text": "y"}': "duplicate key 'text'",
    '{"audio": "a.wav", "text": "x", "n": NaN}': "NaN is not a JSON value",
    '{"audio": "a.wav", "text": "\\ud800"}': "surrogate",
    '{"image": "a.png", "caption": "x"}': "got no audio",
    '["a.wav", "x"]': "one object per line",
    "a.wav,x": "invalid JSON",
    "[" * 100_000: "nested too deeply",
    '{"audio": "a.wav", "text": "x", "n": ' + "9" * 5000 + "}": "invalid JSON: a number has more than 4,300 digits",
}
CASES = [("csv", "audio,text", "a.wav,x", bad, why) for bad, why in BAD_CELLS.items()]
CASES += [("csv", "image,caption", "a.png,x", bad, why) for bad, why in BAD_PICTURES.items()]
CASES += [("jsonl", "", '{"audio": "a.wav", "text": "x"}', bad, why) for bad, why in BAD_JSON.items()]


@pytest.mark.parametrize(("suffix", "header", "good", "bad", "why"), CASES, ids=[case[3][:40] for case in CASES])
def test_a_bad_row_is_named_or_skipped_and_counted(
    write: Write, suffix: str, header: str, good: str, bad: str, why: str
) -> None:
    """By default everything stops, with file and line; with skip_bad every other row is there."""
    path = write(f"rows.{suffix}", "\n".join([header, good, bad, good, "", good]))
    with pytest.raises(
        ManifestError, match=rf"1 of 4 rows cannot be used \(1 × (.|\n)*rows.{suffix}:3: .*({why})"
    ) as error:
        Manifest(path)
    assert len(error.value.bad) == 1
    with pytest.warns(SkippedRows, match=r"1 of 4 rows were skipped \(1 × "):
        data = Manifest(path, skip_bad=True)
    assert [data.where(i) for i in range(len(data))] == [f"rows.{suffix}:{line}" for line in (2, 4, 6)]
    assert data.bad == error.value.bad and data[2].where == f"rows.{suffix}:6"


def test_invalid_utf8_is_named_with_its_line(write: Write) -> None:
    text = "audio,text\na.wav,café\na.wav,Zürich\na.wav,x\n"
    with pytest.raises(ManifestError, match=r"2 of 3 (.|\n)*latin.csv:2: byte 0xe9 (.|\n)*latin.csv:3: byte 0xfc"):
        Manifest(write("latin.csv", text.encode("latin-1")))
    with pytest.warns(SkippedRows, match="2 of 3"):  # in the second line of a text: what stands behind it is not lost
        data = Manifest(write("two.csv", b'audio,text\na.wav,"two\ncaf\xe9"\na.wav,x\n'), skip_bad=True)
    assert [row.where for row in data.bad] == ["two.csv:2", "two.csv:3"] and data.where(0) == "two.csv:4"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        with pytest.raises(ManifestError, match=r"wide.csv: expected UTF-8, got UTF-16"):
            Manifest(write("wide.csv", text.encode(encoding)))
        with pytest.raises(ManifestError, match=r"wide.txt: expected UTF-8, got UTF-16"):
            TextFiles(write("wide.txt", "a\n".encode(encoding)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("audio,text\na.wav,x\n".encode("utf-32"), "expected UTF-8, got UTF-32"),
        ("audio,text\na.wav,x\n".encode("utf-32-le"), "expected UTF-8, got UTF-32"),
        ("audio,text\na.wav,x\n".encode("utf-32-be"), "expected UTF-8, got UTF-32"),
        (gzip.compress(b"audio,text\na.wav,x\n", mtime=0), "expected UTF-8, got gzip. Unpack it"),
        (b"PK\3\4\x14\0\6\0", "expected UTF-8, got a ZIP archive or an Excel workbook. Unpack it, or save it as CSV"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(write: Write, content: bytes, words: str) -> None:
    for name, reader in (("what.csv", Manifest), ("what.txt", TextFiles)):
        with pytest.raises(ManifestError, match=f"{name}: {words}"):
            reader(write(name, content))


def test_columns_that_are_no_columns_are_not_shown_at_length(write: Write) -> None:
    with pytest.raises(ManifestError, match="x00") as error:
        Manifest(write("binary.csv", b"zip" + b"\0" * 5_000 + b"\n"))
    assert len(str(error.value)) < 600


def test_a_bad_first_row_does_not_decide_the_kind(write: Write) -> None:
    bad = '{"image": "gone.png", "caption": "x"}\n'
    path = write("first.jsonl", bad + '{"audio": "a.wav", "text": "a"}\n{"audio": "a.wav", "text": "b"}')
    with pytest.raises(ManifestError, match=r"1 of 3 rows (.|\n)*first.jsonl:1: gone.png: no such file"):
        Manifest(path)
    with pytest.warns(SkippedRows, match="1 of 3"):
        data = Manifest(path, skip_bad=True)
    assert data.kind == "speech" and len(data) == 2
    with pytest.raises(ManifestError, match=r"usable row(.|\n)*jsonl:1: gone.png: no(.|\n)*jsonl:2: gone.wav: no such"):
        Manifest(write("first.jsonl", bad + '{"audio": "gone.wav", "text": "a"}'), skip_bad=True)


def test_columns_without_a_name_behind_the_others(write: Write) -> None:
    data = Manifest(write("excel.csv", "audio,text,,\na.wav,x,,\na.wav,y\na.wav,z, ,\n"))
    assert [data.row(i) for i in range(3)] == [{"audio": "a.wav", "text": text} for text in "xyz"]
    path = write("excel.csv", "audio,text,,\na.wav,x,,\na.wav,y,,note\na.wav,y,,,\na.wav,,,\n")
    with pytest.warns(SkippedRows, match="3 of 4"):
        data = Manifest(path, skip_bad=True)
    assert [str(row)[:60] for row in data.bad] == [
        "excel.csv:3: cell 4 is 'note', and its column has no name. N",
        "excel.csv:4: expected 2 cells, got 5. Put a text that contai",
        "excel.csv:5: text is empty",
    ]


def test_paths_outside_the_folder_are_accepted_when_allowed(write: Write, files: Path) -> None:
    path = write("out.csv", f"audio,text\n../beside.wav,x\nlink.wav,x\n{files.parent / 'beside.wav'},x\n")
    assert all(len(Manifest(path, allow_outside=True)[i].wave) == 16_000 for i in range(3))
    assert len(Manifest(write("in.csv", f"audio,text\n{files / 'a.wav'},x\n../data/a.wav,x\n"))) == 2


def test_rows_are_counted_by_reason_and_the_list_is_short(write: Write) -> None:
    path = write("lots.csv", "audio,text\n" + "gone.wav,x\n" * 30 + "a.wav,\n" * 3 + "a.wav,x\n")
    with pytest.raises(ManifestError, match=r"33 of 34 rows .*\(30 × file missing, 3 × text missing\)") as error:
        Manifest(path)
    assert len(error.value.bad) == 33 and str(error.value).endswith(
        "lots.csv:21: " + error.value.bad[0].message + "\n  … and 13 more"
    )


def test_a_damaged_file_is_found_on_opening_or_on_reading(write: Write) -> None:
    path = write("late.csv", "image,caption\na.png,x\ncut.jpg,x\n")
    with pytest.raises(ManifestError, match=r"late.csv:3: .*truncated"):
        Manifest(path)
    data = Manifest(path, check="headers")
    with pytest.raises(ManifestError, match=r"late.csv:3: .*truncated"):
        data[1]
    path = write("headers.csv", "audio,text\na.wav,x\nnone.wav,x\nwords.wav,x\ngone.wav,x\n")
    with pytest.raises(
        ManifestError, match=r"3 of 4 rows (.|\n)*csv:3: .*no samples(.|\n)*csv:4: .*cannot decode audio"
    ):
        Manifest(path, check="headers")
    with pytest.raises(ValueError, match="'full' or 'headers'"):
        Manifest(path, check="half")


def test_a_file_that_may_not_be_read_is_named(write: Write) -> None:
    if not hasattr(os, "seteuid"):
        pytest.skip("this system has no such permissions")
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        soundfile.write(folder / "a.wav", TONE, 16_000)
        (folder / "a.wav").chmod(0)
        (folder / "rows.csv").write_text("audio,text\na.wav,x\n", encoding="utf-8")
        try:
            os.seteuid(65534 if user == 0 else user)  # root may read everything
            with pytest.raises(ManifestError, match=r"rows.csv:2: .*Permission denied"):
                Manifest(folder / "rows.csv")
        finally:
            os.seteuid(user)


# ---- manifests that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("x.csv", "", "is empty"),
        ("x.csv", "\n\n", "at least one usable row"),
        ("x.csv", "audio,text\n\n", "at least one usable row"),
        ("x.jsonl", "\n", "at least one usable row"),
        ("x.csv", "audio,words\na.wav,x", "x.csv:1: expected the columns image, caption; or .*got 'audio', 'words'"),
        ("x.csv", "a.wav,x\n", "x.csv:1: .*The first line must name the columns"),
        ("x.csv", "audio, text\na.wav,x", "' text'"),
        ("x.csv", "audio;text\na.wav;x", "x.csv:1: .*separated by ';'"),
        ("x.csv", "audio\ttext\na.wav\tx", "x.csv:1: .*separated by"),
        ("x.csv", "audio,text,text\na.wav,x,x", "x.csv:1: duplicate column 'text'"),
        ("x.csv", "audio,text,image,caption\na.wav,x,a.png,x", "either images or recordings"),
        ("x.csv", '\n"audio,text\na.wav,x', "x.csv:2: invalid CSV.*never closed"),
        ("x.csv", b"audio,t\xe9xt\na.wav,x", "x.csv:1: byte 0xe9"),
        ("x.jsonl", '{"sound": "a.wav"}', "usable row(.|\n)*x.jsonl:1: expected the columns .*got 'sound'"),
        ("x.json", "[]", ".csv or .jsonl"),
        ("x.tsv", "audio\ttext", ".csv or .jsonl"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_manifest_that_cannot_be_used(write: Write, name: str, text: str | bytes, why: str, skip_bad: bool) -> None:
    with pytest.raises(ValueError, match=why):
        Manifest(write(name, text), skip_bad=skip_bad)


def test_a_missing_manifest(files: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Manifest: no such file"):
        Manifest(files / "gone.csv")
    with pytest.raises(IsADirectoryError, match="expected a file, got a folder"):
        Manifest(files)


def test_a_manifest_that_has_changed_is_not_read(write: Write) -> None:
    data = Manifest(write("moved.csv", "audio,text\na.wav,x\n"))
    write("moved.csv", "audio,text,more\na.wav,x,y\n")
    with pytest.raises(ManifestError, match=r"moved.csv has changed"):
        data[0]


# ---- plain text -----------------------------------------------------------------------------------------------------


def test_lines_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes("\ufeffÄ line.\r\n\r\n  indented\nthe last".encode())
    (tmp_path / "sub" / "a.txt").write_text("another\n", encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "notes.md").write_text("not read", encoding="utf-8")
    data = TextFiles(tmp_path)
    assert list(map(data.__getitem__, range(4))) == ["Ä line.", "  indented", "the last", "another"]
    assert [data.where(i) for i in range(4)] == ["b.txt:1", "b.txt:3", "b.txt:4", "a.txt:1"]
    assert len(TextFiles(tmp_path / "b.txt")) == 3 and list(data.lengths) == [7, 10, 8, 7]
    with pytest.raises(IndexError, match="outside"):
        data[4]
    (tmp_path / "sub" / "a.txt").write_bytes("good\ncafé\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"1 of 5 (.|\n)*a.txt:2: byte 0xe9"):
        TextFiles(tmp_path)
    with pytest.warns(SkippedRows, match="1 of 5"):
        assert len(TextFiles(tmp_path, skip_bad=True)) == 4


def test_text_files_without_text(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "none").mkdir()
    for name, why in (
        ("blank.txt", "at least one usable row"),
        ("none", "got a folder with neither"),
        ("gone.txt", "no such file"),
    ):
        with pytest.raises((ValueError, OSError), match=why):
            TextFiles(tmp_path / name)


def test_text_behind_links_is_read_once(tmp_path: Path) -> None:
    for name in ("disk", "text"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"in {name}\n", encoding="utf-8")
    (tmp_path / "text" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "text" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "text" / "loop").symlink_to(tmp_path / "text")
    (tmp_path / "text" / "up").symlink_to(tmp_path)
    assert list(TextFiles(tmp_path / "text")) == ["in text", "in disk"]


def test_a_file_that_cannot_be_read_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hello.", encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    assert len(TextFiles(tmp_path)) == 1
    (tmp_path / "broken.txt").symlink_to("gone")
    (tmp_path / "part").symlink_to(tmp_path / "unplugged")  # perhaps a folder
    (tmp_path / "wide.txt").write_text("Hello.", encoding="utf-16")
    with pytest.raises(
        ManifestError, match=r"3 of 4 rows (.|\n)*: broken.txt: no such file: (.|\n)*: part: no such (.|\n)*: wide"
    ):
        TextFiles(tmp_path)
    with pytest.warns(SkippedRows, match="3 of 4"):
        assert list(TextFiles(tmp_path, skip_bad=True)) == ["Hello."]
