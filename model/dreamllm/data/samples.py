"""Training samples, one function for each layout of tokens and images, and their batches.

A sample is built from pieces: text, which can be truncated, and spans, which cannot. A sequence ends before the first span that does not
fit into `max_length`.

Labels are the ids to predict and -100 elsewhere; the loss shifts them. Patch tokens, `<im_start>`, `<im_end>` and `<dream_end>`
never have labels, because `generate` inserts them. `<dream_start>` has one: by it the model says where an image comes.

Shapes: B samples, T tokens of the longest, n input images and m generated images in the batch, S pixels of CLIP, R of the image decoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dreamllm.errors import CheckpointError, InputError, UsageError, one_line
from dreamllm.processing import DreamLLMProcessor

IGNORED = -100  # label of a position that is not predicted


@dataclass
class Sample:
    """One training sequence: `input_ids` and `labels` (of equal length), and the images of its spans in order."""

    input_ids: list[int]
    labels: list[int]
    images: list[Image.Image] = field(default_factory=list)  # one for each image span
    targets: list[Image.Image] = field(default_factory=list)  # one for each dream span
    mirrored: list[bool] = field(default_factory=list)  # which targets to mirror; empty: none

    @property
    def has_loss(self) -> bool:
        """Whether it contributes to a loss; the first label does not, because no position predicts it."""
        return bool(self.targets) or any(label != IGNORED for label in self.labels[1:])


@dataclass
class _Piece:
    """Consecutive positions of a sequence and their labels; with an image it is a span, which is never truncated."""

    ids: list[int]
    labels: list[int]
    image: Image.Image | None = None
    target: Image.Image | None = None


def comprehension_pair(processor: DreamLLMProcessor, caption: str, image: Image.Image, max_length: int) -> Sample:
    """`bos IMAGE caption eos`, with the caption as labels. A caption that is too long is truncated."""
    bos, eos = _ends(processor)
    span = _image(processor, image)
    return _join([bos, span, _text(processor, caption, _room(max_length, span)), eos])


def generation_pair(processor: DreamLLMProcessor, caption: str, image: Image.Image, max_length: int) -> Sample:
    """`bos caption DREAM eos`, without labels: only the image is learned. A caption that is too long is truncated."""
    bos, eos = _ends(processor)
    span = _dream(processor, image, read_back=False)
    sample = _join([bos, _text(processor, caption, _room(max_length, span)), span, eos])
    sample.labels = [IGNORED] * len(sample.labels)
    return sample


def image_pair(
    processor: DreamLLMProcessor, source: Image.Image, text: str, target: Image.Image, max_length: int
) -> Sample:
    """`bos IMAGE text DREAM eos`, without labels: only `target` is learned, from `source` and a text that may be empty.

    Without a text and with `target` the same image, it is the original's image-image pair. A text that is too long is truncated.
    """
    bos, eos = _ends(processor)
    read, dream = _image(processor, source), _dream(processor, target, read_back=False)
    sample = _join([bos, read, _text(processor, text, _room(max_length, read, dream)), dream, eos])
    sample.labels = [IGNORED] * len(sample.labels)
    return sample


def matched_parts(
    texts: Sequence[str], images: Sequence[Image.Image], matched_text_index: Sequence[int]
) -> list[str | Image.Image]:
    """The parts of a document, each image after the sentence that it is matched to.

    The sentences before an image are stripped and joined by one space. Images of the same sentence keep their order.
    """
    outside = [index for index in matched_text_index if not 0 <= index < len(texts)]
    if outside or len(images) != len(matched_text_index):
        raise InputError(
            f"{len(images)} images are matched to the sentences {list(matched_text_index)} of {len(texts)}: "
            "each image needs the index of an existing sentence"
        )
    parts: list[str | Image.Image] = []
    begin = 0
    for index, image in sorted(zip(matched_text_index, images, strict=True), key=lambda pair: pair[0]):
        parts += [_joined(texts[begin : index + 1]), image]
        begin = index + 1
    return [*parts, _joined(texts[begin:])]


def document(
    processor: DreamLLMProcessor,
    parts: Sequence[str | Image.Image],
    max_length: int,
    *,
    comprehension: bool = True,
    generation: bool = True,
    instruction: str | None = None,
) -> Sample:
    """An interleaved document: `bos text DREAM IMAGE text ... eos`, with all text and every `<dream_start>` as labels.

    Args:
        parts: texts and images in reading order; each text is tokenised separately.
        comprehension, generation: with both, an image is generated and read back; with one of them there is only its span.
        instruction: a user turn before the document, which is then the assistant's turn; the instruction has no labels.

    The document ends before the first part that does not fit; only a text at its very beginning is truncated.
    """
    if not (comprehension or generation):
        raise UsageError("comprehension and generation cannot both be off")
    bos, eos = _ends(processor)
    head = bos
    if instruction is not None:
        ids = _encode(processor, processor.apply_chat_template([{"role": "user", "content": instruction}]), bos=True)
        head = _Piece(ids, [IGNORED] * len(ids))
    room = max_length - len(head.ids) - len(eos.ids)
    if room <= 0:
        raise InputError(f"the instruction leaves no room in {max_length} tokens")
    pieces: list[_Piece] = []
    for part in parts:
        if isinstance(part, str):
            piece = _text(processor, part, None if pieces else room)
        else:
            piece = _dream(processor, part, read_back=comprehension) if generation else _image(processor, part)
        if len(piece.ids) > room:
            break
        room -= len(piece.ids)
        pieces += [piece] if piece.ids else []
    return _join([head, *pieces, eos])


def conversation(
    processor: DreamLLMProcessor,
    messages: Sequence[dict[str, str]],
    images: Sequence[Image.Image],
    max_length: int,
    *,
    learn_dream_start: bool = True,
) -> Sample:
    """A conversation in the tokenizer's chat template, with the assistant's words and their `</s>` as labels.

    Args:
        messages: `role` (system, user, assistant) and `content`, with `<image>` and `<dream>` in the places of images.
        images: one for each placeholder, in order. The image of `<dream>` is generated and read back.
        learn_dream_start: whether the `<dream_start>` of an assistant's turn has a label; the original has none there.
    """
    tokenizer = processor.tokenizer
    if messages and messages[0]["role"] == "assistant":
        raise InputError("the conversation begins with the assistant: the user's turn before it is missing")
    try:
        text, turns = _render(processor, messages)
    except CheckpointError as error:  # for instance if roles do not alternate
        raise InputError(
            f"the tokenizer's chat template rejects the conversation: {one_line(error.__cause__ or error)}"
        ) from None
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = cast("list[tuple[int, int]]", encoded["offset_mapping"])
    ids = cast("list[int]", encoded["input_ids"])
    _check_no_patches(processor, ids)
    placeholders = sum(i in (processor.image_id, processor.dream_id) for i in ids)
    if placeholders != len(images):
        raise InputError(
            f"the conversation's placeholders and images differ in number: {placeholders} and {len(images)}"
        )
    remaining = iter(images)
    pieces = [_Piece([], [])]
    for i, (begin, end) in zip(ids, offsets, strict=True):
        # Some templates write bos between turns, within the assistant's characters.
        labelled = i != tokenizer.bos_token_id and any(first <= begin and end <= last for first, last in turns)
        if i == processor.image_id:
            pieces += [_image(processor, next(remaining)), _Piece([], [])]
        elif i == processor.dream_id:
            span = _dream(processor, next(remaining), labelled=labelled and learn_dream_start)
            pieces += [span, _Piece([], [])]
        else:
            pieces[-1].ids.append(i)
            pieces[-1].labels.append(i if labelled else IGNORED)
    return _join(_truncate(pieces, max_length))


def _render(processor: DreamLLMProcessor, messages: Sequence[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The conversation's text, and the (begin, end) characters of each of the assistant's turns, from the end of its prompt."""
    turns: list[tuple[int, int]] = []
    text = processor.apply_chat_template(messages, add_generation_prompt=False)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = processor.apply_chat_template(messages[:i], add_generation_prompt=True)
        through = processor.apply_chat_template(messages[: i + 1], add_generation_prompt=False)
        if not (through.startswith(prompt) and text.startswith(through)):
            raise UsageError(
                "the tokenizer's chat template renders a turn differently when others follow, so the assistant's words cannot be "
                "located: use one of dreamllm.processing.CHAT_TEMPLATES"
            )
        turns.append((len(prompt), len(through)))
    return text, turns


