"""What torch models share: device, dtype, loading and hashing weights, seeded generators, threads, out-of-memory errors."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreambench.documents import JSON, canonical_json, digest
from dreambench.errors import DreambenchError, MissingWeightsError, ModelError, UsageError
from dreambench.files import sha256_file
from dreambench.interfaces import OutOfMemoryError
from dreambench.requests import Request

__all__ = [
    "DTYPES",
    "catch_out_of_memory",
    "exact_float32",
    "group_by_settings",
    "is_ours",
    "known_settings",
    "library_errors",
    "load_pretrained",
    "require_finite",
    "resolve_checkpoint",
    "resolve_device",
    "resolve_dtype",
    "seeded_generator",
    "threads_for",
    "weights_digest",
]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SMALL = 50_000_000
"""Parameters below which a network on the CPU gets one thread. ``OMP_NUM_THREADS``, where set, is left to the user."""


def resolve_device(text: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` as a device; `UsageError` for a CUDA device that does not exist.

    ``auto`` and ``cuda`` without a number select the device of this process's ``LOCAL_RANK`` (torchrun, accelerate launch).
    """
    word, colon, number = text.partition(":")
    if text == "cpu" or (text == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if word not in ("auto", "cuda") or (colon and (word == "auto" or not number.isdecimal())):
        raise UsageError(f"--device {text}: the devices are auto, cpu, cuda and cuda:NUMBER")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(f"--device {text}: torch finds no CUDA device here; use --device cpu")
    index = int(number) if colon else int(os.environ.get("LOCAL_RANK", "0")) % count
    if index >= count:
        raise UsageError(f"--device {text}: the CUDA devices here are cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def resolve_dtype(text: str, device: torch.device) -> torch.dtype:
    """A dtype by torch's name for it; ``auto`` is bfloat16 on CUDA and float32 on the CPU."""
    if text == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if text not in DTYPES:
        raise UsageError(f"--dtype {text}: the dtypes are auto, {', '.join(DTYPES)}")
    return DTYPES[text]


def weights_digest(source: Path | torch.nn.Module) -> str:
    """sha256, in hex, of the safetensors files under a folder, or of a module's state dict.

    The digest of a module covers names, dtypes, shapes and values: take it before a cast. Order and device do not matter.
    """
    if isinstance(source, Path):
        files = sorted(source.rglob("*.safetensors"), key=lambda path: path.relative_to(source).as_posix())
        if not files:
            raise MissingWeightsError(f"{source}: no .safetensors file in it; weights in other formats are not read")
        return digest([[path.relative_to(source).as_posix(), sha256_file(path)] for path in files])
    total = hashlib.sha256()
    for key, value in sorted(source.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        total.update(f"{key}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def resolve_checkpoint(location: str, offline: bool, purpose: str, download: Callable[..., Any] | None = None) -> Path:
    """The folder of a checkpoint: a local one, or a hub id's snapshot (downloaded unless `offline`).

    `download` takes a hub id and `local_files_only`; by default it gets the safetensors and data files of a transformers checkpoint.
    Raises `MissingWeightsError` if there is no such checkpoint.
    """
    folder = Path(location).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or location.count("/") > 1 or location.startswith("."):
        raise MissingWeightsError(f"{purpose}: {location} is not a folder; give the folder of a checkpoint or a hub id")
    if download is None:
        from huggingface_hub import snapshot_download

        files = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
        download = partial(snapshot_download, allow_patterns=files, ignore_patterns=["*/*"])
    try:
        return Path(download(location, local_files_only=offline))
    except (OSError, ValueError) as error:  # the hub's errors are among them
        how = "is not in the local hub cache (and --offline forbids a download)" if offline else "cannot be downloaded"
        raise MissingWeightsError(
            f"{purpose}: {location} is not a folder and {how} ({type(error).__name__}); give the folder of a checkpoint"
        ) from error


def load_pretrained(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A local model of a transformers class, from safetensors, in evaluation mode.

    Raises `MissingWeightsError` if a weight is missing or has another shape (transformers would initialise it at random), and
    `ModelError` if one is NaN or infinite.
    """
    loaded, info = model.from_pretrained(
        str(folder),
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, info.get(problem) or ())):
            raise MissingWeightsError(
                f"{folder}: {len(found)} weights of {type(loaded).__name__} cannot be loaded from its files"
                f" ({problem.replace('_', ' ')}), the first {found[0]}: the checkpoint is incomplete or of another architecture"
            )
    require_finite(loaded, folder)
    return loaded.eval()


def require_finite(network: torch.nn.Module, where: object) -> None:
    """`ModelError` if a weight of `network` is NaN or infinite: it would answer, and its answers would be scored."""
    for name, weight in network.named_parameters():
        # The extremes are NaN where one value is; `isfinite` of all values would take several passes.
        if weight.is_floating_point() and weight.numel() and not bool(torch.stack(weight.aminmax()).isfinite().all()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise ModelError(
                f"{where}: the weight {name} has NaN or infinite values in {dtype}: take an undamaged checkpoint, or --dtype float32"
                " if this dtype is too narrow"
            )


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU generator, so that a sample gets the same numbers on any device and in any batch."""
    return torch.Generator("cpu").manual_seed(seed)


def group_by_settings(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests of the same kind and settings, which can share a batch; in order of first appearance."""
    groups: dict[str, list[Request]] = {}
    for request in requests:
        groups.setdefault(canonical_json([request.kind, dict(request.settings)]), []).append(request)
    yield from groups.values()


def known_settings(request: Request, known: Collection[str], model: str) -> dict[str, JSON]:
    """A request's settings without ``preset`` and those that are None; `ModelError` for a setting that the model does not have."""
    settings = {key: value for key, value in request.settings.items() if key != "preset" and value is not None}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ModelError(
            f"the task sets {', '.join(unknown)}, which {model} does not have (it has {', '.join(sorted(known))}):"
            " choose other settings with --generation, or another model"
        )
    return settings


@contextlib.contextmanager
def catch_out_of_memory() -> Generator[None]:
    """Turn torch's out-of-memory error into `OutOfMemoryError`, after the failed attempt's memory is released."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        message = str(error).partition("\n")[0]
    else:
        return
    torch.cuda.empty_cache()
    raise OutOfMemoryError(message)


def is_ours(error: BaseException) -> bool:
    """Whether an exception is no complaint of a library about its files: `DreambenchError`, Ctrl-C. A panic of Rust's tokenizers is one."""
    known = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return isinstance(error, DreambenchError) or not known


@contextlib.contextmanager
def library_errors(where: object) -> Generator[None]:
    """Around calls of transformers on a checkpoint's files; any exception becomes a `ModelError`. Nothing of our own belongs inside.

    It checks files as it needs them, so that a processor's damaged settings show only with the first image, as any kind of error.
    """
    try:
        yield
    except (DreambenchError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except BaseException as error:
        if is_ours(error):
            raise
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"{where}: transformers cannot use this checkpoint ({type(error).__name__}: {line}): are its files damaged?"
        ) from error


@contextlib.contextmanager
def threads_for(network: torch.nn.Module) -> Generator[None]:
    """One thread for a small network: more would wait for each other, ten times as long on busy cores."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ and sum(weight.numel() for weight in network.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Generator[None]:
    """Inference in true float32, whatever the model under test has switched on: no autocast, no TF32, no kernel search."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
