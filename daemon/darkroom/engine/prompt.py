"""Prompts to embeddings, of any length, for one text encoder (SD 1, SD 2) or two (SDXL).

A text encoder reads 77 tokens: a begin, 75 of the prompt, an end. A longer prompt is read in chunks of 75, each with
its own begin and end, and their embeddings are laid end to end, as A1111 does. Done here, not by the pipelines of
diffusers, because these cut at 77 and their ``clip_skip`` fails with transformers 5.6 and later.

The way of a text: ``_tokenize`` → tokens → ``split`` → chunks → ``_read`` → embeddings. Weights of words would join the
tokens, and ``BREAK`` the chunks, without a change to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from darkroom.engine.pipeline import Pipeline
from darkroom.errors import RenderFailed
from darkroom.events import Warned
from darkroom.job import Job

BACKTRACK = 20
"""A chunk ends after a comma if there is one among its last this many tokens."""


@dataclass(frozen=True)
class Embeddings:
    """What the UNet is told about one text."""

    tokens: torch.Tensor
    """(1, 77 × chunks, width): an embedding a token."""
    pooled: torch.Tensor | None = None
    """(1, width): one for the whole text, SDXL only."""


@dataclass(frozen=True)
class Conditioning:
    """Both texts of a job. ``negative`` is None where there is no guidance, and so no use for it."""

    positive: Embeddings
    negative: Embeddings | None
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True)
class _Text:
    """A text in one tokenizer's tokens: ``cut`` is what did not fit and was left out."""

    chunks: list[list[int]]
    cut: str | None


@torch.inference_mode()
def encode(pipeline: Pipeline, job: Job, *, guided: bool) -> Conditioning:
    """Read the job's prompt, and its negative prompt if ``guided``.

    Raises RenderFailed where ``clip_skip`` is more than the text encoder has layers.
    """
    texts = {"prompt": job.prompt} | ({"negative_prompt": job.negative_prompt} if guided else {})
    warnings: dict[str, Warned] = {}
    read: dict[str, list[tuple[torch.Tensor, torch.Tensor | None]]] = {field: [] for field in texts}
    for tokenizer, encoder in zip(pipeline.tokenizers, pipeline.text_encoders, strict=True):
        room = int(encoder.config.max_position_embeddings) - 2
        tokenized = {field: _tokenize(tokenizer, text, room, job.long_prompt) for field, text in texts.items()}
        longest = max(len(text.chunks) for text in tokenized.values())
        for field, text in tokenized.items():
            if text.cut is not None:
                warnings.setdefault(field, _truncated(field, room, text.cut))
            chunks = text.chunks + [[]] * (longest - len(text.chunks))
            read[field].append(_read(pipeline, tokenizer, encoder, chunks, job.clip_skip))
    positive = _join(read["prompt"])
    negative = _join(read["negative_prompt"]) if guided else None
    if negative is not None and not job.negative_prompt and pipeline.zero_empty_negative:
        negative = Embeddings(
            torch.zeros_like(negative.tokens), None if negative.pooled is None else torch.zeros_like(negative.pooled)
        )
    return Conditioning(positive, negative, tuple(warnings.values()))


def split(tokens: Sequence[int], comma: int | None, room: int = 75) -> list[list[int]]:
    """Tokens in chunks of at most ``room``; at least one chunk, which may be empty.

    Where a comma stands in the last 20 places of a full chunk, the chunk ends after it, so that a phrase is not torn.
    """
    chunks = []
    rest = list(tokens)
    while len(rest) > room:
        end = room
        if rest[room] != comma:
            commas = [place for place in range(max(room - BACKTRACK, 0), room) if rest[place] == comma]
            end = commas[-1] + 1 if commas else room
        chunks.append(rest[:end])
        rest = rest[end:]
    return [*chunks, rest]


def _tokenize(tokenizer: Any, text: str, room: int, long_prompt: str) -> _Text:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = list(encoded["input_ids"])
    if long_prompt == "chunk" or len(tokens) <= room:
        return _Text(split(tokens, _comma(tokenizer), room), None)
    begin = encoded["offset_mapping"][room][0]
    return _Text([tokens[:room]], text[begin:])


def _comma(tokenizer: Any) -> int | None:
    tokens = tokenizer(",", add_special_tokens=False)["input_ids"]
    return int(tokens[0]) if len(tokens) == 1 else None


def _truncated(field: str, room: int, cut: str) -> Warned:
    name = field.replace("_", " ")
    return Warned(
        "prompt_truncated",
        f'The {name} is longer than {room} tokens, and its end was left out; with "long_prompt": "chunk" all is used.',
        cut,
    )


def _read(
    pipeline: Pipeline, tokenizer: Any, encoder: Any, chunks: list[list[int]], clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (1, 77 × chunks, width) and the pooled one (1, width) of the first chunk, if the encoder has one."""
    length = int(encoder.config.max_position_embeddings)
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    framed = [[begin, *chunk, end] for chunk in chunks]
    ids = torch.tensor([chunk + [pad] * (length - len(chunk)) for chunk in framed], device=pipeline.device)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        mask = torch.tensor([[1] * len(chunk) + [0] * (length - len(chunk)) for chunk in framed], device=ids.device)
    output = encoder(ids, attention_mask=mask, output_hidden_states=True)
    tokens = _layer(pipeline, encoder, output, clip_skip).flatten(0, 1).unsqueeze(0)
    pooled = output.text_embeds[:1] if "text_embeds" in output else None
    return tokens, pooled


def _layer(pipeline: Pipeline, encoder: Any, output: Any, clip_skip: int) -> torch.Tensor:
    """The hidden state that ``clip_skip`` means, counted from the last layer, which is 1: (chunks, 77, width).

    SD reads the last layer and normalises. SDXL was trained on the last but one, as it is: its 1 and 2 are the same,
    in A1111 and ComfyUI too.
    """
    layers = len(output.hidden_states) - 1
    if clip_skip > layers:
        raise RenderFailed(
            f"clip_skip is {clip_skip}, but the model's text encoder has only {layers} layers; use 1 to {layers}"
        )
    if pipeline.penultimate:
        hidden: torch.Tensor = output.hidden_states[-max(clip_skip, 2)]
        return hidden
    if clip_skip == 1:
        last: torch.Tensor = output.last_hidden_state
        return last
    model = getattr(encoder, "text_model", encoder)  # transformers before 5.6 had one level more
    normalised: torch.Tensor = model.final_layer_norm(output.hidden_states[-clip_skip])
    return normalised


def _join(parts: list[tuple[torch.Tensor, torch.Tensor | None]]) -> Embeddings:
    """Both encoders' embeddings of a token side by side; the pooled one is the last encoder's."""
    return Embeddings(torch.cat([tokens for tokens, _ in parts], dim=-1), parts[-1][1])