def _truncate(pieces: Sequence[_Piece], max_length: int) -> list[_Piece]:
    """The pieces up to `max_length` positions: text is cut there, and a span that does not fit ends the sequence before it."""
    fitting: list[_Piece] = []
    room = max_length
    for piece in pieces:
        if len(piece.ids) > room:
            if piece.image is None and piece.target is None:
                fitting.append(_Piece(piece.ids[:room], piece.labels[:room]))
            break
        fitting.append(piece)
        room -= len(piece.ids)
    return fitting


def _join(pieces: Sequence[_Piece]) -> Sample:
    return Sample(
        input_ids=[i for piece in pieces for i in piece.ids],
        labels=[label for piece in pieces for label in piece.labels],
        images=[piece.image for piece in pieces if piece.image is not None],
        targets=[piece.target for piece in pieces if piece.target is not None],
    )


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(stripped for sentence in sentences if (stripped := sentence.strip()))


def _room(max_length: int, *spans: _Piece) -> int:
    """Positions left for a caption beside spans, bos and eos."""
    taken = sum(len(span.ids) for span in spans)
    room = max_length - taken - 2
    if room < 0:
        raise UsageError(f"max_length {max_length} is too short for an image of {taken} tokens, bos and eos")
    return room


def _ends(processor: DreamLLMProcessor) -> tuple[_Piece, _Piece]:
    bos, eos = cast("tuple[int, int]", (processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id))
    return _Piece([bos], [bos]), _Piece([eos], [eos])


