"""``playground-clip``: a small CLIP of the playground, its feature extractor; trained here, shipped beside this file.

Contrastive training (Radford et al. 2021, section 2.3) of transformers' ``CLIPModel`` on scenes of the train part. The batch of a
step is a function of (seed, step), there is no dropout, and a checkpoint is one safetensors file with weights and both moments of
AdamW: a run that is killed and started again ends in the same weights as an undisturbed one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from dreambench.errors import DataError, UsageError
from dreambench_tasks.playground.language import captions, narrative
from dreambench_tasks.playground.render import SIDE, render_many
from dreambench_tasks.playground.scene import WORLD, Dice, Scene, draw_scene

__all__ = ["build_clip", "clip_tokenizer", "image_features", "text_features", "train_batch"]

STEPS = 1600
BATCH = 128
LEARNING_RATE = 1e-3
WARMUP = 100
WEIGHT_DECAY = 0.05
CONTEXT = 77
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")  # <eos> is 3: CLIP's pooling gives an eos_token_id of 2 another meaning

CHECKPOINT = "checkpoint.safetensors"


def build_clip(
    directory: str | Path,
    steps: int = STEPS,
    seed: int = 0,
    resume: bool = True,
    save_every: int = 100,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Train playground-clip into ``directory/clip`` with one thread and return that folder.

    Args:
        directory: the build's folder; the checkpoint is ``directory/clip/checkpoint.safetensors`` until the end.
        steps: length of the schedule, in batches of 128.
        seed: of the initial weights and of the scenes.
        resume: go on from a checkpoint of the same steps and seed; otherwise one that is there is an error.
        save_every: steps between two checkpoints.
        report: called after each step with the number of steps done and the loss.
    """
    folder = Path(directory) / "clip"
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        tokenizer = clip_tokenizer()
        model, optimizer = _start(len(tokenizer), seed)
        checkpoint = folder / CHECKPOINT
        done, losses = 0, []
        if checkpoint.is_file():
            if not resume:
                raise UsageError(f"{checkpoint} is of a run that was broken off: resume it, or remove the file")
            done, losses = _load(checkpoint, model, optimizer, steps, seed)
        model.train()
        for step in range(done, steps):
            losses.append(_step(model, optimizer, tokenizer, step, steps, seed))
            if report is not None:
                report(step + 1, losses[-1])
            if (step + 1) % save_every == 0 or step + 1 == steps:
                _save(checkpoint, model, optimizer, {"done": step + 1, "steps": steps, "seed": seed, "losses": losses})
        _publish(folder, model, tokenizer, {"steps": steps, "seed": seed, "losses": losses})
    checkpoint.unlink()
    return folder


def clip_tokenizer(context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """One token a word, over the words of captions and narratives; made anew each time, always the same."""
    split = pre_tokenizers.BertPreTokenizer()
    words: set[str] = set()
    for index in range(2000):
        scene, dice = draw_scene("train", index), Dice("words", WORLD, index)
        for text in (*captions(scene, dice), *narrative(scene, dice)):
            words.update(word for word, _ in split.pre_tokenize_str(text.lower()))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a token of text, not a password
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    pad, bos, unk, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, unk_token=unk, eos_token=eos, model_max_length=context
    )


def train_batch(step: int, seed: int, size: int = BATCH) -> tuple[list[Scene], list[str]]:
    """The scenes of a training step, each with one of its five captions."""
    scenes = [draw_scene("train", step * size + i, seed) for i in range(size)]
    texts: list[str] = []
    for i, scene in enumerate(scenes):
        dice = Dice("clip", WORLD, seed, step, i)
        texts.append(dice.pick(captions(scene, dice)))
    return scenes, texts


@torch.inference_mode()
def image_features(model: CLIPModel, pictures: np.ndarray[Any, Any], batch: int = 256) -> Tensor:
    """Projected image embeddings of ``(N, 64, 64, 3)`` uint8, ``(N, 64)`` float32, not normalised to length 1."""
    parts = [
        model.visual_projection(model.vision_model(_pixels(pictures[i : i + batch])).pooler_output)
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts).float()


@torch.inference_mode()
def text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Projected text embeddings, ``(N, 64)`` float32, not normalised to length 1."""
    tokens = _tokens(tokenizer, texts)
    return model.text_projection(model.text_model(**tokens).pooler_output).float()


def _step(
    model: CLIPModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerFast,
    step: int,
    steps: int,
    seed: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * _schedule(step, steps)
    scenes, texts = train_batch(step, seed)
    tokens = _tokens(tokenizer, texts)
    with torch.autocast("cpu", torch.bfloat16):
        image = model.visual_projection(model.vision_model(_pixels(render_many(scenes))).pooler_output)
        text = model.text_projection(model.text_model(**tokens).pooler_output)
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    # Two scenes may have the same caption: each is then as right as the other.
    same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32)
    target = same / same.sum(dim=1, keepdim=True)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))
    return float(loss.detach())


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(WARMUP, max(1, steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _start(vocabulary: int, seed: int) -> tuple[CLIPModel, torch.optim.AdamW]:
    width = {"hidden_size": 128, "num_attention_heads": 4, "projection_dim": 64, "hidden_act": "gelu"}
    config = CLIPConfig(
        text_config={
            **width,
            "vocab_size": vocabulary,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
        },
        vision_config={**width, "intermediate_size": 512, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8},
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        # On CPUs the backward pass of fused attention takes four times as long as two plain products at 65 tokens.
        model.set_attn_implementation("eager")
    return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def _pixels(pictures: np.ndarray[Any, Any]) -> Tensor:
    """``(N, 64, 64, 3)`` uint8 to ``(N, 3, 64, 64)`` in -1 … 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Tensor]:
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def _save(path: Path, model: CLIPModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(path)


def _load(
    path: Path, model: CLIPModel, optimizer: torch.optim.Optimizer, steps: int, seed: int
) -> tuple[int, list[float]]:
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        if (state["steps"], state["seed"]) != (steps, seed):
            raise DataError(
                f"{path} is of a run with steps={state['steps']} and seed={state['seed']}: give these, or remove the file"
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(state["done"])),
                    "exp_avg": file.get_tensor(f"exp_avg.{name}"),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}"),
                }
    return state["done"], state["losses"]


def _publish(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast, training: dict[str, Any]) -> None:
    """Tokenizer, image processor and training record first, the weights (half precision) last."""
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=half, image_std=half
    ).save_pretrained(folder)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "numpy"))
    record = {"world": WORLD, "versions": versions, **training}
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    model.half().save_pretrained(folder)


@contextmanager
def _one_thread() -> Generator[None]:
    """One thread: sums keep their order, and so the weights their bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
