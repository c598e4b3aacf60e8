"""Public data sets in their real formats, in small; bucketed batches; the train/validation split; `data inspect`."""

import json
import random
import unicodedata
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchaudio.datasets import LJSPEECH

from tinyomni.cli import main
from tinyomni.data.bucketing import bucketed_batches
from tinyomni.data.corpora import CocoCaptions, LibriSpeech, LJSpeech
from tinyomni.data.custom import inspect, open_data, train_validation_split
from tinyomni.data.manifests import Manifest, ManifestError, SkippedRows, TextFiles
from tinyomni.errors import InputError
from tinyomni.tokenizer import BPETokenizer


def tone(seconds: float, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate) * 0.5


# ---- LJSpeech -------------------------------------------------------------------------------------------------------

LINES = [
    'LJ001-0001|The "Mazarin Bible", 1455,|The "Mazarin Bible", fourteen fifty-five,',
    'LJ001-0002|a quote " alone|a quote " alone',
    "LJ001-0003|Düsseldorf, “so called”|Düsseldorf, “so called”",
]


@pytest.fixture
def ljspeech(tmp_path: Path) -> Path:
    folder = tmp_path / "LJSpeech-1.1"
    (folder / "wavs").mkdir(parents=True)
    (folder / "README").write_text("The LJ Speech Dataset", encoding="utf-8")
    (folder / "metadata.csv").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    for number in (1, 2, 3):
        soundfile.write(folder / "wavs" / f"LJ001-000{number}.wav", tone(number, 22_050), 22_050, subtype="PCM_16")
    return folder


def test_ljspeech(ljspeech: Path, tmp_path: Path) -> None:
    data = LJSpeech(ljspeech, cache=tmp_path / "cache")
    assert [[data.row(i)["written"], data.row(i)["text"]] for i in range(3)] == [
        row[1:] for row in LJSPEECH(tmp_path)._flist
    ]
    assert list(data.lengths) == [1, 2, 3] and data[2].where == "metadata.csv:3"
    want = torch.from_numpy(tone(2, 16_000)).float()
    torch.testing.assert_close(data[1].wave[500:-500], want[500:-500], atol=0.02, rtol=0)
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("LJ001-0004|only written", "expected 3 cells .* got 2"),
        ("LJ001-0001|written|", "text is empty"),
        ("LJ001-0004|no|sound", "no such file"),
        ("../../x|out|side", "is outside the folder"),
        ("LJ001-0001|a|b|c", "expected 3 cells .* got 4"),
    ],
)
def test_ljspeech_with_a_bad_row(ljspeech: Path, line: str, why: str) -> None:
    with (ljspeech / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ManifestError, match=rf"1 of 4 rows (.|\n)*metadata.csv:4: .*{why}"):
        LJSpeech(ljspeech)
    with pytest.warns(SkippedRows, match="1 of 4"):
        assert len(LJSpeech(ljspeech, skip_bad=True)) == 3


