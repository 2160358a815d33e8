"""CLIP as a scorer of captions: features are the model's own, and cut captions are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from metrics.images import draw_image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from dreambench.errors import MissingWeightsError
from dreambench.metrics.encoders import ClipScorer
from dreambench.metrics.resize import RESIZERS
from dreambench.metrics.set_metrics import clip_scores

CPU = torch.device("cpu")
WORDS = ["<start>", "<end>", "a", "red", "blue", "ball", "on", "the", "grass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of nine words and eight positions."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(vision_config=vision, text_config={**small, **ids}, projection_dim=10)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))  # noqa: S106 - a word, not a secret
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    special = {"eos_token": "<end>", "pad_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    preprocessing = {"crop_size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def test_scores_are_the_models_cosines(folder: Path) -> None:
    scorer = ClipScorer(folder, device=CPU)
    images = torch.stack([torch.from_numpy(draw_image(seed, 40, 60)).permute(2, 0, 1) for seed in (1, 2)])
    texts = ["a red ball", "the blue ball on grass"]
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        theirs = model(
            pixel_values=(RESIZERS["clean"](images, 32) / 255 - 0.5) / 0.25,
            input_ids=torch.tensor([[0, 2, 3, 5, 1, 1, 1], [0, 7, 4, 5, 6, 8, 1]]),
            attention_mask=torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7]),
        )
    ours = clip_scores(scorer.image_features(images), scorer.text_features(texts))
    cosines = (theirs.image_embeds * theirs.text_embeds).sum(dim=1)
    assert ours == pytest.approx(2.5 * cosines.clamp(min=0).numpy(), abs=1e-5)
    assert float(cosines.abs().max()) > 1e-3
    assert scorer.truncated == 0


def test_a_caption_longer_than_the_model_is_cut_and_counted(folder: Path) -> None:
    scorer = ClipScorer(folder, device=CPU)
    long = "a red ball on the grass on the grass"
    assert torch.equal(scorer.text_features([long]), scorer.text_features(["a red ball on the grass"]))
    assert scorer.truncated == 1


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"config\.json is missing"):
        ClipScorer(tmp_path, device=CPU)
