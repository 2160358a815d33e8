"""The playground: a small world of coloured shapes, in every benchmark's official format and in those of training.

``write`` puts scenes of a part on disk, ``ensure_default`` returns the embedded data, ``clip_directory`` the weights of their
feature extractor. Nothing here loads torch; ``dreambench_tasks.playground.clip``, which trains that extractor, does.
"""

from __future__ import annotations

from dreambench_tasks.playground.shipped import clip_directory
from dreambench_tasks.playground.stages import STAGES, build, evaluate
from dreambench_tasks.playground.writing import FORMATS, ensure_default, write

__all__ = ["FORMATS", "STAGES", "build", "clip_directory", "ensure_default", "evaluate", "write"]
