"""ask, transcribe, caption, speak and chat: prompts as in training, streamed text, and how certain the model is."""

import inspect
import io
import itertools
import re
from pathlib import Path

import pytest
import soundfile
import torch

from tinyomni import TINY, Omni, cli
from tinyomni.apps import chat
from tinyomni.apps.chat import Session, join_with_pauses, split_sentences
from tinyomni.data.datasets import pixels
from tinyomni.data.tts import TALKER_VOICES
from tinyomni.dry_run import AUDIO, IMAGE, build
from tinyomni.errors import InputError
from tinyomni.evaluation.questions import generate_replies
from tinyomni.generation import stream
from tinyomni.io.audio import load_audio, load_speech
from tinyomni.io.images import open_image
from tinyomni.omni import DESCRIBE, split_audio
from tinyomni.tokenizer import BOS, EOS
from tinyomni.training import omni_mixture
from tinyomni.training.omni_examples import OmniExample
from tinyomni.training.stages.audio import AudioStage
from tinyomni.training.stages.omni import OmniStage


def answering(text: str = "Is it? Yes.") -> Omni:
    """A model that generates this text from BOS alone, and what follows the "?" in it as the reply to any question.

    Its blocks pass their input on, so that each token alone decides on the next one. Of speech it makes 2 frames.
    """
    omni = build(seed=1)
    ids = [BOS, *omni.tokenizer.encode(text), EOS]
    with torch.no_grad():
        for block in omni.thinker.blocks:
            block.attn.o_proj.weight.zero_()
            block.mlp.down.weight.zero_()
        omni.thinker.lm_head.weight.zero_()
        for now, after in itertools.pairwise(ids):  # a score of about 15; all others have about 0
            omni.thinker.lm_head.weight[after] = 0.06 * omni.thinker.norm(omni.thinker.tok_emb.weight[now])
        omni.talker.end.weight.zero_()
        omni.talker.end.bias.fill_(9.0)
    omni.thresholds = {"typed": -0.5, "spoken": -0.5, "asr": -0.01}
    return omni


@pytest.fixture(scope="module")
def omni() -> Omni:
    return answering()


