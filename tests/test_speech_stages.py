"""The stages audio, codec and talker: objectives beside independent ones, data, whole small runs."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from tinyomni.audio import char_ids
from tinyomni.codec import SpeechCodec
from tinyomni.config import TINY
from tinyomni.data.datasets import Speaker, Utterance, collate_speech
from tinyomni.data.tts import TALKER_VOICES, utter
from tinyomni.errors import InputError
from tinyomni.talker import TalkerTiny, generate_batch, generate_codes, previous, voice_token
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training import augment
from tinyomni.training.augment import MAX_SHIFT, MAX_SILENCE, add_room_noise, as_recorded, vtlp
from tinyomni.training.recipe import RunDir
from tinyomni.training.stages import audio, codec, talker
from tinyomni.training.stages.audio import AudioStage, needed_tokens
from tinyomni.training.stages.codec import CodecStage, init_from_data, kmeans, pca, quantize
from tinyomni.training.stages.talker import CodeBatch, TalkerStage, corrupt_codes, speech_loss
from tinyomni.training.train import prepare, train


def said(text: str, voice: str = "en-us") -> Utterance:
    return Utterance(utter(text, voice, 190), text, Speaker(voice, 190, 50), True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A folder in which all three stages have taken their few steps."""
    run_dir = RunDir(tmp_path_factory.mktemp("speech"), "smoke")
    for stage in ("audio", "codec", "talker"):
        train(stage, run_dir)
    return run_dir


