"""Voices of other synthesizers: found where they are installed, refused by name where they are not."""

import numpy as np
import pytest
import torch

from tinyomni.config import SAMPLE_RATE
from tinyomni.data import other_makers, tts
from tinyomni.data.tts import utter
from tinyomni.errors import InputError
from tinyomni.training.stages.audio import PRESETS

TEXT = "There is a big red star on the left."


@pytest.mark.parametrize("voice", [*other_makers.TRAINED, *other_makers.HELD_OUT])
def test_a_voice_says_the_same_each_time(voice: str) -> None:
    if voice not in other_makers.installed([voice]):
        pytest.skip(f"{voice} is not installed")
    usual, again, fast = (utter(TEXT, voice, rate, 50) for rate in (160, 160, 200))
    assert torch.equal(usual, again) and usual.abs().max() > 0.1
    assert SAMPLE_RATE < len(usual) < 5 * SAMPLE_RATE
    if "hts" not in voice:  # that voice has a tempo of its own
        assert len(fast) < len(usual)


def test_no_voice_is_both_trained_and_held_out() -> None:
    assert not set(other_makers.TRAINED) & set(other_makers.HELD_OUT)
    assert not any(voice.startswith("festival:") for voice in other_makers.TRAINED)


def test_what_is_not_installed_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_makers, "engine", lambda maker: None)
    assert other_makers.installed(other_makers.TRAINED) == () and other_makers.resolve("installed") == ""
    for call in (lambda: utter(TEXT, "pico:en-GB"), lambda: other_makers.resolve("flite,pico")):
        with pytest.raises(InputError, match=r"not installed: (pip install ttspico|apt install flite)"):
            call()


def test_an_unknown_voice_or_maker_is_refused() -> None:
    with pytest.raises(InputError, match="there is no voice 'flite:nobody'"):
        utter(TEXT, "flite:nobody")
    for makers in ("festival", "flite;pico", "all"):
        with pytest.raises(InputError, match="makers must be 'installed' or some of flite, pico, sam"):
            other_makers.resolve(makers)


def test_makers_are_written_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_makers, "engine", lambda maker: "1" if maker in ("flite", "festival") else None)
    assert PRESETS["laptop"].makers == "installed" and PRESETS["smoke"].makers == ""
    assert other_makers.resolve("installed") == "flite"
    assert other_makers.voices_of("flite") == ("flite:awb", "flite:rms") and other_makers.voices_of("") == ()


def test_the_cache_tells_makers_and_versions_apart(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(tts, "utter", lambda *_: torch.from_numpy(np.ones(3, np.float32)))
    versions = iter(("1", "2"))
    monkeypatch.setattr(other_makers, "engine", lambda maker: next(versions))
    tts.engine.cache_clear()
    cache = tts.SpeechCache(tmp_path)
    cache.utter("Yes.", "flite:rms")
    tts.engine.cache_clear()
    cache.utter("Yes.", "flite:rms")
    tts.engine.cache_clear()
    assert len(list(tmp_path.glob("*.npy"))) == 2