def test_ljspeech_whose_first_line_is_a_bad_one(ljspeech: Path) -> None:
    path = ljspeech / "metadata.csv"
    path.write_text("no row\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.warns(SkippedRows, match="1 of 4"):
        assert len(open_data(ljspeech, skip_bad=True)) == 3


# ---- LibriSpeech ----------------------------------------------------------------------------------------------------


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    part = tmp_path / "LibriSpeech" / "dev-clean"
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text("; ID |SEX| SUBSET\n84 | F | dev-clean | 8.02 | x\n")
    for reader, chapter, count in (("84", "121123", 2), ("1272", "128104", 1)):
        (folder := part / reader / chapter).mkdir(parents=True)
        names = [f"{reader}-{chapter}-{number:04}" for number in range(count)]
        text = "".join(f"{name} GO DO YOU HEAR {number}\n" for number, name in enumerate(names))
        (folder / f"{reader}-{chapter}.trans.txt").write_text(text)
        for number, name in enumerate(names, 1):
            soundfile.write(folder / f"{name}.flac", tone(number, 16_000), 16_000, subtype="PCM_16")
    return part


def test_librispeech(librispeech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LibriSpeech(librispeech)
    assert [data.where(i) for i in range(3)] == ["1272-128104-0000", "84-121123-0000", "84-121123-0001"]
    assert data[2].texts == {"text": "GO DO YOU HEAR 1", "reader": "84", "chapter": "121123"}
    torch.testing.assert_close(data[2].wave, torch.from_numpy(tone(2, 16_000)).float(), atol=1e-4, rtol=0)
    monkeypatch.chdir(librispeech.parent)
    assert len(LibriSpeech("dev-clean")) == 3
    # the root with all parts, a part of Mini LibriSpeech, a chapter, and all of them by `open_data`
    librispeech.rename(librispeech.parent / "dev-clean-2")
    for path, count in ((librispeech.parent, 3), (Path("dev-clean-2"), 3), (Path("dev-clean-2/84/121123"), 2)):
        found = open_data(path)
        assert isinstance(found, LibriSpeech) and len(found) == count and found[0].wave is not None


def test_a_linked_part_of_librispeech_is_not_left_out_silently(librispeech: Path, tmp_path: Path) -> None:
    (root := tmp_path / "root").mkdir()
    (root / "train-clean-100").symlink_to(librispeech)
    assert isinstance(data := open_data(root, allow_outside=True), LibriSpeech) and len(data) == 3
    with pytest.raises(ManifestError, match=r"usable row(.|\n)*is outside the folder .*--allow-outside"):
        open_data(root)
    (librispeech.parent / "same").symlink_to(librispeech)
    assert len(LibriSpeech(librispeech.parent)) == 3
    (librispeech.parent / "train-clean-360").symlink_to(tmp_path / "unplugged")
    with pytest.raises(ManifestError, match=r"1 of 4 rows (.|\n)*train-clean-360: expected data, got a link to .*unpl"):
        LibriSpeech(librispeech.parent)
    with pytest.warns(SkippedRows, match="1 of 4"):
        assert len(LibriSpeech(librispeech.parent, skip_bad=True)) == 3


def test_transcripts_of_librispeech_as_they_are_found(librispeech: Path) -> None:
    chapter = librispeech / "84" / "121123"
    text = chapter / "84-121123.trans.txt"
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b"\n", b"\r\n\r\n"))
    (chapter / "._84-121123-0000.flac").write_bytes(b"Mac OS X")
    (chapter / "._84-121123.trans.txt").write_bytes(b"Mac OS X")
    data = LibriSpeech(librispeech)
    assert [data.row(i)["text"] for i in range(3)] == ["GO DO YOU HEAR 0", "GO DO YOU HEAR 0", "GO DO YOU HEAR 1"]


def test_a_chapter_without_transcripts_is_not_left_out_silently(librispeech: Path) -> None:
    (librispeech / "84" / "121123" / "84-121123.trans.txt").unlink()
    with pytest.raises(ManifestError, match=r"2 of 3 rows cannot be used \(2 × text missing\)"):
        LibriSpeech(librispeech)
    with pytest.warns(SkippedRows, match="2 of 3"):
        assert len(LibriSpeech(librispeech, skip_bad=True)) == 1


def test_transcripts_are_never_read_as_plain_text(librispeech: Path) -> None:
    text = librispeech / "84" / "121123" / "84-121123.trans.txt"
    found = open_data(text)
    assert isinstance(found, LibriSpeech) and len(found) == 2 and found[0].wave is not None
    text.write_bytes(text.read_text().replace("HEAR 0", "HEAR \u2028 \x0b 0").encode())  # no ends of lines
    assert len(open_data(text)) == 2
    text.write_bytes(text.read_text().encode("utf-16"))
    with pytest.raises(ManifestError, match=r"84-121123\.trans\.txt: expected UTF-8, got UTF-16"):
        open_data(librispeech)


def test_a_recording_of_librispeech_with_another_name(librispeech: Path) -> None:
    chapter = librispeech / "84" / "121123"
    (chapter / "84-121123-0001.flac").rename(chapter / "0001.flac")
    text = chapter / "84-121123.trans.txt"
    text.write_text(text.read_text().replace("84-121123-0001", "0001"))
    with pytest.raises(ManifestError, match=r"1 of 3 rows (.|\n)*0001: expected a name such as 19-198-0000 .*got 0001"):
        LibriSpeech(librispeech)


