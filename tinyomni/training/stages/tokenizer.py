"""Stage tokenizer: byte-pair encoding learned on text. The only stage without gradients.

    lines of text → SentencePiece → tokenizer/tokenizer.model

The text is the closed world's, or `--data`: a text file, or a folder of them. A new tokenizer makes all weights that
were trained with another one worthless, so it comes first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tinyomni.data.manifests import TEXT
from tinyomni.data.world import tokenizer_text
from tinyomni.tokenizer import train_tokenizer
from tinyomni.training import distributed
from tinyomni.training.recipe import RunDir
from tinyomni.training.settings import PRESETS, Overridable, check_at_most
from tinyomni.training.stages import StageSpec, register


@dataclass(frozen=True)
class TokenizerSettings(Overridable):
    """How to train the tokenizer."""

    vocab: int = 5000  # pieces at most: the rows of the Thinker's table

    def __post_init__(self) -> None:
        check_at_most(self)


@dataclass(frozen=True)
class TokenizerJob:
    """The text, ready to be learned."""

    lines: Iterable[str]
    settings: TokenizerSettings

    def run(self, run_dir: RunDir) -> None:
        """Write the model file. An existing one stays: other stages may have been trained with it."""
        path = run_dir.of("tokenizer") / "tokenizer.model"
        group = distributed.start()
        if group.is_main and not path.exists():
            train_tokenizer(self.lines, path, self.settings.vocab)
        group.barrier()


def build(run_dir: RunDir, settings: TokenizerSettings) -> TokenizerJob:
    """Lines of the closed world, or of `--data`."""
    if run_dir.data is None:
        return TokenizerJob(tokenizer_text(), settings)
    texts = run_dir.custom_data(TEXT)
    return TokenizerJob((str(texts[index]) for index in range(len(texts))), settings)


SPEC = register(StageSpec("tokenizer", dict.fromkeys(PRESETS, TokenizerSettings()), build))
