"""Tokenizers: the eight added tokens, SentencePiece files read as the original reads them, and a small one trained here.

The original's slow Llama tokenizer (`legacy=True`) puts "▁" before every piece of text between special tokens; transformers 5 does not,
and the ids after a special token would differ. The normalizer below makes the fast tokenizer do the same.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from dreamllm.configuration import SPECIAL_TOKEN_FIELDS
from dreamllm.errors import CheckpointError, UsageError, library_errors

ADDED_TOKENS = tuple(SPECIAL_TOKEN_FIELDS)
# The text that the tiny tokenizer is trained on.
TINY_TEXT = """
A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and
polite answers to the user's questions. USER: What is in the image? ASSISTANT: There is a red circle on the left of a
blue square. USER: What color is the triangle? ASSISTANT: green
How many circles are there in the image? one two three four five six seven eight nine ten yes no
A photo of a small yellow star above a large purple cross on a white background. Draw the same scene at night, please.
Please describe the image in detail. Is the orange ring below the black heart? Which option is correct: A, B, C or D?
gray pink brown cyan shapes stand next to each other, some big and some small, with, near, under, behind, between,
right, top, bottom, centre
"""


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Llama checkpoint: its `tokenizer.json` unchanged, else its `tokenizer.model` as the original reads it."""
    if (folder / "tokenizer.json").is_file():
        with library_errors(folder):
            return TokenizersBackend.from_pretrained(folder, local_files_only=True)
    if not (folder / "tokenizer.model").is_file():
        raise CheckpointError(f"{folder} holds neither tokenizer.json nor tokenizer.model")
    with library_errors(folder):
        tokenizer = LlamaTokenizer.from_pretrained(folder, local_files_only=True)
    return _wrap(_with_legacy_spaces(tokenizer.backend_tokenizer), model_max_length=tokenizer.model_max_length)


def tokenizer_from_file(path: str | Path) -> PreTrainedTokenizerBase:
    """A Llama tokenizer from `tokenizer.model` (SentencePiece) or `tokenizer.json`, with the eight tokens added after its vocabulary."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"tokenizer file {path} is missing")
    if path.suffix == ".json":
        with library_errors(path):
            return _with_added_tokens(Tokenizer.from_file(str(path)))
    # Alone in a folder, because the library reads other files beside it as well.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "tokenizer.model")
        with library_errors(path):
            backend = LlamaTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    return _with_added_tokens(_with_legacy_spaces(backend))


def tiny_tokenizer(vocab_size: int = 1000) -> PreTrainedTokenizerBase:
    """The tokenizer of the preset `tiny`: at most `vocab_size` + 8 tokens, always the same, from no files."""
    return train_tokenizer(TINY_TEXT.split(), vocab_size)


def train_tokenizer(words: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-fallback BPE tokenizer of at most `vocab_size` + 8 tokens; no merge crosses the border of a word."""
    backend = _with_legacy_spaces(Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True, unk_token="<unk>")))  # noqa: S106
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=["▁", *map(chr, range(33, 127))],
        show_progress=False,
    )
    backend.train_from_iterator(words, trainer)
    # The trainer makes the byte tokens special, and the text "<0x41>" would become a byte: make them ordinary again.
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in ("<unk>", "<s>", "</s>")]
    return _with_added_tokens(Tokenizer.from_str(json.dumps(spec)))


def _with_legacy_spaces(backend: Tokenizer) -> Tokenizer:
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None  # type: ignore[assignment]
    return backend


def _with_added_tokens(backend: Tokenizer) -> PreTrainedTokenizerBase:
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ADDED_TOKENS])
    return _wrap(backend)


def _wrap(backend: Tokenizer, model_max_length: int | None = None) -> PreTrainedTokenizerBase:
    bos = backend.token_to_id("<s>")
    if bos is None or backend.token_to_id("</s>") is None:
        raise CheckpointError("the tokenizer lacks Llama's <s> or </s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
    )
    return TokenizersBackend(
        tokenizer_object=backend,
        unk_token="<unk>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="[PAD]",  # noqa: S106
        additional_special_tokens=list(ADDED_TOKENS[1:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Configuration field -> id of the eight added tokens."""
    ids = tokenizer.get_vocab()
    missing = [token for token in ADDED_TOKENS if token not in ids]
    if missing:
        raise CheckpointError(f"the tokenizer lacks {', '.join(missing)}")
    return {field: ids[token] for token, field in SPECIAL_TOKEN_FIELDS.items()}


def check_ids(tokenizer: PreTrainedTokenizerBase, expected: Mapping[str, int], where: object) -> None:
    """Raise CheckpointError if a token has another id in the tokenizer than in the configuration."""
    ids = tokenizer.get_vocab()
    wrong = [f"{token} is {ids.get(token)}, must be {i}" for token, i in expected.items() if ids.get(token) != i]
    if wrong:
        raise CheckpointError(f"the tokenizer in {where} does not fit config.json: {'; '.join(wrong)}")
