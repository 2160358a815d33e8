"""The surrogate for Vicuna: a small Llama and its tokenizer, trained on the texts of the playground.

First the language model alone learns captions, narratives, stories, and questions about scenes that are described in words. Then comes a
warm-up: the hidden states at the dream queries regress those of the image decoder's frozen text tower for the same words. This is *not*
an objective of DreamLLM; it stands for what a language model learns from billions of words and belongs only to the preparation of the
surrogates. The alignment that follows uses the image loss alone.

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
from transformers import CLIPTextModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dreambench_tasks.playground import (
    WORLD,
    Rng,
    captions,
    conversation,
    draw_scene,
    fullest_caption,
    instruction,
    narrative,
    story,
)
from dreamllm.layers import position_ids_from_mask
from dreamllm.tokenizer import train_tokenizer
from loop import CHECKPOINT, Settings, is_finished, reproducible, train
from surrogate_clip import CONTEXT, WIDTH
from surrogate_diffusion import text_ids

__all__ = ["build_language"]

LANGUAGE = Settings(steps=900, batch=48, learning_rate=1.5e-3, weight_decay=0.01)
WARM_UP = Settings(steps=700, batch=32, learning_rate=1e-3, weight_decay=0.01)
HIDDEN = 192
TOKENIZED = 3000  # scenes from whose texts the vocabulary is made
EMPTY_PERCENT = 8
MAX_LENGTH = 104  # tokens of a document; a few longer ones would fill every batch with padding
LANGUAGE_WEIGHT = 0.3  # of the language loss during the warm-up


def build_language(directory: Path) -> None:
    """Tokenizer and language model into ``directory/language``, then with dream queries and projector into ``directory/warm``."""
    _train_language(directory / "language")
    _warm_up(directory)


def _train_language(folder: Path) -> None:
    if is_finished(folder):
        return
    with reproducible(LANGUAGE.seed):
        tokenizer = _tokenizer()
        model = _llama(tokenizer)
        train(folder, model, lambda step: _language_loss(model, tokenizer, _documents(LANGUAGE, step)), LANGUAGE)
    _save(folder, model, tokenizer)


def _warm_up(directory: Path) -> None:
    """Needs ``language`` and the text tower of ``diffusion``."""
    folder, settings = directory / "warm", WARM_UP
    if is_finished(folder):
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "language", local_files_only=True)
    diffusion = directory / "diffusion"
    teacher = CLIPTextModel.from_pretrained(diffusion / "text_encoder", local_files_only=True).eval()
    teacher_tokenizer = PreTrainedTokenizerFast.from_pretrained(diffusion / "tokenizer", local_files_only=True)
    with reproducible(settings.seed):
        language = LlamaForCausalLM.from_pretrained(directory / "language", local_files_only=True)
        language.train()
        dreamer = _Dreamer(language, tokenizer)

        def loss_of(step: int) -> Tensor:
            inputs, targets = _inputs_and_targets(settings, step)
            with torch.no_grad():
                states = teacher(text_ids(teacher_tokenizer, targets))[0]
            error = F.mse_loss(dreamer(inputs), states) / states.var()
            texts = _documents(replace(settings, batch=settings.batch // 2), LANGUAGE.steps + step)
            return error + LANGUAGE_WEIGHT * _language_loss(language, tokenizer, texts)

        train(folder, dreamer, loss_of, settings)
    projector = dreamer.projector.weight.detach()
    queries = {"dream_queries": dreamer.queries.detach(), "condition_projector.layers.0.weight": projector}
    save_file(queries, folder / "dreams.safetensors")
    _save(folder, language, tokenizer)


def _save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()


def _tokenizer() -> PreTrainedTokenizerBase:
    """Every word of the playground is one token, bytes cover everything else; always the same."""
    words: Counter[str] = Counter()
    for index in range(TOKENIZED):
        for text in _texts(Rng("words", WORLD, index), index, 0):
            words.update(re.findall(r"[A-Za-z]+|\d", text))
    # The order of merges follows counts; sorted, it does not depend on the order in which words were met.
    return train_tokenizer((word for word in sorted(words) for _ in range(words[word])), vocab_size=4000)


class _Dreamer(nn.Module):
    """Texts to condition vectors, (B, Q, E), exactly as in DreamLLM."""

    def __init__(self, language: LlamaForCausalLM, tokenizer: Any) -> None:
        super().__init__()
        self.language, self.tokenizer = language, tokenizer
        self.queries = nn.Parameter(0.02 * torch.randn(1, CONTEXT, HIDDEN))
        self.projector = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.start = tokenizer.convert_tokens_to_ids("<dream_start>")

    def forward(self, texts: list[str]) -> Tensor:
        ids, mask = _rows([[*row, self.start] for row in self.tokenizer(texts)["input_ids"]])
        embeds = self.language.get_input_embeddings()(ids)
        embeds = torch.cat([embeds, self.queries.expand(len(ids), -1, -1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(ids), CONTEXT)], dim=1)
        output = self.language.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids_from_mask(mask),
            use_cache=False,
        )
        return self.projector(output.last_hidden_state[:, -CONTEXT:])


def _llama(tokenizer: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
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
    model.set_attn_implementation("eager")  # a faster backward pass on CPUs than fused attention at these lengths
    return model


def _language_loss(model: LlamaForCausalLM, tokenizer: Any, texts: list[str]) -> Tensor:
    eos = tokenizer.eos_token_id
    rows = [(row if row[-1] == eos else [*row, eos])[:MAX_LENGTH] for row in tokenizer(texts)["input_ids"]]
    ids, mask = _rows(rows, left=False)
    labels = ids.masked_fill(mask == 0, -100)
    kept = labels[:, 1:] != -100
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(states[kept])
    return F.cross_entropy(logits.float(), labels[:, 1:][kept])


def _rows(rows: list[list[int]], left: bool = True) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, T), padded with id 0."""
    side = "left" if left else "right"
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True, padding_side=side)
    return ids, mask


