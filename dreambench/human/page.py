"""The rater page: one HTML file with its data, style and script inside. It opens from disk and works the same over HTTP.

Documents and instructions are other people's text. The script shows them through ``textContent`` alone, the data lie in a block that
is not executed, and the page's Content-Security-Policy admits nothing but this script, this style and the images of the study.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from dreambench.documents import JSON

__all__ = ["policy", "render_page"]


def render_page(public: JSON, images: Mapping[str, str] | None = None) -> str:
    """The page of one rater.

    `public` is `Study.public`, and ``served`` in it when the page is served (`dreambench.human.serve`): then answers are sent to the
    server as well. Images are files ``images/NAME`` beside the page, or those of `images`: ``data:`` URLs by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    data = public if images is None else {**public, "images": dict(images)}
    # No "<" can end the block, and in ASCII no text, however broken, makes the page unreadable.
    island = json.dumps(data, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    environment = Environment(
        loader=PackageLoader("dreambench.human", ""),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        title=public["title"],
        policy=policy(served="served" in public, embedded=images is not None),
        style=Markup(_source("page.css")),  # noqa: S704 - our own files
        script=Markup(_source("page.js")),  # noqa: S704
        data=Markup(island),  # noqa: S704 - without "<", a script block cannot be left
    )


def policy(*, served: bool, embedded: bool = False) -> str:
    """The page's Content-Security-Policy. Only the served page may send anything, and only to its own server."""
    images = "data:" if embedded else "data: 'self'" if served else "data: 'self' file:"
    return "; ".join(
        [
            "default-src 'none'",
            f"img-src {images}",
            f"script-src 'sha256-{_sha256('page.js')}'",
            f"style-src 'sha256-{_sha256('page.css')}'",
            *(["connect-src 'self'"] if served else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


@cache
def _source(name: str) -> str:
    return resources.files("dreambench.human").joinpath(name).read_text(encoding="utf-8")


def _sha256(name: str) -> str:
    return base64.b64encode(hashlib.sha256(_source(name).encode()).digest()).decode()
