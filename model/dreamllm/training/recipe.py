"""A recipe: one YAML file that says what learns, from what, on what data, and for how long. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PARTS = ("visual_projector", "condition_projector", "dream_queries", "language_model")
Part = Literal["visual_projector", "condition_projector", "dream_queries", "language_model"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(Settings):
    """Where the weights come from: a checkpoint, or the three published parts."""

    checkpoint: str | None = None  # folder or hub id, our layout or the released one
    language_model: Path | None = None  # folder of a Llama-like model and its tokenizer
    clip: Path | None = None  # folder of a CLIP model; for a released checkpoint too
    diffusion: Path | None = None  # folder of a Stable Diffusion model; for a released checkpoint too
    num_dream_queries: int | None = Field(default=None, ge=1)  # 64 unless said; a checkpoint has its own
    vision_select_layer: int | None = None  # -2 unless said
    resolution: int | None = Field(
        default=None, ge=8
    )  # pixels of painted pictures; what the UNet was made for unless said
    seed: int = 0  # of the projectors and queries that no part brings
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights that learn, and of the rest

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        parts = {"language_model": self.language_model, "clip": self.clip, "diffusion": self.diffusion}
        missing = [name for name, folder in parts.items() if folder is None]
        if self.checkpoint is None and missing:
            raise ValueError(
                f"give a checkpoint, or all of language_model, clip and diffusion ({missing[0]} is missing)"
            )
        fresh = ("language_model", "num_dream_queries", "vision_select_layer", "resolution")
        surplus = [name for name in fresh if getattr(self, name) is not None]
        if self.checkpoint is not None and surplus:
            raise ValueError(f"{surplus[0]} belongs to a start from parts, the checkpoint has its own")
        return self


class LossSettings(Settings):
    """total = (weight_lm x language loss + weight_vm x image loss) / scale."""

    weight_lm: float = Field(default=1.0, ge=0)
    weight_vm: float = Field(default=10.0, ge=0)
    scale: Literal["none", "l1", "l2"] = "none"  # divide by 1, the sum of the weights, the root of the sum of squares
    noise_offset: float = Field(default=0.0, ge=0)
    input_perturbation: float = Field(default=0.0, ge=0)
    snr_gamma: float | None = Field(default=None, gt=0)  # min-SNR weighting (arXiv 2303.09556)
    drop_probability: float = Field(default=0.0, ge=0, le=1)  # of the condition, for classifier-free guidance
    unconditional: Literal["queries", "patches"] = "queries"  # what stands in for it; patches is the original's way
