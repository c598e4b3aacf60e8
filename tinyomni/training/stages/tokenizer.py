"""The tokenizer: byte-pair encoding learned on text. The only stage without gradients.

The text is the closed world's, or `--data`: a text file, or a folder of them. A new tokenizer makes all weights that
were trained with another one worthless, so it comes first.
"""

from tinyomni.data.world import tokenizer_text
from tinyomni.tokenizer import train_tokenizer
from tinyomni.training.recipe import Place


def train(place: Place) -> None:
    """Write `tokenizer/tokenizer.model`. One that is there stays: other stages may have been trained with it."""
    path = place.of("tokenizer") / "tokenizer.model"
    if path.exists():
        return
    if place.data is None:
        train_tokenizer(tokenizer_text(), path)
    else:
        texts = place.own("lines of text")
        train_tokenizer((str(texts[index]) for index in range(len(texts))), path)
