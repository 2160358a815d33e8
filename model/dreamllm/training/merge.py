"""The halves of stage I, trained apart, in one checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from dreamllm import checkpoint
from dreamllm.errors import CheckpointError

READ, GENERATED = ("visual_projector.",), ("condition_projector.", "dream_queries")


def merge(comprehension: str | Path, text_to_image: str | Path, target: str | Path) -> None:
    """Write `target`: the visual projector of `comprehension`, condition projector and dream queries of `text_to_image`, the rest of both.

    Raises CheckpointError if anything else differs between the two: they must have begun from the same model.
    """
    folder = checkpoint.check_new(target)
    model, processor = checkpoint.load(comprehension)
    other, other_processor = checkpoint.load(text_to_image)
    own, theirs = model.state_dict(), other.state_dict()
    if set(own) != set(theirs):
        raise CheckpointError(
            f"{comprehension} and {text_to_image} do not have the same parts: {min(set(own) ^ set(theirs))}"
        )
    shared = [name for name in own if not name.startswith((*READ, *GENERATED))]
    different = [name for name in shared if not torch.equal(own[name], theirs[name])]
    if different:
        raise CheckpointError(
            f"{comprehension} and {text_to_image} differ in {len(different)} tensors that neither half of stage I trains, "
            f"for instance {different[0]}: merge halves that began from the same model"
        )
    if processor.tokenizer.get_vocab() != other_processor.tokenizer.get_vocab():
        raise CheckpointError(f"{comprehension} and {text_to_image} have different tokenizers")
    if model.config.image_decoder_config.to_dict() != other.config.image_decoder_config.to_dict():
        raise CheckpointError(f"{comprehension} and {text_to_image} have different image decoders in their config.json")
    with torch.no_grad():
        for name, tensor in own.items():
            if name.startswith(GENERATED):
                tensor.copy_(theirs[name])
    histories = [history or "not said" for history in (model.config.training, other.config.training)]
    model.config.training = f"comprehension: {histories[0]}; generation: {histories[1]}"
    checkpoint.save(folder, model, processor)
