"""The surrogate for Vicuna: a small Llama and its tokenizer, trained on what is said in the playground.

Two steps. First the language alone: captions, narratives, stories, and questions about scenes that are described in words. Then the
warm-up: the hidden states at the dream queries learn to say what the frozen text tower of the image decoder says of the same words. This
second step regresses states, which is *not* DreamLLM's objective; it stands for what billions of words teach a language model, belongs
to the preparation of the surrogates only, and alignment afterwards runs with the image loss alone.
"""

from __future__ import annotations

import re
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

from dreambench_tasks.playground.conversations import conversation
from dreambench_tasks.playground.language import captions, fullest_caption, narrative
from dreambench_tasks.playground.scene import WORLD, Rng, draw_scene
from dreambench_tasks.playground.stories import instruction, story
from dreambench_tasks.playground.surrogates.diffusion import text_ids
from dreambench_tasks.playground.surrogates.encoder import CONTEXT, WIDTH
from dreambench_tasks.playground.surrogates.loop import CHECKPOINT, Report, Settings, one_thread, train
from dreamllm.layers import position_ids_from_mask
from dreamllm.tokenizer import train_tokenizer

__all__ = ["LANGUAGE", "WARM_UP", "build_language", "build_warm_up", "playground_tokenizer"]

LANGUAGE = Settings(steps=900, batch=48, learning_rate=1.5e-3, weight_decay=0.01)
WARM_UP = Settings(steps=700, batch=32, learning_rate=1e-3, weight_decay=0.01)
HIDDEN = 192
TOKENIZED = 3000  # scenes whose texts give the vocabulary
EMPTY_PERCENT = 8
LONGEST = 104  # tokens of a document; a few longer ones would fill every batch with padding
LANGUAGE_WEIGHT = 0.3  # of the language loss while warming up


def playground_tokenizer() -> PreTrainedTokenizerBase:
    """Every word of the playground is one token; made anew each time, always the same. Bytes stand for anything else."""
    words: dict[str, int] = {}
    for index in range(TOKENIZED):
        for text in _texts(Rng("words", WORLD, index), "train", index, 0):
            for word in re.findall(r"[A-Za-z]+|\d", text):
                words[word] = words.get(word, 0) + 1
    # The order of merges follows counts: sorted, it does not depend on the order in which words were met.
    return train_tokenizer((word for word in sorted(words) for _ in range(words[word])), vocab_size=4000)


def build_language(directory: str | Path, settings: Settings = LANGUAGE, report: Report | None = None) -> Path:
    """Tokenizer and language model into ``directory/language``."""
    folder = Path(directory) / "language"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = playground_tokenizer()
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _llama(tokenizer)

        def loss_of(step: int) -> Tensor:
            return _language_loss(model, tokenizer, _documents(settings, step))

        train(folder, model, loss_of, settings, report)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()
    return folder


def build_warm_up(directory: str | Path, settings: Settings = WARM_UP, report: Report | None = None) -> Path:
    """Language model, dream queries and condition projector into ``directory/warm``; needs ``language`` and the text tower."""
    root = Path(directory)
    folder = root / "warm"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "language", local_files_only=True)
    teacher = CLIPTextModel.from_pretrained(root / "diffusion" / "text_encoder", local_files_only=True).eval()
    teacher_tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "diffusion" / "tokenizer", local_files_only=True)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        language = LlamaForCausalLM.from_pretrained(root / "language", local_files_only=True)
        language.train()
        dreamer = _Dreamer(language, tokenizer)

        def loss_of(step: int) -> Tensor:
            told, taught = _described_and_taught(settings, step)
            with torch.no_grad():
                states = teacher(text_ids(teacher_tokenizer, taught))[0]
            error = F.mse_loss(dreamer(told), states) / states.var()
            texts = _documents(replace(settings, batch=settings.batch // 2), LANGUAGE.steps + step)
            return error + LANGUAGE_WEIGHT * _language_loss(language, tokenizer, texts)

        train(folder, dreamer, loss_of, settings, report)
    tokenizer.save_pretrained(folder)
    queries = {
        "dream_queries": dreamer.queries.detach(),
        "condition_projector.weight": dreamer.projector.weight.detach(),
    }
    save_file(queries, folder / "dreams.safetensors")
    language.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()
    return folder


class _Dreamer(nn.Module):
    """Texts to condition vectors, (B, Q, E), exactly as DreamLLM makes them."""

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
    model.set_attn_implementation("eager")  # quicker backwards on CPUs than the fused one at these lengths
    return model


def _language_loss(model: LlamaForCausalLM, tokenizer: Any, texts: list[str]) -> Tensor:
    eos = tokenizer.eos_token_id
    rows = [(row if row[-1] == eos else [*row, eos])[:LONGEST] for row in tokenizer(texts)["input_ids"]]
    ids, mask = _rows(rows, left=False)
    labels = ids.masked_fill(mask == 0, -100)
    kept = labels[:, 1:] != -100
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(states[kept])
    return F.cross_entropy(logits.float(), labels[:, 1:][kept])


def _rows(rows: list[list[int]], left: bool = True) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, T), padded on one side with id 0."""
    side = "left" if left else "right"
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True, padding_side=side)
    return ids, mask


def _documents(settings: Settings, step: int) -> list[str]:
    """The texts of a step: of each scene one kind, in turn, so that steps are alike in length."""
    texts: list[str] = []
    for i in range(settings.batch):
        number = step * settings.batch + i
        rng = Rng("language", WORLD, settings.seed, number)
        kinds = list(_texts(rng, "train", number, settings.seed))
        texts.append(kinds[i % len(kinds)])
    return texts


def _texts(rng: Rng, part: str, number: int, seed: int) -> Iterator[str]:
    """What is said of a scene: twice over in other words, at length, as a story, and in questions and answers."""
    scene = draw_scene(part, number, seed)
    told = captions(scene, rng)
    yield f"{told[0]} {told[1]}"
    yield " ".join(narrative(scene, rng))
    asked, tale = instruction(part, number, seed)
    yield " ".join(story(part, number, seed).sentences)
    yield f"USER: {asked} ASSISTANT: {' '.join(tale.sentences)}</s>"
    for described in (fullest_caption(scene), told[2], fullest_caption(scene)):
        turns = [f"USER: {asked} ASSISTANT: {answered}</s>" for asked, answered in conversation(scene, rng)[:2]]
        # Of a scene that is told in words, all questions but those about what the words leave out have their answers there.
        yield "".join([turns[0].replace("USER: ", f"USER: {described} ", 1), *turns[1:]])


def _described_and_taught(settings: Settings, step: int) -> tuple[list[str], list[str]]:
    """What the language model is told of scenes, and the caption whose states it learns to dream.

    A caption, or nothing, stands for itself; a narrative, which is too long for the text tower, for the scene's fullest caption.
    """
    told: list[str] = []
    taught: list[str] = []
    for i in range(settings.batch):
        number = step * settings.batch + i
        rng = Rng("warm-up", WORLD, settings.seed, number)
        scene = draw_scene("train", number, settings.seed + 1)
        if rng.chance(EMPTY_PERCENT):
            said, learnt = "", ""
        elif i % 8 == 0:
            said, learnt = " ".join(narrative(scene, rng)), fullest_caption(scene)
        else:
            said = learnt = rng.pick(captions(scene, rng))
        told.append(said)
        taught.append(learnt)
    return told, taught
