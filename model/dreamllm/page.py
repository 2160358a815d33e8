"""A generated document as one HTML page that needs no other file: escaped texts, images as data: URLs, no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape

from PIL import Image

LARGEST = 1024  # pixels; larger input images are shown reduced

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="dreamllm">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --soft: color-mix(in srgb, currentColor 60%, transparent); }}
body {{ font: 1.0625rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 0 auto; padding: 1rem; }}
p {{ margin: 1rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
h2 {{ font-size: 0.875rem; font-weight: 600; margin: 0; color: var(--soft); }}
img {{ display: block; width: min(100%, 24rem); height: auto; margin: 1rem 0; border-radius: 0.375rem; }}
img.small {{ width: min(100%, 16rem); image-rendering: pixelated; }}
.prompt {{ border-inline-start: 0.25rem solid var(--soft); padding-inline-start: 1rem; margin-bottom: 2rem; }}
.prompt img {{ width: min(100%, 8rem); }}
footer {{ border-top: 1px solid var(--soft); margin-top: 2rem; padding-top: 1rem; font-size: 0.875rem; color: var(--soft); }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1rem; margin: 0; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<section class="prompt">
<h2>Prompt</h2>
{prompt}
</section>
<main>
{document}
</main>
<footer>
<dl>
{facts}
</dl>
</footer>
</body>
</html>
"""


def html_page(
    prompt: Iterable[str | Image.Image], document: Iterable[str | Image.Image], facts: Mapping[str, object]
) -> str:
    """The page of a document and of the prompt it was generated from, parts in reading order, with facts about the generation."""
    prompt = list(prompt)
    title = " ".join("".join(part for part in prompt if isinstance(part, str)).split())
    return PAGE.format(
        title=escape(title[:80] or "A generated document"),
        prompt=_parts(prompt, "input image"),
        document=_parts(document, "generated image"),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()),
    )


def _parts(parts: Iterable[str | Image.Image], kind: str) -> str:
    lines: list[str] = []
    number = 0
    for part in parts:
        if not isinstance(part, str):
            number += 1
            lines.append(_image(part, f"{kind} {number}"))
        elif part.strip():
            lines.append(f'<p dir="auto">{escape(part.strip())}</p>')
    return "\n".join(lines)


def _image(image: Image.Image, description: str) -> str:
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    small = ' class="small"' if max(image.size) <= 128 else ""  # enlarged without blur
    return f'<img{small} alt="{description}" width="{image.width}" height="{image.height}" src="{source}">'
