"""Prompts that name a mood, and the tokenizer of the words in them."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from liveavatar.model.text_encoder import END_TOKEN_ID

MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("calm", "neutral", "quiet", "relaxed", "ordinary", "young", "old", "", "", "",
              "平静的"),
    "happy": ("smiling", "happy", "cheerful", "joyful", "delighted", "laughing", "friendly", "glad",
              "merry", "微笑的", "开心的", "高兴的", "快乐的"),
    "surprised": ("surprised", "amazed", "astonished", "shocked", "startled", "wide-eyed",
                  "惊讶的", "吃惊的"),
    "serious": ("serious", "sad", "angry", "stern", "grumpy", "worried",
                "严肃的", "悲伤的", "生气的"),
}  # fmt: skip
_PEOPLE = ("person", "man", "woman", "girl", "boy", "speaker", "presenter", "teacher", "portrait",
           "character", "cartoon", "人", "女人", "男人")  # fmt: skip
_LOOKS = ("with glasses", "with long hair", "with dark curls", "with a beard", "in a blue shirt",
          "with a black bob", "in an orange hoodie", "with auburn hair", "in a navy blazer",
          "with round glasses", "with a white beard", "with red hair", "in a green jumper",
)  # fmt: skip
_DOES = ("speaks", "talks to the camera", "tells a story", "presents the news", "greets us",
         "chats with viewers", "says hello", "explains something", "remembers the past", "sings",
         "speaks warmly", "gently talks", "is speaking")  # fmt: skip
_WHERE = ("before a peach studio wall", "in a bright blue archway", "against soft green lights",
          "in a lilac room", "by a sunlit cream-coloured arch", "under a clear blue sky", "indoors",
          "in a studio", "in front of a window", "at night", "on a stage", "in a garden",
)  # fmt: skip
_ADVERBS: dict[str, tuple[str, ...]] = {
    "plain": ("calmly", "clearly", ""),
    "happy": ("happily", "cheerfully", "with a big smile", "with joy"),
    "surprised": ("in surprise", "with surprise", "in amazement"),
    "serious": ("seriously", "sadly", "angrily"),
}


def random_prompt(random: np.random.Generator, mood: str) -> str:
    """Write a sentence that asks for a mood; "plain" asks for none."""
    word = str(random.choice(MOOD_WORDS[mood]))
    kind = random.random()
    if kind < 0.2:
        return word
    if kind < 0.35 and mood != "plain":
        return f"{random.choice(_PEOPLE)} {random.choice(_DOES)} {random.choice(_ADVERBS[mood])}"
    parts = [str(random.choice(("A", "The", "An", "a", "one", "一个"))), word]
    if random.random() < 0.3:
        parts.append(_nonsense(random))
    parts.append(str(random.choice(_PEOPLE)))
    for choices, share in ((_LOOKS, 0.5), (_DOES, 0.7), (_WHERE, 0.6)):
        if random.random() < share:
            parts.append(str(random.choice(choices)))
    if random.random() < 0.2:
        parts.append(str(random.choice(_ADVERBS[mood])))
    return " ".join(filter(None, parts)) + ("." if random.random() < 0.5 else "")


def make_tokenizer() -> Tokenizer:
    """Make a unigram tokenizer of the known words and of single characters, with umT5's ids."""
    lists = (*MOOD_WORDS.values(), *_ADVERBS.values(), _PEOPLE, _LOOKS, _DOES, _WHERE)
    known = sorted({word for words in lists for text in words for word in text.split()})
    pieces = [f"▁{word}" for word in known if word.isascii()]
    pieces += [word.removesuffix("的") for word in known if not word.isascii()]
    pieces += [f"▁{word.capitalize()}" for word in known if word.isascii()]
    letters = ["▁", "的", *map(chr, range(33, 127)), *map(chr, range(192, 256))]
    unique = list(dict.fromkeys(pieces))
    scored = [(piece, -6.0) for piece in unique]
    scored += [(letter, -9.0) for letter in letters if letter not in set(unique)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END_TOKEN_ID)]
    )
    return tokenizer


def _nonsense(random: np.random.Generator) -> str:
    """A word nobody knows, so that unknown words come to mean nothing."""
    letters = random.choice(list("abcdefghijklmnopqrstuvwxyz"), int(random.integers(3, 9)))
    return "".join(letters)