def damage_librispeech(part: Path, how: str) -> None:
    chapter = part / "84" / "121123"
    text = chapter / "84-121123.trans.txt"
    if how == "text without audio":
        (chapter / "84-121123-0001.flac").unlink()
    elif how == "audio without text":
        text.write_text(text.read_text().splitlines()[0])
    elif how == "empty text":
        text.write_text(text.read_text().splitlines()[0] + "\n84-121123-0001\n")
    elif how == "not UTF-8":
        text.write_bytes(text.read_bytes().replace(b"HEAR 1", b"CAF\xc9"))
    elif how == "the same name twice":
        text.write_text(text.read_text() + "84-121123-0001 SOMETHING ELSE\n")
    else:
        whole = (chapter / "84-121123-0001.flac").read_bytes()
        (chapter / "84-121123-0001.flac").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("text without audio", "expected a recording beside the text"),
        ("audio without text", "expected a text in the .trans.txt"),
        ("empty text", "expected a text behind the name in 84-121123.trans.txt"),
        ("not UTF-8", "byte 0xc9 is not valid UTF-8"),
        ("the same name twice", "two lines of 84-121123.trans.txt have this name"),
        ("cut off", "truncated|decode"),
    ],
)
def test_incomplete_librispeech(librispeech: Path, how: str, why: str) -> None:
    damage_librispeech(librispeech, how)
    with pytest.raises(ManifestError, match=rf"1 of 3 rows (.|\n)*84-121123-0001: .*({why})"):
        LibriSpeech(librispeech)
    with pytest.warns(SkippedRows, match="1 of 3"):
        assert len(LibriSpeech(librispeech, skip_bad=True)) == 2


def test_a_folder_that_is_not_librispeech(librispeech: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        LibriSpeech(librispeech / "gone")
    empty = librispeech.parent / "test-clean"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"expected \*.trans.txt files in .*test-clean or below, found none"):
        LibriSpeech(empty)


# ---- COCO -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    whole = {
        "info": {"description": "COCO 2017 Dataset", "year": 2017, "date_created": "2017/09/01"},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
        "images": [
            {"license": 4, "file_name": f"{number:012}.jpg", "coco_url": f"http://images.cocodataset.org/{number}",
             "height": 48, "width": 64, "date_captured": "2013-11-14 17:02:52", "id": number}
            for number in (397133, 37777)
        ],
        "annotations": [
            {"image_id": 37777, "id": 38, "caption": "The dining table \"near\" the kitchen."},
            {"image_id": 397133, "id": 49, "caption": "A man in a café.\n"},
            {"image_id": 37777, "id": 57, "caption": "A kitchen."},
        ],
    }  # fmt: skip
    for entry, colour in zip(whole["images"], ("red", "blue"), strict=True):
        Image.new("RGB", (64, 48), colour).save(tmp_path / "val2017" / entry["file_name"])
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def test_coco(coco: Path) -> None:
    data = CocoCaptions(coco)
    assert [data[i].texts["caption"] for i in range(3)] == [
        entry["caption"].strip() for entry in json.loads(coco.read_text(encoding="utf-8"))["annotations"]
    ]
    assert [int(data[i].pixels.mean(dim=(1, 2)).argmax()) for i in range(3)] == [2, 0, 2]
    assert data[1].where == "captions_val2017.json, annotation 49"
    assert len(CocoCaptions(coco, coco.parent.parent / "val2017")) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda whole: whole["annotations"][1].update(image_id=5), "annotation 49: image_id 5 is not among"),
        (lambda whole: whole["annotations"][1].update(caption=" "), "annotation 49: caption is empty"),
        (
            lambda whole: whole["annotations"][1].update(caption=None),
            "annotation 49: caption must be a string, got null",
        ),
        (lambda whole: whole["annotations"][1].update(image_id=None), "49: image_id must be an integer, got null"),
        (lambda whole: whole["annotations"][1].update(image_id="7"), '49: image_id must be an integer, got "7"'),
        (lambda whole: whole["annotations"][1].pop("image_id"), "49: image_id must be an integer, got null"),
        (lambda whole: whole["annotations"][1].clear(), r"annotations\[1\]: image_id must be an integer, got null"),
        (lambda whole: whole["annotations"].__setitem__(1, None), r"annotations\[1\]: expected id, image_id and capt"),
        (lambda whole: whole["images"][0].update(file_name=None), "annotation 49: image_id 397133 is not among"),
        (lambda whole: whole["images"].__setitem__(0, 7), "annotation 49: image_id 397133 is not among"),
        (lambda whole: whole["annotations"][1].pop("caption"), "annotation 49: caption must be a string, got null"),
        (lambda whole: whole["annotations"][1].update(caption=["x"]), "annotation 49: caption must be a string, got"),
        (lambda whole: whole["images"].append({"id": 397133, "file_name": "x"}), "49: two images have the id 397133"),
        (lambda whole: whole["images"][0].update(file_name="gone.jpg"), "annotation 49: gone.jpg: no such file"),
        (lambda whole: whole["images"][0].update(file_name="../x.jpg"), "annotation 49: .*is outside the folder"),
    ],
)
def test_coco_with_a_bad_row(coco: Path, change: Callable[[dict], None], why: str) -> None:
    whole = json.loads(coco.read_text(encoding="utf-8"))
    change(whole)
    coco.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ManifestError, match=rf"1 of 3 rows (.|\n)*{why}"):
        CocoCaptions(coco)
    with pytest.warns(SkippedRows, match="1 of 3"):
        assert len(CocoCaptions(coco, skip_bad=True)) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"images": [{"id": 1, "file_name": "a"}], "annot', "damaged or truncated"),
        ('{"images": [{"id": 1, "file_name": "\\', "damaged or truncated"),
        ("{}", "at least one usable row"),
        ("[1, 2]", "at least one usable row"),
        ('{"images": [], "annotations": [{"id": 2, "bbox": []}]}', "usable row(.|\n)*annotation 2: image_id must be"),
        ('{"images": [7], "annotations": []}', "at least one usable row"),
        ("\ufeff" * 2 + "{}", "damaged or truncated: lexical error"),
        ("", "is empty"),
        (
            '{"images": [{"id": 1, "x": ' + "1" * 4_301 + "}]}",
            "numbers of at most 640 digits, got a longer one at byte 27",
        ),
        ('{"images": [{"id": 1, "x": 1e' + "9" * 20 + "}]}", "exponents of at most 18 digits, got a longer one"),
        ('{"info": ' + "[" * 100_000 + "]" * 100_000 + "}", "at least one usable row"),
        ('{"info": ' + "[" * 100_000, "damaged or truncated"),
        ('{"info": ' + "[" * 100_000 + "}" * 100_000 + "}", "damaged or truncated"),
        ('{"info": "\\ud800", "images": [{"id": 1, "file_name": "a\n"}]}', "damaged or truncated: Invalid control"),
    ],
)
def test_a_file_that_is_not_coco(coco: Path, text: str, why: str) -> None:
    coco.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=why):
        CocoCaptions(coco)


