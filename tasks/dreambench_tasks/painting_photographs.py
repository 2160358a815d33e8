"""The photographs of the samples that a report shows, kept small in the run: nothing outside it is needed to show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dreambench.errors import DataError
from dreambench.progress import say
from dreambench.reporting.examples import shown_pictures
from dreambench.reporting.thumbnails import keep_photographs, kept_photographs
from dreambench.requests import Response, Sample
from dreambench.store import RunFolder
from dreambench_tasks.painting_features import image_id_of, reference_pictures, sample_rows

if TYPE_CHECKING:
    from dreambench_tasks.painting import PaintingTask

__all__ = ["gather_photographs"]


def gather_photographs(
    task: PaintingTask, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]
) -> None:
    """Keep a thumbnail of each photograph that the gallery may show beside a painted picture.

    The photographs are the reference's; one that the reference does not hold (statistics, another folder) is noted as unknown.
    """
    wanted = sorted({int(row["image_id"]) for row in shown_pictures(sample_rows(run, samples, responses))})
    if {str(image_id) for image_id in wanted} <= kept_photographs(run).keys():
        return
    try:
        known = {image_id_of(path): path for path in reference_pictures(task)}
        keep_photographs(run, {image_id: known.get(image_id) for image_id in wanted})
    except DataError as error:
        # Only where a run is scored again after its data are gone. No figure depends on these, so it is said and left out.
        say(f"reports of this run will show no photographs: {error}")
