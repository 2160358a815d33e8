"""The playground: a small world of coloured shapes, in every benchmark's official format.

``write`` puts scenes of a part on disk, ``ensure_default`` returns the embedded data. Nothing here loads torch;
``dreambench_tasks.playground.clip``, the feature extractor of these pictures, does.
"""

from __future__ import annotations

from dreambench_tasks.playground.formats import FORMATS
from dreambench_tasks.playground.writing import ensure_default, write

__all__ = ["FORMATS", "ensure_default", "write"]
