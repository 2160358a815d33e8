"""Where the weights that come with the package lie. Loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

from dreambench.errors import MissingWeightsError

__all__ = ["clip_directory"]


def clip_directory() -> Path:
    """The folder of the shipped playground-clip (``CLIPModel`` and tokenizer of transformers).

    Raises:
        MissingWeightsError: the package was installed without it.
    """
    folder = Path(__file__).with_name("clip")
    if not (folder / "model.safetensors").is_file():
        raise MissingWeightsError(
            f"playground-clip is not in {folder}: install the package again, or run dreambench playground build DIR --stage clip"
            f" and copy DIR/clip there"
        )
    return folder
