"""Everything a user can ask of a run, written once: the command line's options, the arguments of `dreambench.run` and run.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from dreambench.documents import JSON
from dreambench.errors import UsageError
from dreambench.safety import holds_secret, secret_name

__all__ = ["RunSpec", "one_line", "pairs", "parse_arguments", "words"]

M = TypeVar("M", bound=BaseModel)


def words(value: Any) -> Any:
    """Comma-separated and repeated values as one list: ``"a,b"`` and ``["a", "b"]`` are the same."""
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, Sequence) and all(isinstance(part, str) for part in parts):
        return [word.strip() for part in parts for word in part.split(",") if word.strip()]
    return value


def _repeated(value: Any) -> Any:
    """A repeatable option given once is a list of one; commas are part of its value."""
    return [value] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """``KEY=VALUE`` words as a mapping; a mapping as it is."""
    if value is None or isinstance(value, Mapping):
        return value or {}
    found: dict[str, str] = {}
    for word in [value] if isinstance(value, str) else value:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word}: write KEY=VALUE")
        if key in found:
            raise ValueError(f"{key} is given twice")
        found[key] = text
    return found


def pairs(value: Sequence[str] | None, option: str) -> dict[str, str]:
    """``KEY=VALUE`` words of an option as a mapping. Raises `UsageError`."""
    try:
        return dict(_pairs(value))
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None


def _ids(value: Any) -> Any:
    """Sample ids: a sequence, or the path of a file with one id per line."""
    if value is None:
        return None
    source = ""
    if isinstance(value, (str, Path)):
        source = f"{value}: "
        try:
            lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{value}: cannot be read as text ({type(error).__name__}); write one sample id per line"
            ) from error
        value = [line.strip() for line in lines if line.strip()]
        if any("\0" in line for line in value):
            raise ValueError(f"{source}it holds null characters; give UTF-8 text with one sample id per line")
    if not isinstance(value, Sequence):
        raise ValueError(f"{value}: give a file with one sample id per line, or a list of ids")
    if not value:
        raise ValueError(f"{source}there are no ids; write one sample id per line")
    [(most, times)] = Counter(value).most_common(1)
    if times > 1:
        raise ValueError(f"{source}{most} is listed {times} times; list each sample once")
    return value


def _data(value: Any) -> Any:
    """A path made absolute, or ``datasets:MAPPING[=LOCATION]`` with its location made absolute."""
    if value is None:
        return None
    mark, colon, copy = str(value).partition(":")
    if mark != "datasets" or not colon:
        return str(Path(value).absolute())
    name, equals, location = copy.partition("=")
    if not name or (equals and not location):
        raise ValueError(f"{value}: write datasets:MAPPING or datasets:MAPPING=LOCATION (docs/data.md)")
    return f"datasets:{name}={Path(location).absolute()}" if equals else f"datasets:{name}"


def _absolute(value: Any) -> Any:
    return Path(value).absolute() if isinstance(value, (str, Path)) else value


def _device(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is None:
        raise ValueError(f"{value}: the devices are auto, cpu, cuda and cuda:NUMBER")
    return value


def _batch_size(value: Any) -> Any:
    return None if value == "auto" else value


Words = Annotated[tuple[str, ...], BeforeValidator(words)]
Directory = Annotated[Path | None, BeforeValidator(_absolute)]


def _option(default: Any, metavar: str | None, text: str) -> Any:
    """A field with what the command line says of it."""
    return Field(default, description=text, json_schema_extra={"metavar": metavar})


class RunSpec(BaseModel):
    """One run as the user asked for it. Paths are absolute; None means the task's or the model's default.

    Raises:
        UsageError: a field has a value that is not accepted; one line that names the option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = _option(..., "TASK", "Benchmark; see `dreambench list tasks`.")
    model: str = _option(
        "dreamllm", "NAME[:LOCATION]", "Model; see `dreambench list models`; default: the embedded DreamLLM."
    )
    model_arg: Annotated[dict[str, str], BeforeValidator(_pairs)] = _option(
        {}, "KEY=VALUE", "An argument of the model; may be repeated."
    )
    data: Annotated[str | None, BeforeValidator(_data)] = _option(
        None, "PATH", "Official files, or a Hub copy, datasets:MAPPING[=LOCATION]; default: the embedded data."
    )
    images: Directory = _option(None, "DIR", "The folder of the benchmark's images.")
    real: Directory = _option(None, "DIR|FILE.npz", "Reference images (a folder) or their statistics (.npz).")
    protocol: Words = _option((), "NAME[,NAME...]", "Protocols; the first one gives the headline score.")
    split: str | None = _option(None, "NAME", "The split of the benchmark, for instance val2017.")
    features: str | None = _option(
        None, "EXTRACTOR", "Feature extractor, for instance inception or efficientnet-lite0."
    )
    judge: str | None = _option(
        None, "JUDGE", "Judge: openai:MODEL@URL, model:NAME[:LOCATION], grades:FILE, replay:FILE or rule."
    )
    generation: Annotated[tuple[str, ...], BeforeValidator(_repeated)] = _option(
        (), "PRESET|KEY=VALUE", "Prompt wording and decoding; may be repeated."
    )
    limit: PositiveInt | None = _option(
        None,
        "N",
        "Only the first N samples, and the other questions about their images (mmbench: N questions; interleaved: N documents).",
    )
    ids: Annotated[tuple[str, ...] | None, BeforeValidator(_ids)] = _option(
        None, "FILE", "Only the samples whose ids are in FILE, one per line."
    )
    seed: int = _option(0, "N", "Seed for noise and sampling; each sample derives its own.")
    batch_size: Annotated[PositiveInt | None, BeforeValidator(_batch_size)] = _option(
        None, "N|auto", "Requests per batch; auto leaves it to the model."
    )
    device: Annotated[str, BeforeValidator(_device)] = _option("auto", "DEVICE", "auto, cpu, cuda or cuda:NUMBER.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = _option(
        "auto", "DTYPE", "auto, float32, bfloat16, float16 or float64."
    )
    offline: bool = _option(False, None, "Download nothing, and call servers on this machine only.")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(one_line(error)) from None
        self._refuse_secrets()

    def _refuse_secrets(self) -> None:
        """A run keeps its spec, and is passed on: no key, token or password may stand in it."""
        for key in self.model_arg:
            if secret_name(key):
                raise UsageError(
                    f"--model-arg {key}: run.json would keep it; put it into an environment variable that the model reads"
                    " (openai: name the variable with key_env)"
                )
        for name, value in self.to_json().items():
            if holds_secret(json.dumps(value, ensure_ascii=False)):
                raise UsageError(
                    f"--{name.replace('_', '-')}: it holds a password or the value of a secret environment variable, and"
                    " run.json would keep it: leave the credentials out"
                )

    @property
    def data_path(self) -> Path | None:
        """`data` where it is a path."""
        return None if self.data is None or self.dataset is not None else Path(self.data)

    @property
    def dataset(self) -> str | None:
        """``MAPPING[=LOCATION]`` where `data` is ``datasets:MAPPING[=LOCATION]``."""
        return None if self.data is None or not self.data.startswith("datasets:") else self.data.partition(":")[2]

    def to_json(self) -> JSON:
        """Plain data for run.json."""
        return self.model_dump(mode="json")


def one_line(error: ValidationError) -> str:
    """The first complaint of pydantic as one line that names the option."""
    first = error.errors(include_url=False)[0]
    option = "--" + str(first["loc"][0]).replace("_", "-")
    if first["type"] == "value_error":
        return f"{option} {first['ctx']['error']}"  # pyright: ignore[reportTypedDictNotRequiredAccess] - always there
    if first["type"] == "extra_forbidden":
        return f"{option}: there is no such option"
    return f"{option} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}"


def parse_arguments(kind: type[M], arguments: Mapping[str, Any], option: str) -> M:
    """``KEY=VALUE`` arguments of a model or a judge as a pydantic model. Raises `UsageError` in one line that names the argument."""
    try:
        return kind(**arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = first["loc"][0]
        if first["type"] == "extra_forbidden":
            # Without the value: it may be a secret under a mistaken name.
            raise UsageError(
                f"{option}: {key}: there is no such key; the keys are {', '.join(kind.model_fields)}"
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
        raise UsageError(f"{option}: {key}={first['input']}: {message}") from None
