"""Token ids, labels and images of one training sample, by kind of data.

A sample is built from pieces: a run of text that may be cut, or a span that is kept whole or dropped whole together with its
images. Whatever does not fit `max_length` is left out from there on.

Labels are the ids that are learnt and -100 elsewhere; the loss shifts them. Patch tokens, `<im_start>`, `<im_end>` and `<dream_end>`
are never learnt: `generate` puts them there. `<dream_start>` is: it says where an image comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from jinja2 import TemplateError
from PIL import Image

from dreamllm.errors import InputError, UsageError
from dreamllm.processing import DreamLLMProcessor

IGNORED = -100  # label of a position that is not learnt


@dataclass
class Sample:
    """One training sequence: `input_ids` and `labels` (of equal length), and the images of its spans in order."""

    input_ids: list[int]
    labels: list[int]
    images: list[Image.Image] = field(default_factory=list)  # one for each image span
    targets: list[Image.Image] = field(default_factory=list)  # one for each dream span
    mirrored: list[bool] = field(default_factory=list)  # which targets are generated mirrored; empty: none
    source: str = ""
    key: str = ""

    @property
    def teaches(self) -> bool:
        """Whether any loss comes from it. The first label has no position before it that could predict it."""
        return bool(self.targets) or any(label != IGNORED for label in self.labels[1:])


@dataclass
class _Piece:
    """Some positions of a sequence and their labels; one that holds an image is a span and never cut."""

    ids: list[int]
    labels: list[int]
    image: Image.Image | None = None
    target: Image.Image | None = None

    @property
    def whole(self) -> bool:
        return self.image is not None or self.target is not None


def comprehension_pair(processor: DreamLLMProcessor, caption: str, image: Image.Image, max_length: int) -> Sample:
    """`bos IMAGE caption eos`; the caption is learnt, and cut where it is too long."""
    bos, eos = _ends(processor)
    span = _image(processor, image)
    room = _room(max_length, len(span.ids))
    text = _text(processor, caption, room)
    return _join([bos, span, text, eos])


def generation_pair(processor: DreamLLMProcessor, caption: str, image: Image.Image, max_length: int) -> Sample:
    """`bos caption DREAM eos`; only the image is learnt, and nothing reads it back. A caption that is too long is cut."""
    bos, eos = _ends(processor)
    span = _dream(processor, image, read_back=False, learnt=False)
    text = _text(processor, caption, _room(max_length, len(span.ids)))
    sample = _join([bos, text, span, eos])
    sample.labels = [IGNORED] * len(sample.labels)
    return sample


def matched_parts(
    texts: Sequence[str], images: Sequence[Image.Image], matched_text_index: Sequence[int]
) -> list[str | Image.Image]:
    """The parts of a document whose images stand after the sentence that they are matched to.

    The sentences up to an image are stripped and joined by one space. Images of one sentence keep their order.
    """
    outside = [index for index in matched_text_index if not 0 <= index < len(texts)]
    if outside or len(images) != len(matched_text_index):
        raise InputError(
            f"{len(images)} images are matched to the sentences {list(matched_text_index)} of {len(texts)}: "
            "each image needs a sentence that is there"
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
    text_to_image: bool = True,
    instruction: str | None = None,
) -> Sample:
    """An interleaved document: `bos text DREAM IMAGE text ... eos`, all text and every `<dream_start>` learnt.

    Args:
        parts: texts and images in reading order; each text is tokenised on its own.
        reading, image generation: with both, an image is generated and read back; with one, there is only that span.
        instruction: what the user asked for; the document is then the assistant's turn, and only it is learnt.

    The document ends before the first part that does not fit whole; only a text that nothing stands before is cut.
    """
    if not (comprehension or text_to_image):
        raise UsageError("a document is read, generated or both: reading and image generation cannot both be off")
    bos, eos = _ends(processor)
    if instruction is None:
        head = bos
    else:
        messages = [{"role": "user", "content": instruction}]
        ids = _encode(processor, processor.apply_chat_template(messages), bos=True)
        head = _Piece(ids, [IGNORED] * len(ids))
    room = max_length - len(head.ids) - len(eos.ids)
    if room <= 0:
        raise InputError(f"the instruction leaves no room in {max_length} tokens")
    kept: list[_Piece] = []
    for part in parts:
        if isinstance(part, str):
            piece = _text(processor, part, None if kept else room)
        else:
            piece = _dream(processor, part, read_back=comprehension) if text_to_image else _image(processor, part)
        if len(piece.ids) > room:
            break
        room -= len(piece.ids)
        kept += [piece] if piece.ids else []
    return _join([head, *kept, eos])


def conversation(
    processor: DreamLLMProcessor,
    messages: Sequence[dict[str, str]],
    images: Sequence[Image.Image],
    max_length: int,
    *,
    learn_dream_start: bool = True,
) -> Sample:
    """A conversation in the template of the processor's tokenizer; the assistant's words and their `</s>` are learnt.

    Args:
        messages: `role` (system, user, assistant) and `content`, with `<image>` and `<dream>` where images stand.
        images: one for each placeholder, in order. An image of `<dream>` is generated and read back.
        learn_dream_start: whether `<dream_start>` in an assistant's turn is learnt; the original does not, so its model
            cannot say where an image comes in a conversation.
    """
    tokenizer = processor.tokenizer
    if messages and messages[0]["role"] == "assistant":
        raise InputError("the conversation begins with the assistant: what it answers is missing")
    try:
        text, turns = _rendered(processor, messages)
    except TemplateError as error:  # for instance of roles that do not alternate
        raise InputError(f"the tokenizer's chat template refuses the conversation: {error}") from None
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = cast("list[tuple[int, int]]", encoded["offset_mapping"])
    ids = cast("list[int]", encoded["input_ids"])
    _no_patches(processor, ids)
    wanted = sum(i in (processor.image_id, processor.dream_id) for i in ids)
    if wanted != len(images):
        raise InputError(f"the conversation has {wanted} places for images, and {len(images)} images are given")
    remaining = iter(images)
    pieces = [_Piece([], [])]
    for i, (begin, end) in zip(ids, offsets, strict=True):
        # bos belongs to nobody: templates that set one between turns have it inside the assistant's text.
        learnt = i != tokenizer.bos_token_id and any(first <= begin and end <= last for first, last in turns)
        if i == processor.image_id:
            pieces += [_image(processor, next(remaining)), _Piece([], [])]
        elif i == processor.dream_id:
            pieces += [_dream(processor, next(remaining), learnt=learnt and learn_dream_start), _Piece([], [])]
        else:
            pieces[-1].ids.append(i)
            pieces[-1].labels.append(i if learnt else IGNORED)
    return _join(_cut(pieces, max_length))


def _rendered(processor: DreamLLMProcessor, messages: Sequence[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The conversation's text, and from where to where the assistant speaks: from the end of the prompt for each of its turns."""
    turns: list[tuple[int, int]] = []
    text = processor.apply_chat_template(messages, add_generation_prompt=False)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = processor.apply_chat_template(messages[:i], add_generation_prompt=True)
        through = processor.apply_chat_template(messages[: i + 1], add_generation_prompt=False)
        if not (through.startswith(prompt) and text.startswith(through)):
            raise UsageError(
                "the tokenizer's chat template writes a turn differently when others follow, so that what the assistant says "
                "cannot be told apart: use one of dreamllm.processing.CHAT_TEMPLATES"
            )
        turns.append((len(prompt), len(through)))
    return text, turns


