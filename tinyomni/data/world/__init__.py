"""The closed world: a grammar of scenes, and of everything that can be said and asked about them.

A scene holds one to three things, each with a size, a colour, a shape and a place. From a scene follow captions, and
questions with one right answer. Beside them there are everyday phrases. All text that the models of the course read
comes from here, so every right answer is known.

    scenes → captions                things, and sentences that are true of them
    questions                        one registry of question kinds; from a scene to questions with their answers
    splits                           what is kept for validation and test, and which combinations nobody trains on
    language → lines, entropy        what the language model reads, and the lowest loss that is possible on it
    tokenizer_text                   what the tokenizer was trained on

Shipped weights were trained on what this package draws from its seeds: a change of the order in which random numbers
are drawn changes every data set.
"""

from tinyomni.data.world.language import (
    PHRASES,
    draw_line,
    entropy,
    language,
    line_spoken_in_training,
    lines_of,
    loss_floor,
    question_of,
    shuffled_words,
    spoken_in_training,
    surprisal,
)
from tinyomni.data.world.questions import (
    QUESTION_KINDS,
    Question,
    QuestionKind,
    draw_question,
    questions,
    questions_by_kind,
)
from tinyomni.data.world.scenes import (
    COLOURS,
    FIELDS,
    NUMBERS,
    PLACES,
    PLURALS,
    SHAPES,
    SIZES,
    Thing,
    captions,
    colour_shape_pairs,
    count_shape,
    description,
    hard_negatives,
    hard_scene,
    ordered_description,
    scene,
    scene_key,
    sort_by_place,
    with_article,
)
from tinyomni.data.world.splits import HELD_OUT, SPLITS, check_split, draw_scene, split_of, split_of_scene
from tinyomni.data.world.tokenizer_text import sentences, tokenizer_text, vocabulary

__all__ = [
    "COLOURS",
    "FIELDS",
    "HELD_OUT",
    "NUMBERS",
    "PHRASES",
    "PLACES",
    "PLURALS",
    "QUESTION_KINDS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Question",
    "QuestionKind",
    "Thing",
    "captions",
    "check_split",
    "colour_shape_pairs",
    "count_shape",
    "description",
    "draw_line",
    "draw_question",
    "draw_scene",
    "entropy",
    "hard_negatives",
    "hard_scene",
    "language",
    "line_spoken_in_training",
    "lines_of",
    "loss_floor",
    "ordered_description",
    "question_of",
    "questions",
    "questions_by_kind",
    "scene",
    "scene_key",
    "sentences",
    "shuffled_words",
    "sort_by_place",
    "split_of",
    "split_of_scene",
    "spoken_in_training",
    "surprisal",
    "tokenizer_text",
    "vocabulary",
    "with_article",
]
