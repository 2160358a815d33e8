"""The surrogate for Vicuna: a small Llama and its tokenizer, trained on the texts of the playground.

First the language model alone learns captions, narratives, stories, and questions about scenes that are described in words; then the same
with equal weight for every answer, because a letter is one token and a description fifty. Then comes a warm-up: the hidden states at the
dream queries regress the conditions that the image decoder was trained with, for the same words, and the decoder's discarded layers read in
them what the caption says. This is *not* an objective of DreamLLM; it stands for what a language model learns from billions of words and
belongs only to the preparation of the surrogates. The alignment that follows uses the image loss alone.

Shapes: B batch, T tokens, Q dream queries, E width of the image decoder's conditions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dreambench_tasks.playground import (
    WORLD,
    Rng,
    Scene,
    captions,
    conversation,
    fullest_caption,
    instruction,
    narrative,
    placed_caption,
    story,
)
from dreamllm.layers import position_ids_from_mask
from dreamllm.tokenizer import train_tokenizer
from loop import Settings, finish, is_finished, reproducible, train
from surrogate_clip import WIDTH
from surrogate_diffusion import REGISTERS, Conditioner, busy_scene

__all__ = ["build_language"]

Document = list[tuple[str, bool]]
"""Parts of a text, and whether the language model learns to predict each."""

LANGUAGE = Settings(steps=1500, batch=24, learning_rate=1.5e-3, weight_decay=0.01)
QUESTIONS = Settings(steps=2000, batch=24, learning_rate=1.2e-3, weight_decay=0.01, seed=2)
WARM_UP = Settings(steps=2000, batch=32, learning_rate=1e-3, weight_decay=0.01)
HIDDEN = 192
TOKENIZED = 3000  # scenes from whose texts the vocabulary is made
EMPTY_PERCENT = 8
MAX_LENGTH = 224  # tokens of a document, where most conversations are cut
LANGUAGE_WEIGHT = 0.2  # of the language loss during the warm-up
READING_WEIGHT = 0.2  # of the discarded layers' loss during the warm-up


def build_language(directory: Path) -> None:
    """Tokenizer and language model into ``directory/language``, then with dream queries and projector into ``directory/warm``."""
    _train_language(directory / "language-alone")
    _train_language(directory / "language", directory / "language-alone")
    _warm_up(directory)


def _train_language(folder: Path, first: Path | None = None) -> None:
    """The language model alone; after that of ``first``, if it is given, with equal weight for every answer."""
    if is_finished(folder):
        return
    settings = LANGUAGE if first is None else QUESTIONS
    with reproducible(settings.seed):
        tokenizer = _tokenizer()
        model = _llama(tokenizer) if first is None else LlamaForCausalLM.from_pretrained(first, local_files_only=True)
        model.set_attn_implementation("eager")  # a faster backward pass on CPUs than fused attention at these lengths
        model.train()

        def loss_of(step: int) -> Tensor:
            return _language_loss(model, tokenizer, _documents(settings, step), equal=first is not None)

        train(folder, model, loss_of, settings)
    finish(folder, tokenizer, model)


def _warm_up(directory: Path) -> None:
    """Needs ``language`` and ``conditioner``."""
    folder, settings = directory / "warm", WARM_UP
    if is_finished(folder):
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "language", local_files_only=True)
    teacher = Conditioner(directory / "conditioner").eval().requires_grad_(False)
    with reproducible(settings.seed):
        language = LlamaForCausalLM.from_pretrained(directory / "language", local_files_only=True)
        language.set_attn_implementation("eager")
        language.train()
        dreamer = _Dreamer(language, tokenizer)

        def loss_of(step: int) -> Tensor:
            inputs, targets, scenes = _inputs_and_targets(settings, step)
            with torch.no_grad():
                states = teacher(targets)
            dreamed = dreamer(inputs)
            error = F.mse_loss(dreamed, states) / states.var()
            error = error + READING_WEIGHT * teacher.reading_loss(dreamed, scenes, targets)
            texts = _documents(replace(settings, batch=8), LANGUAGE.steps + QUESTIONS.steps + step)
            return error + LANGUAGE_WEIGHT * _language_loss(language, tokenizer, texts)

        train(folder, dreamer, loss_of, settings)
    projector = dreamer.projector.weight.detach()
    queries = {"dream_queries": dreamer.queries.detach(), "condition_projector.layers.0.weight": projector}
    save_file(queries, folder / "dreams.safetensors")
    finish(folder, tokenizer, language)


def _tokenizer() -> PreTrainedTokenizerBase:
    """Every word of the playground is one token, bytes cover everything else; always the same."""
    words: Counter[str] = Counter()
    for index in range(TOKENIZED):
        for document in _texts(Rng("words", WORLD, index), index, 0):
            for text, _ in document:
                words.update(re.findall(r"[A-Za-z]+|\d", text))
    # The order of merges follows counts; sorted, it does not depend on the order in which words were met.
    return train_tokenizer((word for word in sorted(words) for _ in range(words[word])), vocab_size=4000)


class _Dreamer(nn.Module):
    """Texts to condition vectors, (B, Q, E), exactly as in DreamLLM."""

    def __init__(self, language: LlamaForCausalLM, tokenizer: Any) -> None:
        super().__init__()
        self.language, self.tokenizer = language, tokenizer
        self.queries = nn.Parameter(0.02 * torch.randn(1, REGISTERS, HIDDEN))
        self.projector = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.start = tokenizer.convert_tokens_to_ids("<dream_start>")

    def forward(self, texts: list[str]) -> Tensor:
        ids, mask = _rows([[*row, self.start] for row in self.tokenizer(texts)["input_ids"]])
        embeds = self.language.get_input_embeddings()(ids)
        embeds = torch.cat([embeds, self.queries.expand(len(ids), -1, -1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(ids), REGISTERS)], dim=1)
        output = self.language.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids_from_mask(mask),
            use_cache=False,
        )
        return self.projector(output.last_hidden_state[:, -REGISTERS:])


def _llama(tokenizer: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            max_position_embeddings=1024,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _language_loss(model: LlamaForCausalLM, tokenizer: Any, documents: list[Document], equal: bool = False) -> Tensor:
    """Cross-entropy of the learned parts of documents, in two batches by length, with less padding.

    Every token counts the same or, with `equal`, every learned part.
    """
    rows = sorted((_labelled(tokenizer, document) for document in documents), key=lambda row: len(row[0]))
    total, count = torch.zeros(()), torch.zeros(())
    for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        ids, mask = _rows([row for row, _ in half], left=False)
        parts = pad_sequence([torch.tensor(lengths) for _, lengths in half], batch_first=True)[:, 1:]
        kept = parts > 0
        states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        losses = F.cross_entropy(model.lm_head(states[kept]), ids[:, 1:][kept], reduction="none")
        weights = 1 / parts[kept] if equal else torch.ones_like(losses)
        total, count = total + (weights * losses).sum(), count + weights.sum()
    return total / count


def _labelled(tokenizer: Any, document: Document) -> tuple[list[int], list[int]]:
    """Token ids of a document, and for each the number of tokens in its part, 0 where the part is not learned."""
    row: list[int] = []
    lengths: list[int] = []
    for i, (text, learned) in enumerate([*document, ("" if document[-1][0].endswith("</s>") else "</s>", True)]):
        ids = tokenizer(text, add_special_tokens=i == 0)["input_ids"]
        row += ids
        lengths += [len(ids) if learned else 0] * len(ids)
    return row[:MAX_LENGTH], lengths[:MAX_LENGTH]


def _rows(rows: list[list[int]], left: bool = True) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, T), padded with id 0."""
    side = "left" if left else "right"
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True, padding_side=side)
    return ids, mask


