"""Complete runs made by hand: as `dreambench run --task interleaved` leaves them, with documents drawn from a seed."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

from PIL import Image as Pillow

from dreambench.batches import Batches
from dreambench.documents import Document, Image, Text, to_json
from dreambench.requests import Response, Sample
from dreambench.scores import Protocol
from dreambench.store import FORMAT, RunFolder

TOPICS = ("beach", "kitchen", "garden")


def picture(seed: str, size: tuple[int, int] = (24, 16)) -> bytes:
    """A PNG of noise with EXIF data that name a camera."""
    image = Pillow.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    exif = Pillow.Exif()
    exif[0x010F] = "secret-camera"
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif)
    return buffer.getvalue()


def samples(folder: Path, n: int) -> list[Sample]:
    """`n` instructions with reference documents; two samples of each, and one that is teacher-forced."""
    found: list[Sample] = []
    for k in range(n):
        path = folder / f"reference-{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(f"reference {k}"))
        instruction = f"Write about thing {k}."
        targets = {
            "mode": "free",
            "document_id": f"doc-{k}",
            "topic": TOPICS[k % len(TOPICS)],
            "instruction": instruction,
            "reference": to_json((Text(f"The true thing {k}."), Image(path=str(path)))),
        }
        prompt = (Text(instruction),)
        found += [Sample(f"free/doc-{k}/{j}", prompt, targets) for j in range(2)]
        found.append(
            Sample(
                f"teacher-forced/doc-{k}/0",
                prompt,
                targets | {"mode": "teacher-forced", "image": 0, "reference_image": str(path)},
            )
        )
    return found


def make_run(
    folder: Path,
    model: str,
    some: list[Sample],
    *,
    failed: tuple[str, ...] = (),
    documents: dict[str, Document] | None = None,
    task: str = "interleaved",
    size: tuple[int, int] = (24, 16),
) -> Path:
    """A complete run of `model`; `documents` replaces what it answered to samples of these ids."""
    run = RunFolder(folder / f"{task}-{model}-0a1b2c3d")
    protocol = "official@1-12345678"
    run.begin(
        {
            "format": FORMAT,
            "spec": {"task": task, "model": model},
            "task": task,
            "model": model,
            "protocols": {protocol: Protocol("official", 1, {}).to_json()},
            "system": {},
            "notes": [],
            "environment": {},
            "plan": {"batch_size": len(some)},
        },
        some,
        Batches.of([list(range(len(some)))]),
    )
    responses: list[Response] = []
    for sample in some:
        document = (
            Text(f"A thing by seed {len(model)}: {sample.id[-3:]}."),
            Image(data=picture(model + sample.id, size)),
        )
        document = (documents or {}).get(sample.id, document)
        error = Response.failed(sample.id, "timeout", "it took too long")
        responses.append(error if sample.id in failed else Response(sample.id, document))
    run.append(0, "b0", responses)
    metrics = {
        "task": task,
        "model": model,
        "protocol": protocol,
        "protocols": {},
        "scores": [],
        "errors": {"n": 0, "types": {}},
        "notes": [],
    }
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    return run.path
