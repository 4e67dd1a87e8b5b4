"""CLIP's tokenizer with a vocabulary of our own: byte-level BPE, words end in ``</w>``, padded to 77."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from . import dataset

LENGTH = 77
VOCABULARY_SIZE = 1000
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Words that prompts are full of, so that they are few tokens even where the pictures do not know them.
_COMMON_WORDS = """
a an the and or of with without in on at by to from for under over above below near next behind between left right
photo picture image drawing painting portrait landscape illustration render art style background foreground
masterpiece best quality high highly detailed ultra realistic cinematic lighting sharp focus soft bright dark
low worst bad ugly blurry blurred deformed distorted watermark text signature cropped jpeg artifacts noise
red orange yellow green blue purple pink brown black white gray grey cyan violet gold silver colorful
circle square triangle star heart ring diamond line cross moon sun cloud tree flower animal cat dog bird fish
man woman girl boy person people face hand car road bridge castle tower lake river island desert snow rain storm
one two three four five six seven eight nine ten many few several small medium large big tiny huge little
"""


def train(captions: Iterable[str]) -> CLIPTokenizer:
    """Train on captions; always gives ``VOCABULARY_SIZE`` tokens or fewer, the two special ones last."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_split_pattern(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - 256 - 2,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator([*captions, *[_COMMON_WORDS] * 50], trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*characters, *(character + "</w>" for character in characters)]
    known = set(words)
    for first, second in merges:
        if first + second not in known:
            words.append(first + second)
            known.add(first + second)
    vocabulary = {word: number for number, word in enumerate([*words, BEGIN, END])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=END,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def _split_pattern() -> object:
    from tokenizers import Regex

    return Regex(_SPLIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    train(dataset.every_caption(options.pictures)).save_pretrained(options.folder)


if __name__ == "__main__":
    main()
