"""Prompts to embeddings, of any length, for one text encoder (SD 1, SD 2) or two (SDXL).

A text encoder reads 77 tokens: a begin, 75 of the prompt, an end. A longer prompt is read in chunks of 75, each with
its own begin and end, and their embeddings are laid end to end, as A1111 does. Done here, not by the pipelines of
diffusers, because these cut at 77 and their ``clip_skip`` fails with transformers 5.6 and later.

The way of a text: ``parse`` → fragments of one weight → ``_tokenize`` → tokens → ``split`` → chunks → ``_read`` →
embeddings, weighed by ``emphasise``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch

from darkroom.engine.pipeline import Pipeline
from darkroom.engine.readings import Conditioning, Embeddings, Texts
from darkroom.errors import RenderFailed
from darkroom.events import Warned
from darkroom.job import Job
from darkroom.prompt_syntax import Fragment, edits, parse, take_loras

BACKTRACK = 20
"""A chunk ends after a comma if there is one among its last this many tokens."""

HEAVIEST = 100.0
"""Weights are refused beyond this, either way: they make noise of a picture, and no numbers at all in float16."""


class _Token(NamedTuple):
    number: int
    weight: float
    place: int
    """Where it begins in the prompt as it was written."""


@dataclass(frozen=True)
class _Text:
    """A text in one tokenizer's tokens: ``cut`` is what did not fit and was left out."""

    chunks: list[list[_Token]]
    cut: str | None


def recall(pipeline: Pipeline, job: Job, *, guided: bool) -> Conditioning | None:
    """What ``encode`` makes of the job, where ``read`` did lately: then no text encoder need be woken."""
    return None if pipeline.adapts_texts else pipeline.readings.get(Texts.of(job, guided=guided))


def read(pipeline: Pipeline, job: Job, *, guided: bool) -> Conditioning:
    """As ``encode``, and kept for ``recall``."""
    conditioning = encode(pipeline, job, guided=guided)
    if not pipeline.adapts_texts:
        pipeline.readings.keep(Texts.of(job, guided=guided), conditioning)
    return conditioning


@torch.inference_mode()
def encode(pipeline: Pipeline, job: Job, *, guided: bool) -> Conditioning:
    """Read the job's prompt, and its negative prompt if ``guided``.

    All texts are filled up to as many chunks as the longest has with any of the tokenizers. Raises RenderFailed where
    ``clip_skip`` is more than a text encoder has layers, and for weights beyond reason.
    """
    texts = {"prompt": _untagged(job.prompt)} | ({"negative_prompt": job.negative_prompt} if guided else {})
    parsed = {field: _parse(field, text) for field, text in texts.items()}
    warned = [warning for field, text in texts.items() for warning in edited(field, text)]
    warnings: dict[str, Warned] = {}
    tokenized: list[dict[str, _Text]] = []
    for tokenizer, encoder in zip(pipeline.tokenizers, pipeline.text_encoders, strict=True):
        room = int(encoder.config.max_position_embeddings) - 2
        read = {field: _tokenize(tokenizer, texts[field], parsed[field], room, job.long_prompt) for field in texts}
        for field, text in read.items():
            if text.cut is not None:
                warnings.setdefault(field, _truncated(field, room, text.cut))
        tokenized.append(read)
    longest = max(len(text.chunks) for read in tokenized for text in read.values())
    embedded = {
        field: _join(
            [
                _read(pipeline, tokenizer, encoder, _filled_up(read[field].chunks, longest), job.clip_skip)
                for tokenizer, encoder, read in zip(pipeline.tokenizers, pipeline.text_encoders, tokenized, strict=True)
            ]
        )
        for field in texts
    }
    negative = embedded.get("negative_prompt")
    if negative is not None and not job.negative_prompt and pipeline.zero_empty_negative:
        negative = Embeddings(
            torch.zeros_like(negative.tokens), None if negative.pooled is None else torch.zeros_like(negative.pooled)
        )
    return Conditioning(embedded["prompt"], negative, (*warned, *warnings.values()))


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