@pytest.mark.parametrize("half", ["", "\\ud800"])  # for either parser
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a": ', "}"), ('["]", {"[": [', "]}]")])
def test_a_caption_that_is_nested_too_deeply_costs_one_row_of_coco(coco: Path, start: str, end: str, half: str) -> None:
    before = coco.read_text(encoding="utf-8")
    deep = start * 100_000 + '"x"' + end * 100_000
    text = before.replace('"A kitchen."', deep).replace('"id": 49', f'"id": 49, "more": ["{half}", {deep}]')
    assert text.count(deep) == 2
    coco.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"1 of 3 rows (.|\n)*annotation 57: caption must be a string, got [\[{]"):
        CocoCaptions(coco)
    with pytest.warns(SkippedRows, match="1 of 3"):
        assert len(CocoCaptions(coco, skip_bad=True)) == 2
    assert coco.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("half", ["", "\\ud800"])  # for either parser
@pytest.mark.parametrize(
    ("old", "why"),
    [
        ('"caption": "A man', "duplicate key 'caption'"),
        ('"file_name": "000000397133', "397133: duplicate key 'file_name'"),
    ],
)
def test_a_key_of_coco_that_occurs_twice(coco: Path, old: str, why: str, half: str) -> None:
    text = coco.read_text(encoding="utf-8").replace("{", f'{{"half": "{half}", ', 1)
    coco.write_text(text.replace(old, f'{old.partition(":")[0]}: "x", {old}'), encoding="utf-8")
    with pytest.raises(ManifestError, match=f"1 of 3 rows (.|\n)*annotation 49: .*{why}"):
        CocoCaptions(coco)


def test_coco_with_a_text_that_is_not_utf8(coco: Path) -> None:
    coco.write_bytes(coco.read_bytes().replace(b"file_name", b"file_\xc0\x80ame", 1))  # overlong
    with pytest.raises(ManifestError, match="damaged: a text in it is not valid UTF-8"):
        CocoCaptions(coco)


def test_coco_with_a_byte_order_mark(coco: Path) -> None:
    coco.write_bytes(b"\xef\xbb\xbf" + coco.read_bytes())
    assert len(CocoCaptions(coco)) == 3


