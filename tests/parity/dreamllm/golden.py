"""One fixture folder recorded from the original DreamLLM: its files, its checkpoints loaded by us, and the list of all that it holds."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from parity.checks import Check, leaves
from safetensors.torch import load_file
from torch import Tensor

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, load
from dreamllm.files import read_json
from dreamllm.released import CLIP, DIFFUSION, QUERIES, SURPLUS, read_tensors

ATOL = RTOL = 1e-4  # logits and hidden states, as the fixture's README suggests
STEMS = ("comprehension", "creation_embeds", "pipeline", "generation", "tokenised", "training")


class Golden:
    """`arrays[stem]` and `records[stem]` are a recording's two files; models are loaded once, on `device`."""

    def __init__(self, folder: Path, scratch: Path, device: str = "cpu") -> None:
        self.folder, self.scratch, self.device = folder, scratch, device
        self.records: dict[str, dict[str, Any]] = {stem: read_json(folder / f"{stem}.json") for stem in STEMS}
        self.arrays: dict[str, dict[str, Tensor]] = {stem: load_file(folder / f"{stem}.safetensors") for stem in STEMS}

    @property
    def sub_models(self) -> dict[str, Path]:
        return {"clip": self.folder / "clip", "diffusion": self.folder / "sd"}

    @cached_property
    def loaded(self) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
        return load(self.folder / "checkpoint", device=self.device, **self.sub_models)

    @property
    def model(self) -> DreamLLMForConditionalGeneration:
        return self.loaded[0]

    @property
    def processor(self) -> DreamLLMProcessor:
        return self.loaded[1]

    @cached_property
    def eager(self) -> DreamLLMForConditionalGeneration:
        """The same model with the original's attention, which gives fully masked rows the same meaningless values."""
        model, _ = load(self.folder / "checkpoint", device=self.device, **self.sub_models)
        model.set_attn_implementation("eager")
        return model

    @cached_property
    def kv_model(self) -> DreamLLMForConditionalGeneration:
        """`checkpoint_kv`: grouped-query attention, plugins from `checkpoint`."""
        folder = self.folder / "checkpoint_kv"
        return load(folder, plugins=self.folder / "checkpoint", device=self.device, **self.sub_models)[0]

    @cached_property
    def mlp_model(self) -> DreamLLMForConditionalGeneration:
        """`checkpoint_mlp`, put together from its projectors, the language model of `checkpoint`, and `clip` and `sd`."""
        source, target = self.folder / "checkpoint_mlp", self.scratch / "mlp"
        shutil.copytree(self.folder / "checkpoint", target, copy_function=shutil.copyfile)
        for name in ("config.json", f"{QUERIES}.bin"):
            shutil.copyfile(source / name, target / name)
        clip = load_file(self.folder / "clip" / "model.safetensors")
        tower = {f"clip_vision_model.{key}": tensor for key, tensor in clip.items()}
        torch.save(tower | read_tensors(source / f"{CLIP}.projector_only.bin"), target / f"{CLIP}.bin")
        image_decoder = {
            f"{part}.{key}": tensor
            for part in ("vae", "unet")
            for key, tensor in load_file(self.folder / "sd" / part / "diffusion_pytorch_model.safetensors").items()
        }
        torch.save(
            image_decoder | read_tensors(source / f"{DIFFUSION}.projector_only.bin"), target / f"{DIFFUSION}.bin"
        )
        return load(target, device=self.device, **self.sub_models)[0]

    def rope_model(self, case: str) -> DreamLLMForConditionalGeneration:
        """`checkpoint` with the rotary scaling that a case records."""
        target = self.scratch / case
        shutil.copytree(self.folder / "checkpoint", target, copy_function=shutil.copyfile)
        record = self.records["comprehension"][case]
        config = read_json(target / "config.json") | {
            "rope_scaling": record["rope_scaling"],
            "max_position_embeddings": record["max_position_embeddings"],
        }
        (target / "config.json").write_text(json.dumps(config))
        return load(target, device=self.device, **self.sub_models)[0]

    def case(self, stem: str, name: str) -> dict[str, Tensor]:
        """The arrays of one case, on the device, without the case's name."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): array.to(self.device)
            for key, array in self.arrays[stem].items()
            if key.startswith(prefix)
        }

    def cases(self, stem: str, array: str) -> list[str]:
        """The cases that hold an array of that name."""
        return [key.removesuffix(f"/{array}") for key in self.arrays[stem] if key.endswith(f"/{array}")]

    def array_check(self, stem: str, name: str, actual: Any, **tolerance: Any) -> Check:
        """Compare an array of the recording, by default within the tolerance for hidden states."""
        tolerance = tolerance or {"atol": ATOL, "rtol": RTOL}
        actual = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else actual
        return Check(f"{stem}.safetensors:{name}", self.arrays[stem][name].numpy(), actual, **tolerance)

    def value_check(self, stem: str, path: str, actual: Any, **tolerance: float) -> Check:
        """Compare a value of the recording's JSON, by default exactly; path components are joined by `/`."""
        return Check(f"{stem}.json:{path}", _follow(self.records[stem], path), actual, **tolerance)

    def all_keys(self) -> Iterator[str]:
        """Every array, JSON value and checkpoint tensor of the folder."""
        for stem in STEMS:
            record = {key: value for key, value in self.records[stem].items() if key != "_arrays"}
            yield from leaves(record, f"{stem}.json")
            arrays = {*self.arrays[stem], *self.records[stem].get("_arrays", {})}
            yield from (f"{stem}.safetensors:{name}" for name in sorted(arrays))
        for path in sorted(self.folder.glob("checkpoint*/*")):
            if path.suffix in (".bin", ".safetensors"):
                yield from (
                    f"{path.parent.name}/{path.name}:{key}" for key in read_tensors(path) if not SURPLUS.search(key)
                )

    def json_keys(self, pattern: str) -> list[str]:
        return [key for key in self.all_keys() if fnmatch.fnmatchcase(key, pattern)]


def _follow(value: Any, path: str) -> Any:
    """The value at a path whose components may themselves hold slashes."""
    if not path:
        return value
    for name in value:
        if path == name or path.startswith(f"{name}/"):
            try:
                return _follow(value[name], path[len(name) + 1 :])
            except KeyError:
                continue
    raise KeyError(path)
