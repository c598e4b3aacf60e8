"""Stage thinker: the right tokens are predicted, and the lowest loss is the grammar's entropy."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from tinyomni.cli import main
from tinyomni.config import ThinkerConfig
from tinyomni.data import world
from tinyomni.data.datasets import Lines
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, EOS, PAD, BPETokenizer
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import Settings
from tinyomni.training.stages.thinker import ThinkerStage, collate, line_nats, next_token_loss
from tinyomni.training.train import prepare, train

ENCODE = BPETokenizer().encode
SMALL = ThinkerConfig(layers=2, d_model=32, heads=2, kv_heads=2, intermediate_size=64)


def test_the_loss_is_that_of_each_next_token_padding_left_out() -> None:
    ids = torch.tensor([[BOS, 7, 5, EOS], [BOS, 6, EOS, PAD]])
    logits = torch.randn(2, 4, 9)
    surprise = [
        -logits[row, at].log_softmax(0)[ids[row, at + 1]] for row, at in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    assert torch.allclose(next_token_loss(logits, ids), torch.stack(surprise).mean())
    only = torch.zeros_like(ids, dtype=torch.bool)
    only[0, 3] = True  # EOS is learned like any other token
    assert torch.allclose(next_token_loss(logits, ids, only), surprise[2])
    assert ThinkerStage(ENCODE, SMALL).weight(ids) == 5


def test_a_line_stands_between_bos_and_eos() -> None:
    ids = collate(["What do you see?", "Yes, please."], ENCODE)
    assert ids[:, 0].tolist() == [BOS, BOS] and ids[0].tolist() == [BOS, *ENCODE("What do you see?"), EOS]
    assert ids[1].tolist() == [BOS, *ENCODE("Yes, please."), EOS] + [PAD] * (
        len(ids[1]) - len(ENCODE("Yes, please.")) - 2
    )


def test_padding_changes_no_loss() -> None:
    stage = ThinkerStage(ENCODE, SMALL).eval()
    lines = [world.draw_line("validation", index) for index in range(20)]
    together, tokens = line_nats(stage.thinker, ENCODE, lines)
    alone = torch.cat([line_nats(stage.thinker, ENCODE, [line])[0] for line in lines])
    assert torch.allclose(together, alone, atol=1e-4)
    assert tokens.tolist() == [len(ENCODE(line)) + 1 for line in lines]


def test_a_model_that_knows_the_grammar_reaches_its_entropy() -> None:
    """A model that gives each token the probability that it has in the grammar is neither above nor below."""
    lines = sorted(world.surprisal("train"))
    weight = {line: math.exp(-nats) for line, nats in world.surprisal("train").items()}
    behind: dict[tuple[int, ...], float] = {}  # how likely a line begins with these ids
    for line in lines:
        ids = (*ENCODE(line), EOS)
        for end in range(len(ids) + 1):
            behind[ids[:end]] = behind.get(ids[:end], 0.0) + weight[line]

    class Oracle(ThinkerLM):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            logits = torch.full((*ids.shape, 1400), -1e9)
            for row, line in enumerate(ids.tolist()):
                for at in range(len(line)):
                    seen = tuple(line[1 : at + 1])
                    for token in {line[min(at + 1, len(line) - 1)]}:
                        share = behind.get((*seen, token), 0.0) / behind.get(seen, 1.0)
                        logits[row, at, token] = math.log(share) if share else -1e9
                    rest = 1 - logits[row, at].exp().sum()
                    logits[row, at, 1399] = math.log(max(float(rest), 1e-30))
            return logits

    drawn = [world.draw_line("train", index) for index in range(200)]
    nats, _ = line_nats(Oracle(SMALL), ENCODE, drawn)
    assert torch.allclose(nats, torch.tensor([world.surprisal("train")[line] for line in drawn]), atol=2e-3)


def test_it_learns(tmp_path: Path) -> None:
    settings = Settings(steps=60, batch_size=16, lr=1e-2, warmup=5, eval_every=60)
    stage = ThinkerStage(ENCODE, SMALL)
    before = stage.eval().validate()["loss"]
    result = Job(stage, Lines("train", 960), partial(collate, encode=ENCODE), settings).run(RunDir(tmp_path, "smoke"))
    assert result.validation["loss"] < 0.5 * before and result.validation["excess_loss"] > 0
    again = RunDir(tmp_path, "smoke").trained(ThinkerStage(ENCODE, SMALL))
    assert again.validate()["loss"] == pytest.approx(result.validation["loss"], rel=1e-3) and not again.training


def test_the_train_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.txt"
    own.write_text("The cat sat on the mat.\nThe dog sat on the log.\n" * 20, encoding="utf-8")
    out = ["--preset", "smoke", "--out", str(tmp_path / "runs"), "--data", str(own)]
    assert main(["train", "tokenizer", *out]) == 0
    assert "cat" in " ".join(BPETokenizer(tmp_path / "runs" / "tokenizer" / "tokenizer.model").pieces("The cat sat."))
    assert main(["train", "thinker", *out, "--set", "steps=3", "--set", "batch_size=4"]) == 0
    assert "thinker: 3 steps" in capsys.readouterr().out
    assert main(["curves", str(tmp_path / "runs" / "thinker"), "--out", str(tmp_path / "curves.png")]) == 0
    for wrong, words in (
        (["thinker", "--set", "lr"], "KEY=VALUE"),
        (["thinker", "--set", "speed=3"], "unknown setting 'speed'"),
        (["thinker", "--set", "steps=many"], "steps must be an int, got 'many'"),
        (["thinker", "--set", "lr=abc"], "lr must be a float, got 'abc'"),
        (["codec", "--set", "single_frame=1"], "single_frame must be True or False, got '1'"),
        (["thinker", "--set", "unfreeze_encoders=True"], "unknown setting 'unfreeze_encoders'"),
        (["all", "--set", "speed=3"], "unknown setting 'speed'"),
        (["all", "--data", str(own)], "belongs to one stage"),
        (["omni"], "First: tinyomni train"),
    ):
        assert main(["train", *wrong, "--preset", "smoke", "--out", str(tmp_path / "new")]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("count", [2, 5, 39, 40])
def test_custom_text_is_validated_on_lines_that_are_not_trained_on(count: int, tmp_path: Path) -> None:
    lines = [f"Line number {number} of the text." for number in range(count)]
    (tmp_path / "own.txt").write_text("\n".join(lines), encoding="utf-8")
    job = prepare("thinker", RunDir(tmp_path / "runs", "smoke", tmp_path / "own.txt"))
    train_lines = [str(job.train[index]) for index in range(len(job.train))]
    held_out = list(job.stage.held_out)
    assert sorted(train_lines + held_out) == sorted(lines) and len(held_out) == max(1, count // 20)
    metrics = job.stage.eval().validate()
    nats, tokens = line_nats(job.stage.thinker, ENCODE, held_out)
    assert metrics == {"loss": pytest.approx(float(nats.sum() / tokens.sum()))}  # the grammar has no say here


def test_the_same_command_trains_the_same_weights(tmp_path: Path) -> None:
    losses = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        changes = {"steps": "2", "batch_size": "2", "warmup": "0", "seed": seed}
        train("thinker", RunDir(tmp_path / name, "smoke"), changes)
        log = (tmp_path / name / "thinker" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in log if "loss" in json.loads(line)])
    assert losses[0] == losses[1] != losses[2]
