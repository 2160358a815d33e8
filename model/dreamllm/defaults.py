"""How a checkpoint generates where its user does not say, in its generation_config.json:

    "image_generation": {"scheduler": "ddim", "num_inference_steps": 20, "guidance_scale": 1.5},
    "interleaved_generation": {"do_sample": true, "temperature": 0.7}

The other fields of that file are those of transformers' `generate`, for text. These two are objects of their own because the library has
a `guidance_scale`, too, which steers text, and because stories may be sampled where answers are greedy. A field that they lack, and a
checkpoint without them, has the value below. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamllm.errors import CheckpointError
from dreamllm.files import read_json_object
from dreamllm.options import ImagePreset, SchedulerName

FILE = "generation_config.json"


class _Defaults(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    field: ClassVar[str]

    @classmethod
    def of(cls, fields: Mapping[str, Any], where: object) -> Self | None:
        """What the fields of a generation_config.json say, None if they say nothing; CheckpointError for values out of range."""
        if (stated := fields.get(cls.field)) is None:
            return None
        try:
            return cls.model_validate(stated)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, (cls.field, *first["loc"])))
            raise CheckpointError(f"{where}: {name}: {first['msg']}") from None

    def override(self, **given: Any) -> Self:
        """These values, except those that are given (not None), which are not checked."""
        return self.model_copy(update={name: value for name, value in given.items() if value is not None})

    def stated(self) -> dict[str, Any]:
        """The fields that were set, as JSON."""
        return self.model_dump(mode="json", exclude_unset=True)


class ImageDefaults(_Defaults):
    """Arguments of `generate_images`."""

    field: ClassVar[str] = "image_generation"

    scheduler: Annotated[SchedulerName, Field(strict=False)] = SchedulerName.ddim
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=7.5, ge=0)  # the paper's, except on MS-COCO
    guidance_rescale: float = Field(default=0.0, ge=0)


class ImageSettings(NamedTuple):
    """What a preset says about an image: arguments of `generate_images`, and words around the prompt."""

    options: dict[str, Any]
    prefix: str = ""
    negative_prompt: str = ""


# One word of the demo's negative prompt, a slur, is left out.
_UNWANTED = (
    "ugly,duplicate,morbid,mutilated,mutated hands,poorly drawn hands,blurry,bad anatomy,bad proportions,extra limbs,cloned face,"
    "disfigured,missing arms,extra legs,mutated hands,fused fingers,too many fingers,unclear eyes,lowers,bad anatomy,bad hands,text,"
    "error,missing fingers,extra digit,fewer digits,cropped,worst quality,low quality,normal quality,jpeg artifacts,signature,watermark,"
    "username,blurry,bad feet,gettyimages"
)
_ANCESTRAL = {"scheduler": SchedulerName.ddpm, "num_inference_steps": 150}
IMAGE_PRESETS = {
    ImagePreset.demo: ImageSettings(
        {**_ANCESTRAL, "guidance_scale": 3.5}, "(best quality,extremely detailed) ", _UNWANTED
    ),
    ImagePreset.coco: ImageSettings({**_ANCESTRAL, "guidance_scale": 2.0}),
}


class InterleavedDefaults(_Defaults):
    """Arguments of `generate_interleaved`, for its text; its images have those of `ImageDefaults`."""

    field: ClassVar[str] = "interleaved_generation"

    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


def read_defaults(folder: Path) -> tuple[ImageDefaults | None, InterleavedDefaults | None]:
    """What a checkpoint's folder says about images and about interleaved documents; None where it says nothing."""
    path = folder / FILE
    fields = read_json_object(path) if path.is_file() else {}
    return ImageDefaults.of(fields, path), InterleavedDefaults.of(fields, path)
