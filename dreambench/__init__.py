"""dreambench: exact, resumable evaluation of models that understand and generate images.

>>> import dreambench
>>> result = dreambench.run("coco_fid", model="dreamllm", limit=128)   # doctest: +SKIP
>>> result.scores[0].value                                             # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreambench.api import Result, rerun, run, score_run
    from dreambench.documents import Document, Image, Text
    from dreambench.interfaces import Model, ModelOptions, Task
    from dreambench.requests import Failure, Request, Response, Sample
    from dreambench.scores import Cells, Estimate, Protocol, Score, TaskResult
    from dreambench.spec import RunSpec

__all__ = [
    "Cells",
    "Document",
    "Estimate",
    "Failure",
    "Image",
    "Model",
    "ModelOptions",
    "Protocol",
    "Request",
    "Response",
    "Result",
    "RunSpec",
    "Sample",
    "Score",
    "Task",
    "TaskResult",
    "Text",
    "rerun",
    "run",
    "score_run",
]

_MODULES = {
    "api": ("Result", "rerun", "run", "score_run"),
    "documents": ("Document", "Image", "Text"),
    "interfaces": ("Model", "ModelOptions", "Task"),
    "requests": ("Failure", "Request", "Response", "Sample"),
    "scores": ("Cells", "Estimate", "Protocol", "Score", "TaskResult"),
    "spec": ("RunSpec",),
}


def __getattr__(name: str) -> Any:
    """Names are loaded when they are first used, so that ``import dreambench`` costs nothing."""
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"dreambench.{module}"), name)
    raise AttributeError(f"module 'dreambench' has no attribute {name!r}")
