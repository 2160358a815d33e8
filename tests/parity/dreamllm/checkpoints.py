"""Every tensor of the released checkpoints: read strictly, written in our layout, read, written back, equal to the bit."""

from __future__ import annotations

from pathlib import Path

from parity.checks import Check, Exempt
from parity.dreamllm.golden import STEMS, Golden

from dreamllm.checkpoint import convert
from dreamllm.released import CLASSES, SURPLUS, State, read_language_model, read_tensors, write

PROVENANCE = ("torch", "transformers", "diffusers", "dtype", "threads")
EXEMPT = [
    *(Exempt(f"*.json:_common/{name}", "where the recording was made") for name in PROVENANCE),
    Exempt("*.json:_common/prompts", "inputs of the cases"),
]


def checks(golden: Golden) -> list[Check]:
    ours, back = golden.scratch / "native", golden.scratch / "released"
    convert(golden.folder / "checkpoint", ours, "native", **golden.sub_models)
    convert(ours, back, "released")
    found = _files(golden.folder / "checkpoint", back)
    for name, model in (("checkpoint_kv", golden.kv_model), ("checkpoint_mlp", golden.mlp_model)):
        target = golden.scratch / f"{name}_back"
        write(target, model.config, model.state_dict())
        found += _files(golden.folder / name, target)
    return [*found, *_common(golden)]


def _files(recorded: Path, ours: Path) -> list[Check]:
    """Every recorded tensor, and the names of all, by part: the language model may be recorded in several files."""
    names: dict[str, tuple[list[str], State]] = {}
    found = []
    for path in sorted(recorded.glob("*")):
        if path.suffix not in (".bin", ".safetensors"):
            continue
        # `X.projector_only.bin` holds a part of `X.bin`.
        part, _, rest = path.name.partition(".")
        plugin = part in CLASSES
        actual = read_tensors(ours / f"{part}.bin") if plugin else read_language_model(ours)
        expected = {name: tensor for name, tensor in read_tensors(path).items() if not SURPLUS.search(name)}
        found += [
            Check(f"{recorded.name}/{path.name}:{name}", tensor.numpy(), _get(actual, name))
            for name, tensor in expected.items()
        ]
        if not rest.startswith("projector_only"):
            names.setdefault(part if plugin else "language_model", ([], actual))[0].extend(expected)
    return found + [
        Check(f"{recorded.name}/{part}", "\n".join(sorted(expected)), "\n".join(sorted(actual)))
        for part, (expected, actual) in names.items()
    ]


def _get(state: State, name: str) -> object:
    return state[name].cpu().numpy() if name in state else f"{name} is missing"


def _common(golden: Golden) -> list[Check]:
    """Sizes and special ids that every recording repeats."""
    config, tokenizer = golden.model.config, golden.processor.tokenizer
    values = {
        "num_image_patches": config.num_image_tokens,
        "num_dream_queries": config.num_dream_queries,
        "vocab_size": config.text_config.vocab_size,
    }
    found = []
    for stem in STEMS:
        common = golden.records[stem].get("_common", {})
        found += [golden.value_check(stem, f"_common/{key}", values[key]) for key in values if key in common]
        found += [
            golden.value_check(stem, f"_common/special_ids/{token}", tokenizer.convert_tokens_to_ids(token))
            for token in common.get("special_ids", {})
        ]
    return found
