"""The images of the samples that a report shows, kept small in the run: nothing outside it is needed to show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dreambench.errors import DataError
from dreambench.progress import say
from dreambench.report.images import save_reference_images, saved_reference_images
from dreambench.report.runs import shown_images
from dreambench.requests import Response, Sample
from dreambench.store import RunFolder
from dreambench_tasks.text_to_image_features import image_id_of, reference_image_files, sample_rows

if TYPE_CHECKING:
    from dreambench_tasks.text_to_image import TextToImageTask

__all__ = ["collect_reference_images"]


def collect_reference_images(
    task: TextToImageTask, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]
) -> None:
    """Keep a thumbnail of each image that the gallery may show beside a generated image.

    The images are the reference's; one that the reference does not hold (statistics, another folder) is noted as unknown.
    """
    wanted = sorted({int(row["image_id"]) for row in shown_images(sample_rows(run, samples, responses))})
    if {str(image_id) for image_id in wanted} <= saved_reference_images(run).keys():
        return
    try:
        known = {image_id_of(path): path for path in reference_image_files(task)}
        save_reference_images(run, {image_id: known.get(image_id) for image_id in wanted})
    except DataError as error:
        # Only where a run is scored again after its data are gone. No score depends on these, so it is said and left out.
        say(f"reports of this run will show no images: {error}")
