"""Makes this folder again, from the package that its recordings are taken from (README.md says where to get it):

    python data/real_speech/build.py asterisk-core-sounds-en-wav_1.6.1-1_all.deb

sounds/digits/1.wav (8 kHz, 16 bits) → digits-1.flac, the same samples; file names → metadata.csv. Samples are copied,
so the result is the same on every machine.
"""

import csv
import io
import sys
import tarfile
from pathlib import Path

import soundfile

HERE = Path(__file__).resolve().parent
SOUNDS = "./usr/share/asterisk/sounds/en_US_f_Allison/"


def words(text: str) -> list[str]:
    """Words, separated by blanks."""
    return text.split()


ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
DAYS = words("sunday monday tuesday wednesday thursday friday saturday")
MONTHS = words("january february march april may june july august september october november december")
RADIO = words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey"
)
PROMPTS = words(
    "hello goodbye hours minute minutes seconds number extension is for with your time location removed activated "
    "enabled disabled cancelled calling transfer lowercase uppercase sorry added hello-world one-moment-please "
    "telephone-number"
)
TEXTS = {
    **{f"digits/{number}": word for number, word in enumerate(ONES)},
    **{f"digits/h-{number}": word for number, word in enumerate(ORDINALS, 1)},
    **{f"digits/{10 * ten}": word for ten, word in enumerate(TENS, 2)},
    **{f"digits/h-{10 * ten}": f"{word[:-1]}ieth" for ten, word in enumerate(TENS, 2)},
    **{f"digits/{word}": word for word in ("hundred", "thousand", "million", "billion")},
    **{f"digits/h-{word}": f"{word}th" for word in ("hundred", "thousand", "million", "billion")},
    **{f"digits/day-{day}": word for day, word in enumerate(DAYS)},
    **{f"digits/mon-{month}": word for month, word in enumerate(MONTHS)},
    **{f"digits/{word}": word for word in words("minus oh today tomorrow yesterday dollars pound star at")},
    "digits/oclock": "o'clock",
    **{f"letters/{letter}": letter for letter in "abcdefghijklmnopqrstuvwxy"},
    **{f"letters/{word}": word for word in words("zed asterisk dash dollar dot equals plus slash space")},
    **{f"phonetic/{word[0]}_p": word for word in RADIO},
    "phonetic/x_p": "x ray",
    "phonetic/y_p": "yankee",
    "phonetic/z_p": "zulu",
    **{name: name.replace("-", " ") for name in PROMPTS},
}
AGAIN = {
    "phonetic/n_p": "november", "second": "second", "vm-first": "first", "vm-extension": "extension", "vm-for": "for",
    "vm-goodbye": "goodbye", "vm-minutes": "minutes", "queue-minutes": "minutes", "queue-minute": "minute",
}  # fmt: skip
"""Words that are there already, recorded a second time. queue-seconds is left out: it is a copy of seconds."""


def unpack(deb: Path) -> dict[str, bytes]:
    """The sounds in a Debian package: an `ar` archive, 60 bytes of header before each member."""
    data, at = deb.read_bytes(), 8
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as files:
                # in order: it is compressed
                return {each.name: f.read() for each in files if (f := files.extractfile(each))}
        at += 60 + size + size % 2
    raise SystemExit(f"{deb}: expected a Debian package, got a file without data.tar")


def main(deb: Path) -> None:
    """Write the recordings and metadata.csv."""
    files, rows = unpack(deb), []
    for name, text in (TEXTS | AGAIN).items():
        samples, rate = soundfile.read(io.BytesIO(files[f"{SOUNDS}{name}.wav"]), dtype="int16")
        path = HERE / f"{name.replace('/', '-')}.flac"
        soundfile.write(path, samples, rate, subtype="PCM_16")
        rows.append((path.name, text, 2 if name in AGAIN else 1))
    with (HERE / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("file_name", "transcription", "take"))
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