def emphasise(embeddings: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Embeddings of chunks, (chunks, 77, width), with each token's multiplied by its weight, (chunks, 77).

    As A1111's ``EmphasisOriginal``: afterwards each chunk is scaled so that its mean, over all tokens and features, is
    what it was (https://github.com/AUTOMATIC1111/stable-diffusion-webui, modules/sd_emphasis.py). That presupposes a
    mean well away from 0. Where the new mean is not between the lightest weight (or a tenth) and the heaviest times the
    old one, the two are rounding and chance, the scale might be any number, and the chunk is left as it is weighed:
    A1111's "No norm". Chunks of weight 1 throughout come back to the bit.
    """
    if bool((weights == 1).all()):
        return embeddings
    plain = embeddings.float()
    weighed = plain * weights.unsqueeze(-1)
    change = weighed.mean(dim=(1, 2)) / plain.mean(dim=(1, 2))
    slack = 0.001 * weights.abs().amax(1)  # for rounding, where all weights are the same
    sound = (change >= weights.amin(1).clamp(min=0.1) - slack) & (change <= weights.amax(1) + slack)
    restored = weighed / torch.where(sound, change, 1.0).view(-1, 1, 1)
    heavy = (weights != 1).any(1).view(-1, 1, 1)
    return torch.where(heavy, restored, plain).to(embeddings.dtype)


def _untagged(prompt: str) -> str:
    """Without its LoRA tags, which are no words: ``engine.lora`` does what they ask for."""
    return take_loras(prompt)[0]


def _parse(field: str, text: str) -> list[list[Fragment]]:
    name = field.replace("_", " ")
    sections = parse(text)
    for fragment in (fragment for section in sections for fragment in section):
        if not abs(fragment.weight) <= HEAVIEST:
            raise RenderFailed(
                f'In the {name}, "{fragment.text[:40].strip()}" has the weight {fragment.weight:g}; weights may be '
                f"up to {HEAVIEST:g} (a round bracket that is meant as one is written \\( )"
            )
    return sections


def _tokenize(tokenizer: Any, text: str, sections: list[list[Fragment]], room: int, long_prompt: str) -> _Text:
    """The fragments of ``text`` in tokens, each fragment by itself, as A1111 reads them."""
    tokens = [[token for fragment in section for token in _tokens(tokenizer, fragment)] for section in sections]
    if long_prompt == "truncate":  # to one chunk, in which a BREAK has nothing to part
        together = [token for section in tokens for token in section]
        return _Text([together[:room]], text[together[room].place :] if len(together) > room else None)
    if len(tokens) > 1 and not tokens[-1]:
        tokens.pop()  # a BREAK at the end begins nothing
    comma = _comma(tokenizer) if any(len(section) > room for section in tokens) else None
    return _Text([chunk for section in tokens for chunk in _chunks(section, comma, room)], None)


def _tokens(tokenizer: Any, fragment: Fragment) -> list[_Token]:
    encoded = tokenizer(fragment.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        _Token(number, fragment.weight, fragment.places[begin])
        for number, (begin, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _chunks(tokens: list[_Token], comma: int | None, room: int) -> list[list[_Token]]:
    rest = iter(tokens)
    return [list(islice(rest, len(chunk))) for chunk in split([token.number for token in tokens], comma, room)]


def _filled_up(chunks: list[list[_Token]], count: int) -> list[list[_Token]]:
    return chunks + [[]] * (count - len(chunks))


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


def edited(field: str, text: str) -> list[Warned]:
    """A warning, where the text has A1111's prompt editing."""
    found = edits(text)
    message = (
        f"The {field.replace('_', ' ')} has A1111's prompt editing ([from:to:when] or [one|other]), which darkroom "
        "does not do: it was read as plain brackets."
    )
    return [Warned("prompt_editing_ignored", message, ", ".join(found))] if found else []


def _read(
    pipeline: Pipeline, tokenizer: Any, encoder: Any, chunks: list[list[_Token]], clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (1, 77 × chunks, width) and the pooled one (1, width) of the first chunk, if the encoder has one."""
    length = int(encoder.config.max_position_embeddings)
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    framed = [[begin, *(token.number for token in chunk), end] for chunk in chunks]
    ids = torch.tensor([chunk + [pad] * (length - len(chunk)) for chunk in framed], device=pipeline.device)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        mask = torch.tensor([[1] * len(chunk) + [0] * (length - len(chunk)) for chunk in framed], device=ids.device)
    output = encoder(ids, attention_mask=mask, output_hidden_states=True)
    weights = torch.ones(ids.shape, device=ids.device)
    for row, chunk in enumerate(chunks):
        weights[row, 1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk])
    tokens = emphasise(_layer(pipeline, encoder, output, clip_skip), weights).flatten(0, 1).unsqueeze(0)
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
