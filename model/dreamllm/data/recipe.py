"""The `data:` part of a training recipe: which sources there are and how they are mixed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamllm.errors import UsageError

Kind = Literal["pairs", "mmc4", "obelics", "conversations", "instructions"]
MODES: dict[str, tuple[str, ...]] = {  # by kind, the default first
    "pairs": ("either", "comprehension", "generation"),
    "mmc4": ("both", "comprehension", "generation"),
    "obelics": ("both", "comprehension", "generation"),
    "instructions": ("both", "comprehension", "generation"),
    "conversations": ("both",),
}


class SourceRecipe(BaseModel):
    """One entry of `sources:`."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    path: str | list[str] = Field(min_length=1)  # files, with * and ? if you like
    images: str | None = None  # folder that image names are relative to; without it, the folder of the first file
    name: str | None = None  # what the source is called in messages; without it, its path
    weight: float | None = Field(
        None, gt=0, allow_inf_nan=False
    )  # share of the samples; all sources have one or none has
    mode: str | None = None  # one of MODES[kind]
    flip: bool | None = None  # generate images half of the images mirrored; without it, the recipe's `flip`
    columns: dict[Literal["image", "caption"], str] = {}  # pairs: where the fields have names of their own
    min_similarity: float = 0.25  # mmc4, instructions: images matched with less are left out
    learn_dream_start: bool = True  # conversations: whether the assistant learns where images come
    streaming: bool = False  # read in the order of the files, without a table on disk
    shuffle_buffer: int = Field(10_000, ge=1)  # streaming: of how many records the next is drawn

    def chosen_mode(self) -> str:
        modes = MODES[self.kind]
        if self.mode is not None and self.mode not in modes:
            raise UsageError(
                f"mode {self.mode!r} of a source of {self.kind} is not known; there are {', '.join(modes)}"
            )
        return self.mode or modes[0]


class DataRecipe(BaseModel):
    """`data:` of a recipe."""

    model_config = ConfigDict(extra="forbid")

    sources: list[SourceRecipe] = Field(min_length=1)
    max_length: int | None = Field(None, gt=0)  # tokens of a sample; without it, the tokenizer's model_max_length
    seed: int = Field(0, ge=0, lt=2**32)
    samples: int | None = Field(None, gt=0)  # of an epoch; without it, the number of all records
    flip: bool = True
    max_broken: int = Field(1000, ge=0)  # distinct broken records or images after which training stops
    cache: str | None = None  # where `datasets` keeps its tables; without it, its own folder


def read_recipe(data: dict[str, Any]) -> DataRecipe:
    """The recipe of a dict as YAML gives it. Raises UsageError, one line for the first thing that is wrong."""
    try:
        recipe = DataRecipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("data", *first["loc"]))
        raise UsageError(f"{place}: {first['msg'].removeprefix('Value error, ')} (given: {first['input']!r})") from None
    weights = [source.weight is not None for source in recipe.sources]
    if any(weights) and not all(weights):
        raise UsageError("data.sources: give every source a weight, or none (each record is then drawn equally often)")
    if any(source.streaming for source in recipe.sources) and (recipe.samples is None or not all(weights)):
        raise UsageError(
            "data: how long a stream is is not known beforehand: give every source a weight, and `samples`"
        )
    for source in recipe.sources:
        source.chosen_mode()
    return recipe