@pytest.fixture(scope="module")
def weights(omni: Omni, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "omni.safetensors"
    omni.save(path)
    return str(path)


# ---- replies --------------------------------------------------------------------------------------------------------


def test_it_is_asked_as_it_was_trained() -> None:
    omni = build(seed=1)
    taught = OmniStage()
    for name in ("thinker", "vision", "audio", "proj_v", "proj_a"):
        getattr(taught, name).load_state_dict(getattr(omni, name).state_dict())
    taught.eval()
    image, audio = pixels(open_image(IMAGE).convert("RGB")), load_audio(AUDIO)
    question = [BOS, *omni.tokenizer.encode("What colour is the circle?")]
    rows = [OmniExample(question, [], image), OmniExample([BOS], [], image, audio), OmniExample([BOS], [], None, audio)]
    asked = [omni.generate("What colour is the circle?", IMAGE, max_new_tokens=6),
             omni.generate(image=IMAGE, audio=AUDIO, max_new_tokens=6),
             omni.generate(audio=AUDIO, max_new_tokens=6)]  # fmt: skip
    assert asked == generate_replies(taught, rows, omni.tokenizer, max_new_tokens=6)


def test_the_words_that_are_shared_are_the_same() -> None:
    assert DESCRIBE in omni_mixture.DESCRIBE and len(TALKER_VOICES) == TINY.talker.voices


def test_a_reply_streams_and_parts_question_from_answer(omni: Omni) -> None:
    reply = omni.reply("What is it?", IMAGE)
    pieces = list(reply)
    assert len(pieces) > 1 and "".join(pieces) == reply.text == reply.answer == "Yes."
    assert reply.transcript is None and reply.ended
    reply = omni.reply(image=IMAGE, audio=AUDIO)
    assert "".join(reply) == "Is it? Yes." and (reply.transcript, reply.answer) == (None, reply.text)
    assert not answering().reply("What?", IMAGE, max_new_tokens=1).ended


def test_the_scratchpad_stands_before_the_answer() -> None:
    omni = answering("Is it? There is a big red star on the left: Yes.")
    reply = omni.reply("What is it?", IMAGE).finish()
    description = "There is a big red star on the left"
    assert reply.text == f"{description}: Yes." and reply.parts == (None, description, None, "Yes.")
    assert omni.generate("What is it?", IMAGE) == "Yes." == omni.generate(image=IMAGE, audio=AUDIO)
    assert omni.reply(image=IMAGE, audio=AUDIO).finish().transcript == "Is it?"
    assert "".join(omni.generate("What is it?", IMAGE, stream=True)) == reply.text
    written: list[str] = []
    Session(omni, written.append).ask("What is it?")
    assert "".join(written) == f"{description}:\nYes.\n"


def test_certainty_is_the_mean_log_probability_and_nothing_else(omni: Omni) -> None:
    reply = omni.reply("What is it?", IMAGE)
    assert next(reply) == "Yes" and list(reply) == ["."]
    ids = [BOS, *omni.tokenizer.encode("What is it?"), *reply.ids]
    with torch.no_grad():  # the image changes nothing here: each token alone decides
        logits = omni.thinker(torch.tensor([ids]))[0, -1 - len(reply.ids) : -1, : omni.tokenizer.n_pieces]
    want = sum(float(row.double().softmax(0)[number].log()) for row, number in zip(logits, reply.ids, strict=True))
    assert reply.certainty == pytest.approx(want / len(reply.ids), abs=1e-5) and reply.unsure is False
    lost = omni.reply("red", max_new_tokens=1)
    "".join(lost)
    assert lost.certainty < -4 and lost.unsure is True and not lost.ended
    assert "not sure: certainty -5" in chat.uncertainty_note(lost) and chat.uncertainty_note(reply) == ""
    bare = build(seed=1).reply("red", max_new_tokens=1)
    "".join(bare)
    assert bare.unsure is None and chat.uncertainty_note(bare) == ""


# ---- speech recognition ---------------------------------------------------------------------------------------------


def test_a_spoken_question_is_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    omni, asked = answering(), []

    def embed(text: object, image: object, audio: tuple[torch.Tensor, int]) -> torch.Tensor:
        asked.append(audio)
        return Omni.embed(omni, text, image, audio)

    monkeypatch.setattr(omni, "embed", embed)
    file = str(tmp_path / "q.wav")
    soundfile.write(file, torch.nn.functional.pad(load_audio(AUDIO), (8000, 8000)), 16_000, "FLOAT")
    Session(omni, lambda _: None).ask(audio=file)
    ((wav, rate),) = asked
    assert rate == 16_000 and torch.equal(wav, omni.load_recording(file, trim=True))
    padded, trimmed = (Omni.embed(omni, audio=file, trim=trim).shape[1] for trim in (False, True))
    assert trimmed == Omni.embed(omni, audio=(wav, rate)).shape[1]
    assert padded == 50 and trimmed == omni.embed_audio(load_speech(AUDIO)[0][None]).shape[1] < 25


def test_silence_is_cut_off_only_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    omni, asked = answering(), []

    def load_recording(audio: object, trim: bool) -> torch.Tensor:
        asked.append(trim)
        return Omni.load_recording(omni, audio, trim)

    monkeypatch.setattr(omni, "load_recording", load_recording)
    for call in (omni.embed, omni.reply, omni.generate):
        for given in ({}, {"trim": False}, {"trim": True}):
            asked.clear()
            call(audio=AUDIO, **given)
            assert asked[0] is given.get("trim", False)


def test_a_reply_knows_its_prompt_and_doubts_the_scene_of_an_image_alone() -> None:
    omni = answering("There is a big red star on the left: Yes.")
    omni.thresholds = {"typed": -100.0, "spoken": -100.0, "scene": 0.5}  # no description is certain enough
    for text, image, audio in (("Is it?", IMAGE, None), ("Is it?", None, None), (None, IMAGE, AUDIO)):
        reply = omni.reply(text, image, audio).finish()
        assert reply.doubts_scene is (image is not None) and reply.unsure is reply.doubts_scene
        assert reply.prompt_tokens == omni.embed([BOS] if text is None else text, image, audio).shape[1]


def test_what_fits_the_context_is_transcribed_in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    omni, heard = answering(), []

    def recognize(wav: torch.Tensor) -> tuple[str, float]:
        heard.append(len(wav))
        return "a", -0.5

    monkeypatch.setattr(omni, "recognize", recognize)
    fits = 5.12 * 16_000  # a quarter of the context: 128 tokens of 40 ms
    for samples, parts in ((int(fits), 1), (int(fits) + 1600, 2), (int(2.9 * fits), 4)):
        heard.clear()
        wave = torch.rand(samples, generator=torch.Generator().manual_seed(0)) - 0.5
        text = "".join(omni.transcribe((wave, 16_000)))
        assert len(heard) == parts and max(heard) <= fits and text == " ".join("a" * parts)
        assert samples - 1600 < sum(heard) <= samples
    wave[60_000:61_600] = 0  # a pause of a tenth of a second
    heard.clear()
    "".join(omni.transcribe((wave, 16_000)))
    assert 60_000 < heard[0] < 61_600


def test_weights_that_do_not_fit_are_named(omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no")

    omni.save(tmp_path / "mine.safetensors")
    monkeypatch.setattr(Omni, "load_state_dict", refuse)
    for path, name in ((tmp_path / "mine.safetensors", "mine.safetensors"), (None, "omni.safetensors")):
        with pytest.raises(ValueError, match=f"the weights in {name} do not fit"):
            Omni.from_pretrained(path)


def test_the_first_voice_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    omni, voices = answering(), []

    def speech_ids(text: str, voice: int) -> torch.Tensor:
        voices.append(voice)
        return Omni.speech_ids(omni, text, voice)

    monkeypatch.setattr(omni, "speech_ids", speech_ids)
    (
        omni.speak("Red."),
        list(omni.speak("Red.", stream=True)),
        omni.speech_codes("Red."),
        list(omni.stream_codes("Red.")),
    )
    assert voices == [0] * 4 and torch.equal(omni.speech_ids("Red.", 0), Omni.speech_ids(omni, "Red."))
    assert not torch.equal(Omni.speech_ids(omni, "Red.", 1), Omni.speech_ids(omni, "Red."))


def test_transcripts_are_those_of_the_trained_ear(omni: Omni) -> None:
    recogniser = AudioStage()
    recogniser.encoder.load_state_dict(omni.audio.state_dict())
    recogniser.head.load_state_dict(omni.ctc.state_dict())
    recogniser.eval()
    transcript, (wav, _) = omni.transcribe(AUDIO), load_speech(AUDIO)
    assert "".join(transcript) == transcript.text == recogniser.transcribe([wav])[0].strip()
    with torch.no_grad():
        log_probs = recogniser.log_probs(wav[None], torch.tensor([len(wav)]))[0]
    assert transcript.certainty == pytest.approx(float(log_probs.max(-1).values.mean()), abs=1e-4)
    assert transcript.unsure is True


def test_long_recordings_are_cut_where_it_is_quiet() -> None:
    wav = torch.rand(40_000) - 0.5
    wav[11_000:14_000] *= 1e-3
    parts = list(split_audio(wav, 16_000, 1600))
    assert torch.equal(torch.cat(parts), wav) and all(len(part) <= 16_000 for part in parts)
    assert 11_000 < len(parts[0]) < 14_000
    assert [len(part) for part in split_audio(wav[:16_000], 16_000, 1600)] == [16_000]
    assert sum(map(len, split_audio(torch.rand(16_001) - 0.5, 16_000, 1600))) >= 16_001 - 1600


def test_a_rest_that_is_shorter_than_a_window_is_left_out() -> None:
    wav = torch.ones(105)
    wav[90:100] = 0  # the quietest window, so that the first part ends at 95
    assert [len(part) for part in split_audio(wav, 100, 10)] == [95, 10]
    assert [len(part) for part in split_audio(wav[:104], 100, 10)] == [95]


def test_voices_and_sentences(omni: Omni) -> None:
    assert split_sentences(" Is it? Yes.  It is! ") == ["Is it?", "Yes.", "It is!"]
    assert split_sentences("red") == ["red"]
    one, two = torch.ones(10), torch.ones(20)
    assert len(join_with_pauses([one, two])) == 30 + chat.PAUSE and torch.equal(join_with_pauses([one]), one)
    first, second = omni.speech_ids("Yes."), omni.speech_ids("Yes.", voice=1)
    assert second.shape[1] == first.shape[1] + 1 and torch.equal(second[:, 1:], first)
    with pytest.raises(ValueError, match="expected a voice in 0 … 1, got 2"):
        omni.speak("Yes.", voice=2)


def test_what_is_neither_a_text_nor_ids(omni: Omni) -> None:
    text_ids, speech_ids = inspect.unwrap(Omni.text_ids), inspect.unwrap(Omni.speech_ids)  # shape checks come first
    for ids in (b"hi", {}, [1, "a"], [1, 2**70], [1, None], [[1, 2], [3]]):
        words = rf"^Omni\.embed: expected a text, or ids as integers, got {re.escape(str(ids))}$"
        with pytest.raises(InputError, match=words):
            text_ids(omni, ids)
    for dtype in (torch.uint64, torch.int8, torch.bool, torch.float32, torch.complex64):
        with pytest.raises(InputError, match=rf"ids as integers .*, got \(1, 2\) {dtype}\. .*`ids\.long\(\)`"):
            text_ids(omni, torch.ones(1, 2).to(dtype))
    with pytest.raises(TypeError, match=r"^Omni\.speak: expected a text, got NoneType$"):
        speech_ids(omni, None)
    with pytest.raises(InputError, match=r"expected a voice in 0 … 1, got 1\.0"):
        speech_ids(omni, "Yes.", 1.0)


def test_a_seed_is_an_integer_of_64_bits(omni: Omni) -> None:
    for seed in (2**70, 1.5, "a", None, True):
        with pytest.raises(InputError, match=f"^generate: seed must be an integer of at most 64 bits, got {seed!r}$"):
            next(inspect.unwrap(stream)(omni.thinker, torch.tensor([[BOS]]), seed=seed))


# ---- commands -------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_ask_by_text_and_by_voice(capsys: pytest.CaptureFixture[str], weights: str, tmp_path: Path) -> None:
    more = ["--image", str(IMAGE), "--weights", weights]
    assert run(capsys, "ask", "What is it?", *more) == (0, "Yes.\n", "")
    status, out, _ = run(capsys, "ask", "--audio", str(AUDIO), "--speak", str(tmp_path / "a.wav"), *more)
    said, note, written = out.splitlines()
    assert status == 0 and (said, written) == ("Is it? Yes.", f"{tmp_path / 'a.wav'}: 0.36 s")
    assert note.startswith("(not sure what was said: letter by letter it was heard as ")  # this recogniser is untrained
    wave, rate = soundfile.read(tmp_path / "a.wav")
    assert (len(wave), rate) == (2 * 1280 + chat.PAUSE, 16_000)  # two sentences
    assert run(capsys, "caption", str(IMAGE), "--weights", weights)[0] == 0
    assert run(capsys, "transcribe", str(AUDIO), "--weights", weights)[0] == 0


def test_speak_says_each_sentence(capsys: pytest.CaptureFixture[str], weights: str, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    assert run(capsys, "speak", "Is it? Yes.", "-o", str(out), "--voice", "2", "--weights", weights)[0] == 0
    assert len(soundfile.read(out)[0]) == 2 * 1280 + chat.PAUSE


def test_trace_shows_that_very_run(capsys: pytest.CaptureFixture[str], weights: str) -> None:
    status, out, _ = run(capsys, "ask", "What is it?", "--image", str(IMAGE), "--weights", weights, "--trace")
    assert status == 0 and out.startswith("Yes.\n")
    assert "ViTTiny.forward" in out and "(batch 1, channels 3, height 224, width 224)" in out
    assert "tokens: image 1 + text 5 = 6 of 512" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "--image", str(IMAGE)], "there is no question. Type one, or give --audio"),
        (["ask", "What?", "--image", "nowhere.png"], "load_image: no such file: nowhere.png"),
        (["ask", "What?", "--image", str(AUDIO)], "load_image: cannot decode image"),
        (["ask", "--audio", str(IMAGE)], "load_audio: cannot decode audio"),
        (["ask", "--audio", "SILENCE"], "silent (no sample is louder than 1e-05). Was the microphone on?"),
        (["ask", "--audio", "LONG"], "5.12 s fit: cut the recording"),
        (["ask", "red " * 600], "tokens > ctx_len = 512. Shorten the text"),
        (["caption", "nowhere.png"], "load_image: no such file"),
        (["transcribe", "nowhere.wav"], "load_audio: no such file"),
        (["transcribe", "SILENCE"], "silent"),
        (["speak", " "], "speech: the text is empty"),
        (["speak", "red " * 600], "600 tokens > max_text = 512. Speak it sentence by"),
        (["speak", "Yes.", "-o", "out.mp3"], "expected a file name that ends in .wav, got out.mp3"),
        (["ask", "What?", "--speak", "out.mp3"], "expected a file name that ends in .wav, got out.mp3"),
        (["speak", "Yes.", "-o", "nowhere/out.wav"], "speech: there is no folder nowhere"),
        (["speak", "Yes.", "--weights", "nowhere"], "Omni.from_pretrained: no such file: nowhere"),
        (["export", "nowhere"], "there is no folder nowhere. First: tinyomni train all --preset laptop"),
    ],
)
def test_bad_input_names_the_step_and_the_fix(
    capsys: pytest.CaptureFixture[str], weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    omni: Omni, arguments: list[str], words: str
) -> None:  # fmt: skip
    monkeypatch.setattr(Omni, "from_pretrained", classmethod(lambda _, path, old=Omni.from_pretrained: omni
                                                             if path is None else old(path)))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    soundfile.write("SILENCE.wav", torch.zeros(16_000).numpy(), 16_000)
    soundfile.write("LONG.wav", (torch.rand(100_000) - 0.5).numpy(), 16_000)
    files = {"SILENCE": "SILENCE.wav", "LONG": "LONG.wav"}
    status, out, err = run(capsys, *(files.get(each, each) for each in arguments))
    assert status == 2 and words in err and err.startswith(f"tinyomni {arguments[0]}: ")
    assert not out and "Traceback" not in err


