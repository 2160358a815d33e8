"""Outputs of the frozen encoders on disk, for images that are seen more than once: CLIP's states and the autoencoder's posteriors.

    <folder>/<encoder>-<hash of its weights and configuration>-<dtype>/<ab>/<hash of the pixels>.safetensors

The pixels are those that the encoder receives: a mirrored image, another resolution or another image processor have entries of their
own, so nothing that changes an image can give it the features of another. Each image is encoded alone, because batch mates change last
digits: an entry is the same whatever the order of the samples, the batch size and the run that wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dreamllm.errors import CheckpointError, UsageError
from dreamllm.files import errors_of_writing, temporary
from dreamllm.modeling import DreamLLMForConditionalGeneration

Encode = Callable[[torch.Tensor], torch.Tensor]


class FeatureStore:
    """What CLIP and the autoencoder of this model give for each image, computed once.

    Raises UsageError if the folder cannot be created.
    """

    def __init__(self, folder: Path, model: DreamLLMForConditionalGeneration) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"data.feature_cache: folder {folder} cannot be created: {error.strerror}") from None
        config = model.config
        vision = f"{config.vision_select_layer} {config.vision_config.to_json_string()}"
        vae = json.dumps(config.image_decoder_config.vae, sort_keys=True)
        digests = [_digest(model.vision_tower, vision), _digest(model.image_decoder.vae, vae)]
        if torch.distributed.is_initialized():  # only process 0 has certainly read the weights
            torch.distributed.broadcast_object_list(digests)
        self._stems = {
            name: folder / f"{name}-{digest}" for name, digest in zip(("vision", "vae"), digests, strict=True)
        }

    def vision_states(
        self, model: DreamLLMForConditionalGeneration, pixel_values: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """`model.vision_states` of pixels (n, 3, S, S) with keys (n, 2): (n, N, width of CLIP)."""
        return self._outputs("vision", model.vision_states, pixel_values, keys, model.vision_tower.dtype)

    def posteriors(
        self, model: DreamLLMForConditionalGeneration, target_pixels: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """`model.image_decoder.posterior` of pixels (m, 3, R, R) with keys (m, 2): (m, 2, C, h, w)."""
        dtype = model.image_decoder.vae.dtype
        return self._outputs("vae", model.image_decoder.posterior, target_pixels, keys, dtype)

    @torch.no_grad()
    def _outputs(
        self, encoder: str, encode: Encode, pixels: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        device = pixels.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        stem = self._stems[encoder]
        folder = stem.with_name(f"{stem.name}-{str(computed).removeprefix('torch.')}")
        names = ["".join(f"{half % 2**64:016x}" for half in key) for key in keys.tolist()]
        paths = [folder / name[:2] / f"{name}.safetensors" for name in names]
        return torch.stack([_output(path, encode, one) for path, one in zip(paths, pixels[:, None], strict=True)])


def _output(path: Path, encode: Encode, pixels: torch.Tensor) -> torch.Tensor:
    """What a file holds; if it is missing, what `encode` gives, which is then written to it."""
    if path.is_file():
        try:
            return load_file(path)["output"].to(pixels.device)
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path} of data.feature_cache cannot be read ({error}): remove it") from None
    output = encode(pixels)[0]
    with errors_of_writing(path.parent), temporary(path) as unfinished:
        save_file({"output": output.cpu().contiguous()}, unfinished)
        unfinished.replace(path)
    return output


def _digest(encoder: torch.nn.Module, config: str) -> str:
    """16 hex digits of an encoder's configuration and weights."""
    digest = hashlib.blake2b(config.encode(), digest_size=8)
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