def test_coco_in_utf16(coco: Path) -> None:
    text = coco.read_text(encoding="utf-8")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        coco.write_bytes(text.encode(encoding))
        with pytest.raises(ManifestError, match=r"captions_val2017.json: expected UTF-8, got UTF-16\. Save the file"):
            CocoCaptions(coco)


def test_brackets_digits_and_escapes_in_texts_of_coco(coco: Path) -> None:
    captions = ["[" * 200, "1" * 5_000, 'a quote " and \\', "\\ud800", "\U0001f600"]
    whole = json.loads(coco.read_text(encoding="utf-8"))
    whole["annotations"] = [{"id": i, "image_id": 37777, "caption": text} for i, text in enumerate(captions)]
    whole["info"] = [[]] * 200  # beside each other, not in each other
    coco.write_text(json.dumps(whole), encoding="utf-8")
    data = CocoCaptions(coco)
    assert [data.row(i)["caption"] for i in range(len(data))] == captions


@pytest.mark.parametrize("half", ["\ud800", "a\ude00\ud83d", "\\\ud83d", "\U0001f600\ude00", "\ud83d\\ude00"])
def test_half_of_a_surrogate_pair_costs_one_row_of_coco(coco: Path, half: str) -> None:
    whole = json.loads(coco.read_text(encoding="utf-8"))
    whole["annotations"][1]["caption"] = half
    coco.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(
        ManifestError, match=r"1 of 3 rows (.|\n)*annotation 49: caption contains an unpaired surrogate"
    ):
        CocoCaptions(coco)
    with pytest.warns(SkippedRows, match="1 of 3"):
        data = CocoCaptions(coco, skip_bad=True)
    assert data.row(1)["caption"] == "A kitchen."
    whole["annotations"][1]["caption"], whole["images"][0]["file_name"] = "x", half
    coco.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"1 of 3 rows (.|\n)*annotation 49: image contains an unpaired surrogate"):
        CocoCaptions(coco)


def test_coco_without_images(coco: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image folder"):
        CocoCaptions(coco, "gone")


# ---- bucketed batches -----------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.floats(0, 100), max_size=200)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5), st.integers(0, 5), st.integers(1, 10))
@settings(deadline=None)
def test_every_index_occurs_once_per_epoch(lengths: list[float], size: int, seed: int, epoch: int, window: int) -> None:
    batches = bucketed_batches(lengths, size, seed, epoch, window)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
    assert batches == bucketed_batches(array("d", lengths), size, seed, epoch, window)


def padding(batches: list[list[int]], lengths: list[float]) -> float:
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / sum(lengths) - 1


def test_bucketed_batches_have_little_padding_and_a_new_order_each_epoch() -> None:
    rng = random.Random(0)
    lengths = [rng.uniform(1, 15) for _ in range(5000)]
    order = rng.sample(range(5000), 5000)
    assert padding([order[at : at + 32] for at in range(0, 5000, 32)], lengths) > 0.7
    assert padding(bucketed_batches(lengths, 32), lengths) < 0.03
    for other in (bucketed_batches(lengths, 32, epoch=1), bucketed_batches(lengths, 32, seed=1)):
        assert not set(map(frozenset, bucketed_batches(lengths, 32))) & set(
            map(frozenset, other)
        )  # other neighbours, too
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in bucketed_batches(lengths, 32)]
    assert means[:50] != sorted(means[:50])  # long and short batches are mixed


def test_lengths_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        bucketed_batches([1.0, float("nan")], 2)
    with pytest.raises(ValueError, match="at least 1"):
        bucketed_batches([1.0], 2, window=0)