def test_a_conversation(
    capsys: pytest.CaptureFixture[str], weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["/speak", f"/image {tmp_path}/no.png", f'/image "{IMAGE}"', "What is it?", f"/audio {AUDIO}",
             f"/speak {tmp_path}/a.wav", "/trace", "What is it?", "/trace", "/sing", "", "/caption", "/image",
             "/caption", "/help", "/quit", "never read"]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    status, out, err = run(capsys, "chat", "--weights", weights)
    assert status == 0 and not err
    order = ["/speak: there is no answer yet", "no such file", "\nimage: ", "Yes.\n", "Is it? Yes.\n",
             "a.wav: 0.36 s", "shape tables: on", "ViTTiny.forward", "tokens: image 1", "shape tables: off",
             "/sing: no such command; /help lists them", "image: none", "caption: there is no image",
             "/image FILE"]  # fmt: skip
    places = [out.index(words) for words in order]
    assert places == sorted(places) and (tmp_path / "a.wav").is_file()


def test_a_conversation_ends_with_its_input(weights: str, capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))
    assert run(capsys, "chat", "--weights", weights)[:2] == (0, "Yes.\n")


def test_text_is_written_as_it_comes(omni: Omni) -> None:
    written: list[str] = []
    Session(omni, written.append).ask("What is it?")
    assert written == ["Yes", ".", "\n"]