def _documents(settings: Settings, step: int) -> list[str]:
    """The texts of a step: one per scene, kinds in turn, so that steps are similar in length."""
    texts: list[str] = []
    for i in range(settings.batch):
        number = step * settings.batch + i
        rng = Rng("language", WORLD, settings.seed, number)
        kinds = list(_texts(rng, number, settings.seed))
        texts.append(kinds[i % len(kinds)])
    return texts


def _texts(rng: Rng, number: int, seed: int) -> Iterator[str]:
    """The texts about a scene: two captions, a narrative, a story, an instruction, and questions with answers."""
    scene = draw_scene("train", number, seed)
    texts = captions(scene, rng)
    yield f"{texts[0]} {texts[1]}"
    yield " ".join(narrative(scene, rng))
    request, document = instruction("train", number, seed)
    yield " ".join(story("train", number, seed).sentences)
    yield f"USER: {request} ASSISTANT: {' '.join(document.sentences)}</s>"
    for caption in (fullest_caption(scene), texts[2], fullest_caption(scene)):
        turns = [f"USER: {question} ASSISTANT: {answer}</s>" for question, answer in conversation(scene, rng)[:2]]
        # With the scene in words, all questions can be answered except those about what the caption leaves out.
        yield "".join([turns[0].replace("USER: ", f"USER: {caption} ", 1), *turns[1:]])


def _inputs_and_targets(settings: Settings, step: int) -> tuple[list[str], list[str]]:
    """Texts for the language model, and the captions whose states it regresses.

    Both are the same caption or empty; for a narrative, which is too long for the text tower, the target is the fullest caption.
    """
    inputs: list[str] = []
    targets: list[str] = []
    for i in range(settings.batch):
        number = step * settings.batch + i
        rng = Rng("warm-up", WORLD, settings.seed, number)
        scene = draw_scene("train", number, settings.seed + 1)
        if rng.chance(EMPTY_PERCENT):
            text = target = ""
        elif i % 8 == 0:
            text, target = " ".join(narrative(scene, rng)), fullest_caption(scene)
        else:
            text = target = rng.pick(captions(scene, rng))
        inputs.append(text)
        targets.append(target)
    return inputs, targets