def log(run_dir: RunDir, stage: str) -> list[dict]:
    lines = (run_dir.of(stage) / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


# ---- augmentation of the wide style ----------------------------------------------------------------------------------


def test_each_change_does_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    wave = utter("What colour is the star?")
    for snr in (0.0, 20.0):
        noise = augment.add_noise(wave, snr, 1.0, generator) - wave
        assert 10 * math.log10(float(wave.square().mean() / noise.square().mean())) == pytest.approx(snr, abs=0.01)
    spectrum = torch.fft.rfft(augment.band_limit(torch.randn(16_000, generator=generator), 300.0, 3000.0)).abs()
    assert float(spectrum[6100:].max()) < 1e-3 and float(spectrum[1000:2900].mean()) > 50 * float(spectrum[:100].mean())
    tail = augment.reverberate(F.pad(torch.ones(1), (0, 15_999)), 0.4, generator)
    assert tail[0] == pytest.approx(1.0, abs=1e-3)
    early, late = (float(tail[at : at + 800].square().mean()) for at in (1, 3201))  # 0.2 s later: 30 dB fainter
    assert 10 * math.log10(early / late) == pytest.approx(30, abs=2)
    coded = augment.mu_law(wave)
    assert 0 < float((coded - wave).abs().max()) < 0.02 * float(wave.abs().max()) and len(coded.unique()) <= 256


def test_a_recording_varies_by_its_generator_alone_and_keeps_about_its_level_and_length() -> None:
    wave = utter("There is a red star.")
    found = [as_recorded(wave, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert torch.equal(found[3], as_recorded(wave, generator=torch.Generator().manual_seed(3)))
    assert len({len(each) for each in found}) > 15
    for each in found:
        assert bool(torch.isfinite(each).all()) and 0.8 < len(each) / len(wave) < 1.7 and float(each.abs().max()) < 3
    nothing = augment.SpeechAugmentation(0, reverberation=0, band=0, noise=0, clipping=0, codec=0, gain=(0, 0))
    unchanged = as_recorded(wave, nothing, torch.Generator().manual_seed(1))
    starts = range(len(unchanged) - len(wave) + 1)
    assert min(float((unchanged[at : at + 99] - wave[:99]).abs().max()) for at in starts) < 0.01


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["audio", "codec", "talker"])
def test_the_smoke_preset_runs_and_the_loss_falls(run_dir: RunDir, stage: str) -> None:
    steps = log(run_dir, stage)
    result = json.loads((run_dir.of(stage) / "result.json").read_text())
    assert result["steps"] == len(steps) and result["skipped"] == 0 and math.isfinite(result["best"])
    assert sum(s["loss"] for s in steps[-2:]) < sum(s["loss"] for s in steps[:2])


def test_custom_recordings_are_trained_on(tmp_path: Path) -> None:
    for number in range(5):
        wave = utter("one two three", rate=140 + 10 * number)
        soundfile.write(tmp_path / f"{number}.wav", torch.cat([wave] * 4).numpy(), 16_000)
    rows = "".join(f"{number}.wav,one two three\n" for number in range(5))
    (tmp_path / "own.csv").write_text("audio,text\n" + rows)
    own = RunDir(tmp_path / "runs", "smoke", tmp_path / "own.csv")
    asr, speech_codec = prepare("audio", own), prepare("codec", own)
    assert len(asr.train) == len(asr.lengths) == 4 and len(asr.stage.held_out) == 1
    batch = asr.collate([asr.train[0], asr.train[1]])
    assert batch.texts == ("one two three",) * 2 and bool(torch.isfinite(asr.stage(batch)[0]))
    assert len(speech_codec.train) == 4 and all(frames.shape[1] == 1024 for frames in speech_codec.train)
    (tmp_path / "own.txt").write_text("no audio here\n")
    with pytest.raises(ValueError, match="this stage needs speech"):
        prepare("audio", RunDir(tmp_path / "runs", "smoke", tmp_path / "own.txt"))
    with pytest.raises(InputError, match=r"talker .* takes no custom data"):
        prepare("talker", own)


# ---- the recogniser -------------------------------------------------------------------------------------------------


def test_wrong_characters_are_counted_of_all_recordings() -> None:
    one, two = said("Hello."), said("Good night.")
    stage = AudioStage()
    stage.transcribe = lambda waves: ["Hello", "Good light."]
    rate = audio.recognition(stage, [one, two])
    assert rate.parts == (1, 1) and rate.wholes == (6, 11) and rate.rate == 2 / 17


@torch.no_grad()
def test_a_batch_is_its_members_and_padding_costs_nothing() -> None:
    stage, both = AudioStage().eval(), [said("Hello."), said("There is a big red circle.")]
    together = stage(collate_speech(both))[0]
    alone = torch.stack([stage(collate_speech([each]))[0] * len(each.text) for each in both])
    torch.testing.assert_close(together, alone.sum() / sum(len(each.text) for each in both), rtol=1e-4, atol=1e-4)


def test_ctc_sums_up_every_way_to_write_a_text() -> None:
    log_probs = torch.randn(4, 1, 4).log_softmax(-1)
    total = torch.tensor(-torch.inf)
    for path in itertools.product(range(4), repeat=4):
        kept = [one for one, _ in itertools.groupby(path) if one]
        if kept == [2, 3]:
            total = torch.logaddexp(total, sum(log_probs[t, 0, c] for t, c in enumerate(path)))
    got = F.ctc_loss(log_probs, torch.tensor([2, 3]), torch.tensor([4]), torch.tensor([2]), reduction="sum")
    torch.testing.assert_close(got, -total)


@torch.no_grad()
def test_a_text_that_is_longer_than_its_audio_is_counted_and_left_out() -> None:
    stage = AudioStage().eval()
    fine, long = said("Hello."), dataclasses.replace(said("Hello."), text="ab" * 40)
    assert needed_tokens("hello") == 6  # a blank between the two l
    only, metrics = stage(collate_speech([fine, long]))
    assert metrics == {"too_long": 1}
    torch.testing.assert_close(only, stage(collate_speech([fine]))[0], rtol=1e-4, atol=1e-4)
    assert stage.weight(collate_speech([fine, long])) == 6
    nothing, metrics = stage(collate_speech([long]))
    assert float(nothing) == 0 and metrics == {"too_long": 1} and stage.weight(collate_speech([long])) == 0
    # and the rule is CTC's own: with one token less the loss is infinite
    for text in ("aab", "abc", "hello"):
        tokens, ids = needed_tokens(text), torch.tensor(char_ids(text))
        for count, finite in ((tokens, True), (tokens - 1, False)):
            scores = torch.zeros(count, 1, 99).log_softmax(-1)
            loss = F.ctc_loss(scores, ids, torch.tensor([count]), torch.tensor([len(ids)]), reduction="sum")
            assert bool(torch.isfinite(loss)) == finite


def test_vtlp_moves_bands_in_training_only() -> None:
    mel = torch.arange(128.0).expand(20, 3, 128)
    moved = vtlp(mel) - mel
    inner = moved[:, :, 8:-8]
    assert torch.allclose(inner, inner[:, :1, :1].expand_as(inner), atol=1e-4)  # one shift for each recording
    assert inner.abs().max() <= MAX_SHIFT + 1 and len(inner[:, 0, 0].unique()) > 10
    stage, one = AudioStage(), collate_speech([said("Hello.")])
    with torch.no_grad():
        assert not torch.equal(stage.train()(one)[0], stage(one)[0])
        assert torch.equal(stage.eval()(one)[0], stage(one)[0])


def test_room_noise_adds_silence_before_and_after_and_faint_noise() -> None:
    wave = torch.linspace(0.5, 1, 800)
    for seed in range(50):
        recorded = add_room_noise(wave, torch.Generator().manual_seed(seed))
        before = int((recorded > 0.3).nonzero()[0])
        behind = len(recorded) - before - 800
        assert 0 <= before <= MAX_SILENCE * 16_000 and 0 <= behind <= MAX_SILENCE * 16_000
        assert torch.equal(recorded, add_room_noise(wave, torch.Generator().manual_seed(seed)))
        noise = recorded - F.pad(wave, (before, behind))
        assert 1e-5 * 0.9 < float(noise.std()) < 10**-3 * 1.1
    assert not torch.equal(add_room_noise(wave), add_room_noise(wave))


def test_room_noise_is_added_in_training_only() -> None:
    batch, stage = collate_speech([said("Hello."), said("Good night.")]), AudioStage(room_noise=True)
    with torch.no_grad():
        tokens = stage.eval().log_probs(batch.wave, batch.samples)[1]
        assert torch.equal(tokens, (batch.samples // 160 + 3) // 4)
        noisy = [stage.train().log_probs(batch.wave, batch.samples)[1] for _ in range(3)]
    assert all(bool((more >= tokens).all()) for more in noisy) and not torch.equal(noisy[0], noisy[1])


def test_two_words_are_memorized() -> None:
    stage, both = AudioStage(), [said("one"), said("two")]
    batch = collate_speech(both)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3)
    for _ in range(60):
        stage.eval()  # without variation
        loss, _ = stage(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
    assert stage.transcribe([each.wave for each in both]) == ["one", "two"]
    assert audio.recognition(stage, both).rate == 0


# ---- the codec ------------------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_scikit_learn() -> None:
    x = torch.randn(300, 6) @ torch.randn(6, 10) + torch.randn(10)
    mean, directions = pca(x, 3)
    back = (x - mean) @ directions.T @ directions + mean
    model = PCA(3).fit(x.numpy())
    theirs = torch.from_numpy(model.inverse_transform(model.transform(x.numpy())))
    torch.testing.assert_close(back, theirs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(directions @ directions.T, torch.eye(3), atol=1e-5, rtol=1e-5)


def test_kmeans_is_as_good_as_that_of_scikit_learn_and_leaves_no_centre_empty() -> None:
    x = torch.randn(2000, 8)
    distance, nearest = torch.cdist(x, kmeans(x, 40)).min(dim=1)
    theirs = KMeans(40, n_init=1, max_iter=25, random_state=0).fit(x.numpy())
    assert float(distance.square().sum()) < 1.03 * theirs.inertia_
    assert len(nearest.unique()) == 40
    twins = torch.tensor([[0.0], [0.0], [0.0], [5.0], [9.0]])
    assert sorted(kmeans(twins, 3).flatten().tolist()) == [0, 5, 9]
    with pytest.raises(ValueError, match="at least 6 rows, got 5"):
        kmeans(twins, 6)


def residual_kmeans(x: np.ndarray, size: int) -> float:
    """The squared error of two codebooks fitted one after the other, by scikit-learn."""
    for _ in range(2):
        model = KMeans(size, n_init=1, random_state=0).fit(x)
        x = x - model.cluster_centers_[model.predict(x)]
    return float((x**2).mean())


def smooth_frames(kinds: int, count: int) -> torch.Tensor:
    """Frames without pitch ripple, of so many kinds and a little noise."""
    basis = SpeechCodec().down.weight.detach()
    x = 4 * torch.randn(kinds, 128)[torch.arange(count) % kinds] + 0.2 * torch.randn(count, 128)
    return x @ basis + torch.randn(128) @ basis


def test_init_from_data_is_a_residual_kmeans_and_beats_the_mean_by_far() -> None:
    frames = smooth_frames(100, 1500)
    stage = CodecStage([frames])
    before = stage.validate()["loss"]
    init_from_data(stage.codec, frames)
    metrics = stage.validate()
    assert metrics["loss"] < 0.5 < before
    assert metrics["utilization 0"] == 1 and metrics["utilization 1"] >= 0.9
    packed = stage.codec.down(frames)
    residual = stage.codec.rvq.in_proj(packed) - stage.codec.rvq.lookup(stage.codec.rvq.encode(packed))
    theirs = residual_kmeans(stage.codec.rvq.in_proj(packed).detach().numpy(), 128)
    assert float(residual.detach().square().mean()) < 1.1 * theirs


def test_the_gradient_goes_straight_through_the_codes() -> None:
    rvq, x = SpeechCodec().rvq, torch.randn(9, 128, requires_grad=True)
    back, commitment, codes, _ = quantize(rvq, x)
    torch.testing.assert_close(back, rvq.decode(rvq.encode(x)), atol=1e-5, rtol=1e-4)
    assert torch.equal(codes, rvq.encode(x))
    ahead = torch.randn_like(back)
    (gradient,) = torch.autograd.grad((back * ahead).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, ahead @ rvq.out_proj.weight @ rvq.in_proj.weight, atol=1e-4, rtol=1e-3)
    # an entry gets the gradient of every row that chose it, others none
    (entries,) = torch.autograd.grad((back * ahead).sum(), rvq.codebooks, retain_graph=True)
    for book in range(2):
        wanted = torch.zeros(128, 64).index_add_(0, codes[:, book], (ahead @ rvq.out_proj.weight).detach())
        torch.testing.assert_close(entries[book], wanted, atol=1e-4, rtol=1e-3)
    assert torch.autograd.grad(commitment, rvq.in_proj.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("expire", [True, False])
def test_dead_codes_are_replaced_and_stay_dead_otherwise(expire: bool) -> None:
    frames = smooth_frames(500, 2000)
    stage = CodecStage([frames])
    init_from_data(stage.codec, frames)
    with torch.no_grad():
        stage.codec.rvq.codebooks[0, 10:] = 1e3  # far away from everything
        stage.usage.fill_(codec.DEAD_CODE_THRESHOLD)
    if not expire:
        stage.expire_codes = lambda codes, residuals: 0
    for _ in range(20):
        with torch.no_grad():
            stage.train()(codec.collate([frames[torch.randint(2000, (256,))]]))
    assert (stage.validate()["utilization 0"] > 0.7) == expire


@torch.no_grad()
def test_a_padded_batch_of_frames_is_its_members() -> None:
    frames, stage = smooth_frames(50, 120), CodecStage().eval()
    torch.nn.init.normal_(stage.codec.neighbours.out.weight, std=0.1)
    parts = [frames[:90], frames[90:]]
    together = stage.reconstruct(codec.collate(parts))[1]
    alone = [stage.reconstruct(codec.collate([part]))[1] for part in parts]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    # and they are what the codec itself makes of the codes
    codes = stage.codec.rvq.encode(stage.codec.down(parts[0]))
    theirs = stage.codec.decode_frames(stage.codec.rvq.decode(codes)[None])[0]
    torch.testing.assert_close(alone[0], theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("single_frame", [False, True])
def test_training_a_codec_lowers_its_loss(single_frame: bool) -> None:
    spoken = [said("There is a big red circle on the left.", voice) for voice in ("en-us", "en-us+f3", "en-us+m3")]
    frames = codec.frames_of(SpeechCodec(single_frame=single_frame), spoken)
    stage = CodecStage(frames, single_frame=single_frame)
    assert stage.name == ("codec-single-frame" if single_frame else "codec")
    init_from_data(stage.codec, torch.cat(frames).repeat(2, 1))
    with torch.no_grad():
        stage.codec.rvq.codebooks.add_(0.3 * torch.randn_like(stage.codec.rvq.codebooks))
    before = stage.validate()["loss"]
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(30):
        loss, _ = stage.train()(codec.collate(frames))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert stage.validate()["loss"] < 0.8 * before


# ---- the Talker -----------------------------------------------------------------------------------------------------


def small_stage() -> TalkerStage:
    stage = TalkerStage()
    stage.talker = TalkerTiny(
        dataclasses.replace(TINY.talker, layers=2, talker_dim=96, intermediate_size=192, vocab=60)
    )
    return stage


def learn(stage: TalkerStage, batch: CodeBatch, steps: int) -> float:
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    for _ in range(steps):
        loss, _ = stage.train()(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stage.eval()
    with torch.no_grad():
        return float(stage(batch)[0])


def counting(frames: int) -> torch.Tensor:
    """Base codes 1, 2, 3, …, residual codes 101, 102, …"""
    one = torch.arange(1, frames + 1)
    return torch.stack([one, 100 + one], dim=-1)


@pytest.mark.parametrize("shifted_twice", [False, True])
def test_a_counting_sequence_is_learned_as_1_2_3(shifted_twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talker, "WITHOUT_TEXT", 0.0)
    monkeypatch.setattr(talker, "CORRUPTION_RATE", 0.0)
    if shifted_twice:
        monkeypatch.setattr(talker, "previous", lambda codes: previous(previous(codes)))
    stage, text = small_stage(), torch.tensor([5, 6])
    learn(stage, talker.collate([(text, counting(12))]), 60)
    said = generate_codes(stage.talker, text[None], 30)[:, 1:]
    assert (said.shape == (1, 12, 2) and torch.equal(said[0], counting(12))) != shifted_twice


def test_each_text_ends_at_its_own_length_and_a_batch_is_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talker, "WITHOUT_TEXT", 0.2)
    examples = [
        (torch.tensor([7]), counting(5)),
        (torch.tensor([8, 9, 10]), counting(11)),
        (torch.tensor([9, 8]), counting(8)),
    ]
    stage = small_stage()
    batch = talker.collate(examples)
    assert batch.frames.tolist() == [5, 11, 8] and batch.codes.shape == (3, 12, 2)
    learn(stage, batch, 120)
    codes, frames = generate_batch(stage.talker, batch.text, 40)
    assert frames.tolist() == [5, 11, 8]
    for row, (text, right) in enumerate(examples):
        alone = generate_codes(stage.talker, text[None], 40)
        assert torch.equal(alone[0, 1:], right)
        assert torch.equal(codes[row, : 1 + len(right)], alone[0])
    babble, ends = generate_batch(stage.talker, None, 6, batch=2, stop=False)
    assert babble.shape == (2, 7, 2) and ends.tolist() == [6, 6]


def test_the_loss_is_a_slow_loop_and_what_lies_behind_the_end_does_not_count() -> None:
    codes, frames = torch.randint(0, 128, (2, 6, 2)), torch.tensor([3, 5])
    base, res, end = torch.randn(2, 6, 128), torch.randn(2, 6, 128), torch.randn(2, 6)
    got = speech_loss((base, res, end), codes, frames)
    slow = torch.zeros(3)
    for row, count in enumerate(frames.tolist()):
        for t in range(count + 1):
            slow[2] -= (end[row, t].sigmoid() if t == count else 1 - end[row, t].sigmoid()).log()
            if t < count:
                slow[0] -= base[row, t].log_softmax(-1)[codes[row, t, 0]]
                slow[1] -= res[row, t].log_softmax(-1)[codes[row, t, 1]]
    torch.testing.assert_close(torch.stack(got), slow / 8)
    other = codes.clone()
    other[0, 3:] = 0
    assert torch.equal(torch.stack(speech_loss((base, res, end), other, frames)), torch.stack(got))


def test_some_codes_are_corrupted() -> None:
    codes = torch.zeros(40, 50, 2, dtype=torch.long)
    rate = float((corrupt_codes(codes, 0.1, 128) != codes).float().mean())
    assert 0.08 < rate < 0.12 and torch.equal(corrupt_codes(codes, 0.0, 128), codes)


def test_voices_are_rows_that_no_text_uses() -> None:
    rows = [voice_token(voice) for voice in range(len(TALKER_VOICES))]
    assert rows[0] == [] and len({tuple(row) for row in rows}) == len(rows)
    assert all(BPETokenizer().n_pieces <= row[0] < TINY.talker.vocab for row in rows[1:])