# ---- training and validation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 19, 20, 39, 40, 41, 4000, 9000])
def test_no_row_is_on_both_sides_of_the_split(tmp_path: Path, count: int) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {number}\n" for number in range(count)), encoding="utf-8")
    train, validation = train_validation_split(data := TextFiles(tmp_path))
    assert sorted([*train.indices, *validation.indices]) == list(range(count))
    assert len(validation) == max(1, min(200, count // 20)) and validation[0] == data[validation.indices[0]]
    again, _ = train_validation_split(TextFiles(tmp_path))
    assert again.indices == train.indices


def test_adding_rows_hardly_changes_the_split(tmp_path: Path) -> None:
    chosen = []
    for count in (1000, 1100):
        (tmp_path / "a.txt").write_text("".join(f"line {number}\n" for number in range(count)), encoding="utf-8")
        chosen.append(set(train_validation_split(TextFiles(tmp_path))[1].indices))
    assert len(chosen[0] & chosen[1]) >= 45


def test_rows_about_one_file_stay_on_one_side(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    rows = "".join(f"{number % 12}.png,text {number}\n" for number in range(60))  # five captions per image, as in COCO
    (tmp_path / "rows.csv").write_text(f"image,caption\n{rows}", encoding="utf-8")
    data = open_data(tmp_path / "rows.csv")
    train, validation = train_validation_split(data)
    sides = [{data.row(index)["image"] for index in part.indices} for part in (train, validation)]
    assert not sides[0] & sides[1] and len(sides[1]) == 1 and len(validation) == 5
    # where there is only one image, its rows are split all the same
    (tmp_path / "rows.csv").write_text("image,caption\n" + "0.png,x\n0.png,y\n0.png,z\n", encoding="utf-8")
    train, validation = train_validation_split(open_data(tmp_path / "rows.csv"))
    assert (len(train), len(validation)) == (2, 1)
    # a last group that reaches to the end is trained on
    for number, names in enumerate((("0", "1", "1", "1"), ("1", "0", "0", "0"))):
        (tmp_path / f"{number}.csv").write_text("image,caption\n" + "".join(f"{name}.png,x\n" for name in names))
        train, validation = train_validation_split(data := open_data(tmp_path / f"{number}.csv"))
        assert not {data.row(i)["image"] for i in train.indices} & {data.row(i)["image"] for i in validation.indices}


def test_a_file_that_is_spelled_in_two_ways_stays_on_one_side(tmp_path: Path) -> None:
    chosen = []
    for form in ("NFC", "NFD"):
        (folder := tmp_path / form).mkdir()
        for number in range(20):
            Image.new("L", (8, 8), number).save(folder / unicodedata.normalize(form, f"\u00e9{number}.png"))
        rows = [f"\u00e9{n}.png,x\n./e\u0301{n}.png,y\n{folder}/\u00e9{n}.png,z\n" for n in range(20)]
        (folder / "rows.csv").write_text(f"image,caption\n{''.join(rows)}", encoding="utf-8")
        train, validation = train_validation_split(open_data(folder / "rows.csv"))
        sides = [{index // 3 for index in part.indices} for part in (train, validation)]
        assert not sides[0] & sides[1] and len(sides[1]) == 1
        chosen.append(sides[1])
    assert chosen[0] == chosen[1]  # wherever the folder lies


def test_a_single_row_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"a.txt: expected at least 2 rows, one to train on and one to validate on; got 1"
    ):
        train_validation_split(TextFiles(tmp_path / "a.txt"))


# ---- inspection -----------------------------------------------------------------------------------------------------


def test_each_loader_is_found_by_what_is_on_disk(ljspeech: Path, librispeech: Path, coco: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Hello.", encoding="utf-8")
    (tmp_path / "rows.csv").write_text("audio,text\nLJSpeech-1.1/wavs/LJ001-0001.wav,x\n", encoding="utf-8")
    for path, loader in (
        (ljspeech, LJSpeech), (librispeech, LibriSpeech), (coco, CocoCaptions), (tmp_path / "rows.csv", Manifest),
        (tmp_path / "text", TextFiles), (tmp_path / "text" / "a.txt", TextFiles),
    ):  # fmt: skip
        assert type(open_data(path)) is loader and inspect(path).rows == len(open_data(path))
    assert "0.00 hours (6.0 s), mean 2.0 s, longest 3.0 s" in str(inspect(ljspeech))
    assert "characters outside the recogniser's alphabet: 'ü' (1 ×), '“' (1 ×), '”' (1 ×)" in str(inspect(ljspeech))


@pytest.mark.parametrize(
    ("header", "suffix", "kind"),
    [
        ("file_name,text", "png", "caption"),
        ("file_name,caption", "png", "caption"),
        ("file_name,transcription", "wav", "speech"),
        ("file_name,question,answer", "png", "question"),
    ],
)
def test_an_image_or_audio_folder(header: str, suffix: str, kind: str, tmp_path: Path) -> None:
    for name in "ab":
        if suffix == "png":
            Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
        else:
            soundfile.write(tmp_path / f"{name}.wav", tone(1, 16_000), 16_000)
    texts = ["x"] * header.count(",")
    rows = [",".join([f"{name}.{suffix}", *texts]) for name in "ab"]
    (tmp_path / "metadata.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    data = open_data(tmp_path)
    assert isinstance(data, Manifest) and data.kind == kind and len(data) == 2
    lines = [json.dumps(dict(zip(header.split(","), row.split(","), strict=True))) for row in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "metadata.csv").unlink()
    data = open_data(tmp_path)
    assert isinstance(data, Manifest) and data.kind == kind and len(data) == 2


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("file_name,text,caption", "'caption': 'text' and 'caption' both stand for it. Keep one of them"),
        ("file_name,text,transcription", "'text': 'text' and 'transcription' both stand for it. Keep one of them"),
    ],
)
def test_two_columns_of_a_folder_that_stand_for_one_of_ours(header: str, names: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(f"{header}\na,x,y\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=f"metadata.csv:1: duplicate column {names}"):
        open_data(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    row = json.dumps(dict.fromkeys(header.split(","), "x"))
    (tmp_path / "metadata.jsonl").write_text(row, encoding="utf-8")
    with pytest.raises(ManifestError, match=f"metadata.jsonl:1: duplicate column {names}"):
        open_data(tmp_path)


@pytest.mark.parametrize("header", ["\n \nfile_name,text", "image,caption", "\ufefffile_name,text"])
def test_a_folder_whose_header_is_no_line_of_ljspeech(header: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(f"{header}\na.png,x\n", encoding="utf-8")
    assert open_data(tmp_path)[0].texts == {"caption": "x"}


@pytest.mark.parametrize("header", ["image,caption", '\ufeff"caption", "image"', "Image,Caption,more"])
def test_captions_with_a_bar_are_no_ljspeech(header: str, tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,red | {number}\n" for number in range(3))
    (tmp_path / "metadata.csv").write_text(f"{header}\n{rows}", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"metadata.csv:\d: (?!expected 3 cells)"):
        open_data(tmp_path)
    for number in range(3):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text(f"image,caption\n{rows}", encoding="utf-8")
    assert len(open_data(tmp_path)) == 3


def test_ljspeech_about_images(ljspeech: Path) -> None:
    path = ljspeech / "metadata.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("1455,", "1455, image, audio,"), encoding="utf-8")
    assert isinstance(open_data(ljspeech), LJSpeech)


def test_a_text_beside_data_is_not_taken_for_the_data(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("cat\n", encoding="utf-8")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "train" / "cat" / "0.png")
    assert isinstance(open_data(tmp_path), TextFiles)  # texts with a picture
    Image.new("RGB", (32, 32), "red").save(tmp_path / "train" / "cat" / "1.PNG")
    with pytest.raises(
        ManifestError, match=r"expected a manifest or text alone, got 2 images or recordings, and 1 .txt"
    ):
        open_data(tmp_path)
    for suffix in ("csv", "jsonl"):
        (tmp_path / "train" / f"metadata.{suffix}").touch()
        with pytest.raises(ManifestError, match=rf"got metadata.{suffix} in train/\. Open that folder"):
            open_data(tmp_path)
        (tmp_path / "train" / f"metadata.{suffix}").unlink()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("File_Name,Text\na.wav,x\n", "metadata.csv:1: .*Write their names in small letters"),
        ("file_name|text\na.wav|x\n", r"metadata.csv:1: .*separated by '\|': use commas"),
        ("file_name,text\na.wav,x\n", "metadata.csv:2: a.wav: expected an image, got a recording. .*transcription"),
        ("file_name,text\n._a.png,x\n", r"metadata.csv:2: ._a.png: expected data, got a `\._\*` file.*Delete the row"),
    ],
)
def test_hints_for_a_folder_fit_the_cause(content: str, words: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16_000), 16_000)
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    (tmp_path / "metadata.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError, match=words):
        open_data(tmp_path)


def test_what_macos_leaves_beside_files_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hello.", encoding="utf-8")
    (tmp_path / "._a.txt").write_bytes(b"\0\5Mac OS X \xff")
    assert list(open_data(tmp_path)) == ["Hello."]
    assert "ignored: 1 `._*` files" in str(inspect(tmp_path))
    assert "ignored: 1 `._*` files" in str(inspect(tmp_path / "a.txt"))


def test_accents_are_found_in_either_form(tmp_path: Path) -> None:
    for on_disk, written in (("NFC", "NFD"), ("NFD", "NFC")):
        (folder := tmp_path / on_disk).mkdir()
        soundfile.write(folder / unicodedata.normalize(on_disk, "caf\u00e9.wav"), tone(1, 16_000), 16_000)
        name = unicodedata.normalize(written, "caf\u00e9.wav")
        (folder / "rows.csv").write_text(f"audio,text\n{name},x\n", encoding="utf-8")
        assert len(Manifest(folder / "rows.csv")) == 1
    (folder := tmp_path / "te\u0302te").mkdir()
    soundfile.write(folder / "\u00e9.wav", tone(1, 16_000), 16_000)
    (tmp_path / "rows.csv").write_text(
        "audio,text\nt\u00eate/\u00e9.wav,x\n./t\u00eate/e\u0301.wav,x\n", encoding="utf-8"
    )
    assert len(Manifest(tmp_path / "rows.csv")) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("audio,text\ra.wav,x\r", "expected lines that end with LF, got CR alone"),
        ("sep=,\naudio,text\na.wav,x\n", "Delete this line, which only Excel reads"),
        ("audio,text\na.wav,x\ra.wav,y\r\n", "a line ends with CR alone. Save it with LF"),
        ("Audio,Text\na.wav,x\n", "Write their names in small letters, without spaces around them"),
        ("audio, text\na.wav, x\n", "Write their names in small letters, without spaces around them"),
        ('audio,text\na.wav,"' + "x" * 200_000 + '"\n', "a cell has more than 131,072 characters"),
    ],
)
def test_hints_fit_the_cause(content: str, words: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16_000), 16_000)
    (tmp_path / "rows.csv").write_bytes(content.encode())
    with pytest.raises(ManifestError, match=words):
        Manifest(tmp_path / "rows.csv")


def test_inspect_lists_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16_000), 16_000)
    soundfile.write(tmp_path / "long.wav", tone(6, 16_000), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).normal(size=64_000) * 0.1, 16_000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:60_000])
    rows = ["audio,text", "a.wav,one", "long.wav,two", "silent.wav,ü\ufffd", "cut.flac,x", "gone.wav,x", "a.wav,one"]
    rows += [f"a.wav,{'mm' * 12}", f"long.wav,{'word ' * 600}"]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    found = inspect(path)
    assert found.rows == 6 and found.seconds == 16 and dict(found.unknown) == {"ü": 1, "\ufffd": 1}
    assert {remark.split(" ")[-1]: where for remark, where in found.notes.items()} == {
        "prompt": ["rows.csv:3", "rows.csv:9"],
        "silent": ["rows.csv:4"],
        "row": ["rows.csv:7"],
        "second)": ["rows.csv:8", "rows.csv:9"],
        "EOS": ["rows.csv:9"],
    }
    assert [row.where for row in found.bad] == ["rows.csv:5", "rows.csv:6"]
    assert main(["data", "inspect", str(path)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("rows.csv: 6 rows of audio, text, and 2 that cannot be used\n  audio: 0.00 hours (16.0 s)")
    assert "cannot be used: 1 × file not readable, 1 × file missing\n  ✘ rows.csv:5: " in said
    path.write_text("audio,text\na.wav,one\n", encoding="utf-8")
    assert main(["data", "inspect", str(path)]) == 0
    path.write_text("audio,text\ngone.wav,one\n", encoding="utf-8")
    assert main(["data", "inspect", str(path)]) == 1
    assert capsys.readouterr().out.endswith(
        "rows.csv: 0 rows, and 1 that cannot be used\n  cannot be used: 1 × file missing\n"
        f"  ✘ rows.csv:2: gone.wav: no such file: {tmp_path / 'gone.wav'}. Is the path right?\n"
    )
    path.write_text("sound,text\na.wav,one\n", encoding="utf-8")
    assert main(["data", "inspect", str(path)]) == 2 and "rows.csv:1: expected the columns" in capsys.readouterr().err


def test_inspect_counts_the_tokens_of_a_question_with_its_image(tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    encode = BPETokenizer().encode
    fits = 512 - 3 - len(encode("1"))  # BOS, EOS, image
    for count, remarks in ((fits, 0), (fits + 1, 1)):
        question = "0" * (count - len(encode("0")) + 1)  # each digit is a token
        (tmp_path / "rows.csv").write_text(f"image,question,answer\na.png,{question},1\n", encoding="utf-8")
        found = inspect(tmp_path / "rows.csv")
        assert found.tokens == found.longest_tokens == count + len(encode("1"))
        assert len(found.notes) == remarks and not found.unknown