def _cut(pieces: Sequence[_Piece], max_length: int) -> list[_Piece]:
    """The pieces up to `max_length` positions: text is cut there, a span that does not fit ends the sequence before it."""
    kept: list[_Piece] = []
    room = max_length
    for piece in pieces:
        if len(piece.ids) > room:
            if not piece.whole:
                kept.append(_Piece(piece.ids[:room], piece.labels[:room]))
            break
        kept.append(piece)
        room -= len(piece.ids)
    return kept


def _join(pieces: Sequence[_Piece]) -> Sample:
    return Sample(
        input_ids=[i for piece in pieces for i in piece.ids],
        labels=[label for piece in pieces for label in piece.labels],
        images=[piece.image for piece in pieces if piece.image is not None],
        targets=[piece.target for piece in pieces if piece.target is not None],
    )


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(stripped for sentence in sentences if (stripped := sentence.strip()))


def _room(max_length: int, span: int) -> int:
    room = max_length - span - 2
    if room < 0:
        raise UsageError(
            f"max_length {max_length} does not hold one image, which takes {span} tokens, with bos and eos"
        )
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


def _dream(processor: DreamLLMProcessor, image: Image.Image, read_back: bool = True, learnt: bool = True) -> _Piece:
    ids = [*processor.dream_span, *(processor.image_span if read_back else ())]
    labels = [ids[0] if learnt else IGNORED, *[IGNORED] * (len(ids) - 1)]
    return _Piece(ids, labels, image=image if read_back else None, target=image)


def _encode(processor: DreamLLMProcessor, text: str, bos: bool = False) -> list[int]:
    ids: Any = processor.tokenizer(text, add_special_tokens=bos)["input_ids"]
    _no_patches(processor, ids)
    return cast("list[int]", ids)


def _no_patches(processor: DreamLLMProcessor, ids: Sequence[int]) -> None:
    """A text that spells patch tokens would make a span without an image, and move every later image into its neighbour's place."""
    patch = processor.image_span[1]
    if patch in ids:
        raise InputError("the text itself holds <im_patch>, which stands for images")