def _documents(settings: Settings, step: int) -> list[Document]:
    """The documents of a step: one per scene, kinds in turn, so that steps are similar in length."""
    documents: list[Document] = []
    for i in range(settings.batch):
        number = step * settings.batch + i
        kinds = list(_texts(Rng("language", WORLD, settings.seed, number), number, settings.seed))
        documents.append(kinds[i % len(kinds)])
    return documents


def _texts(rng: Rng, number: int, seed: int) -> Iterator[Document]:
    """The documents about a scene: captions, a narrative, a story, an instruction, and four conversations."""
    scene = busy_scene(seed, number)
    texts = captions(scene, rng)
    yield [(f"{texts[0]} {texts[1]}", True)]
    yield [(" ".join(narrative(scene, rng)), True)]
    yield [(" ".join(story("train", number, seed).sentences), True)]
    request, document = instruction("train", number, seed)
    yield [(f"USER: {request} ASSISTANT:", False), (f"{' '.join(document.sentences)}</s>", True)]
    for caption in (fullest_caption(scene), fullest_caption(scene), texts[2], fullest_caption(scene)):
        # With the scene in words, all questions can be answered except those about what the caption leaves out.
        turns = [part for question, answer in conversation(scene, rng) for part in _turn(question, answer)]
        yield [(turns[0][0].replace("USER: ", f"USER: {caption} ", 1), False), *turns[1:]]


def _turn(question: str, answer: str) -> Document:
    return [(f"USER: {question} ASSISTANT:", False), (f"{answer}</s>", True)]


def _inputs_and_targets(settings: Settings, step: int) -> tuple[list[str], list[str], list[Scene]]:
    """Texts for the language model, captions whose conditions it regresses, and their scenes.

    Both are the same caption or empty. Three in eight differ: for a narrative, which is too long for the conditioner, the target is the
    fullest caption, and for the beginning of a story a caption of the image that comes next.
    """
    inputs: list[str] = []
    targets: list[str] = []
    scenes: list[Scene] = []
    for i in range(settings.batch):
        number = step * settings.batch + i
        rng = Rng("warm-up", WORLD, settings.seed, number)
        scene = busy_scene(settings.seed + 1, number)
        if rng.chance(EMPTY_PERCENT):
            text = target = ""
        elif i % 8 == 0:
            text, target = " ".join(narrative(scene, rng)), fullest_caption(scene)
        elif i % 8 < 3:
            told = story("train", number, settings.seed + 1)
            image = rng.below(len(told.scenes))
            scene = told.scenes[image]
            text = " ".join(told.sentences[: told.matched[image] + 1])
            # Only stories about size tell it.
            target = fullest_caption(scene) if "size" in told.topic else placed_caption(scene)
        else:
            text = target = rng.pick(captions(scene, rng))
        inputs.append(text)
        targets.append(target)
        scenes.append(scene)
    return inputs, targets, scenes
