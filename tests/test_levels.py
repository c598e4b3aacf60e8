"""Faint and loud recordings are brought to the level that the recogniser learned; others pass bit for bit."""

import torch

from tinyomni.data.tts import TTS_VOICES, utter
from tinyomni.dry_run import AUDIO
from tinyomni.io.audio import load_speech
from tinyomni.io.levels import TARGET, USUAL, normalize_level, speech_level


def test_speech_of_training_passes_unchanged() -> None:
    for voice in TTS_VOICES[:3]:
        wave = utter("What colour is the star?", voice)
        assert normalize_level(wave, 16_000) is wave


def test_the_level_is_that_of_the_loud_parts_in_decibels() -> None:
    tone = 0.1 * torch.sin(torch.arange(16_000) * 0.3)  # 0.1² / 2: -23 dB
    assert abs(speech_level(tone, 16_000) + 23.01) < 0.2
    with_pause = torch.cat([tone, torch.zeros(16_000)])
    assert abs(speech_level(with_pause, 16_000) + 23.01) < 0.2


def test_any_gain_gives_the_same_recording() -> None:
    wave, rate = load_speech(AUDIO)
    for decibels in (-50, -30, -20, 20):
        changed = normalize_level(wave * 10 ** (decibels / 20), rate)
        assert abs(speech_level(changed, rate) - TARGET) < 0.01 and USUAL[0] < TARGET < USUAL[1]
        torch.testing.assert_close(changed / changed.abs().max(), wave / wave.abs().max(), rtol=1e-4, atol=1e-5)
    silence = torch.zeros(1000)
    assert normalize_level(silence, 16_000) is silence and len(normalize_level(silence[:0], 16_000)) == 0