def _text(processor: DreamLLMProcessor, text: str, room: int | None) -> _Piece:
    ids = _encode(processor, text)[:room]
    return _Piece(ids, list(ids))


def _image(processor: DreamLLMProcessor, image: Image.Image) -> _Piece:
    ids = list(processor.image_span)
    return _Piece(ids, [IGNORED] * len(ids), image=image)


def _dream(processor: DreamLLMProcessor, image: Image.Image, read_back: bool = True, labelled: bool = True) -> _Piece:
    ids = [*processor.dream_span, *(processor.image_span if read_back else ())]
    labels = [ids[0] if labelled else IGNORED, *[IGNORED] * (len(ids) - 1)]
    return _Piece(ids, labels, image=image if read_back else None, target=image)


def _encode(processor: DreamLLMProcessor, text: str, bos: bool = False) -> list[int]:
    ids: Any = processor.tokenizer(text, add_special_tokens=bos)["input_ids"]
    _check_no_patches(processor, ids)
    return cast("list[int]", ids)


def _check_no_patches(processor: DreamLLMProcessor, ids: Sequence[int]) -> None:
    """InputError if a text spells patch tokens, which would form a span without an image."""
    if processor.image_span[1] in ids:
        raise InputError("the text itself contains <im_patch>, which is reserved for images")


class Collator:
    """Collates samples into right-padded batches; generated images have `resolution` (R) pixels.

    With `keys`, batches also have `pixel_keys` (n, 2) and `target_keys` (m, 2) int64, hashes of the pixels.
    """

    def __init__(self, processor: DreamLLMProcessor, resolution: int, keys: bool = False) -> None:
        self.processor, self.resolution, self.keys = processor, resolution, keys

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` (B, T) int64; if there are images `pixel_values` (n, 3, S, S) and `target_pixels`
        (m, 3, R, R) float32, in the order of their spans over the flattened batch."""
        pad = self.processor.tokenizer.pad_token_id
        if not isinstance(pad, int):
            raise UsageError("the tokenizer has no padding token; DreamLLM's is [PAD]")
        batch = {
            "input_ids": _padded([sample.input_ids for sample in samples], pad),
            "attention_mask": _padded([[1] * len(sample.input_ids) for sample in samples], 0),
            "labels": _padded([sample.labels for sample in samples], IGNORED),
        }
        images = [image for sample in samples for image in sample.images]
        if images:
            batch["pixel_values"] = self.processor.pixel_values(images)
        targets = [
            target_pixels(target, self.resolution, mirrored)
            for sample in samples
            for target, mirrored in zip(sample.targets, sample.mirrored or [False] * len(sample.targets), strict=True)
        ]
        if targets:
            batch["target_pixels"] = torch.stack(targets)
        for name, pixels in (("pixel_keys", "pixel_values"), ("target_keys", "target_pixels")):
            if self.keys and pixels in batch:
                batch[name] = _hashes(batch[pixels])
        return batch


def _hashes(pixels: torch.Tensor) -> torch.Tensor:
    """128-bit hashes of images (n, ...): (n, 2) int64."""
    digests = [hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest() for image in pixels]
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64).reshape(-1, 2)


def target_pixels(image: Image.Image, resolution: int, mirrored: bool = False) -> torch.Tensor:
    """A training target, (3, R, R) float32 in [-1, 1]: short side resized to R (PIL's bilinear), centre cropped, optionally mirrored."""
    rgb: Any = image.convert("RGB")  # torchvision types its functions for tensors alone
    resized = F.resize(rgb, [resolution], interpolation=InterpolationMode.BILINEAR)
    cropped = F.center_crop(resized, [resolution, resolution])
    pixels = F.to_dtype(F.pil_to_tensor(F.horizontal_flip(cropped) if mirrored else cropped), torch.float32, scale=True)
    return pixels * 2 - 1


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value
    )
