"""export, contamination."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambench.cli.options import with_spec_options
from dreambench.errors import counted
from dreambench.spec import RunSpec

if TYPE_CHECKING:
    from dreambench.contamination import Overlap

__all__ = ["contamination", "export"]

EVERY = 100_000


def export(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...|RUNS_DIR", help="Runs, or folders that hold runs.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORM", help="every-eval-ever, model-card, eval-results, mlflow, trackio or submission."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="The file, or for stores the folder, to write.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="What the form asks beside the run (docs/exports.md); may be repeated."
        ),
    ] = None,
) -> None:
    """Write complete runs in a form that others read: a shared database, a model card, a tracker, a benchmark's server.

    Example: dreambench export runs/vqav2-dreamllm-1a2b3c4d --to submission --out vqa.json
    """
    from dreambench.exports import export as write
    from dreambench.report.runs import load_all
    from dreambench.safety import printable
    from dreambench.spec import pairs

    for line in write(load_all(runs), to, out, pairs(settings, "--set")):
        print(printable(line))


@with_spec_options("data", "images", "split", "limit")
def contamination(
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="The benchmark; see `dreambench list tasks`.")],
    train: Annotated[
        list[Path],
        typer.Option(
            "--train", metavar="PATH", help="Training data: a manifest, a folder, or a recipe; may be repeated."
        ),
    ],
    options: dict[str, Any],
    train_images: Annotated[
        Path | None,
        typer.Option("--train-images", metavar="DIR", help="Their images; default: the folder of each manifest."),
    ] = None,
    ngram: Annotated[
        int | None,
        typer.Option("--ngram", metavar="N", min=2, help="Words of an n-gram; default: GPT-3's rule, 8 to 13."),
    ] = None,
    template: Annotated[
        int,
        typer.Option(
            "--template", metavar="K", min=1, help="A text that more than K groups of samples share is a template."
        ),
    ] = 10,
    distance: Annotated[
        int,
        typer.Option(
            "--distance", metavar="BITS", min=0, max=255, help="Bits, of 256, in which similar images may differ."
        ),
    ] = 20,
    texts_only: Annotated[bool, typer.Option("--texts-only", help="Compare no images.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every finding, by sample.")
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            "--clean", metavar="FILE", help="Write the ids of the samples that are untouched, for `run --ids`."
        ),
    ] = None,
) -> None:
    """Look for a benchmark's images and texts in training data.

    Example: dreambench contamination --task vqav2 --train train/pairs_train.jsonl --json overlap.json --clean clean.txt
    """
    import json
    import shlex

    from dreambench.api import choose
    from dreambench.contamination import find_overlap
    from dreambench.files import write_atomically
    from dreambench.progress import say
    from dreambench.registry import load_task
    from dreambench.safety import printable
    from dreambench.training_data import TrainingData

    spec = RunSpec(task=task, **options)
    loaded = load_task(spec)
    samples = choose(loaded.samples(), None)
    if spec.limit is not None:
        samples = loaded.first(samples, spec.limit)

    def progress(done: int) -> None:
        if done % EVERY == 0:
            say(f"{counted(done, 'record')} read")

    training = TrainingData(train, train_images, texts_only)
    overlap = find_overlap(loaded, samples, training, n=ngram, template=template, distance=distance, progress=progress)
    _print(overlap, loaded.name)
    if json_file is not None:
        write_atomically(json_file, (json.dumps(overlap.to_json(), indent=1) + "\n").encode())
    if clean is not None and (untouched := overlap.clean()):
        write_atomically(clean, "".join(f"{id_}\n" for id_ in untouched).encode())
        place = [
            word for name in ("data", "images", "split") if name in options for word in (f"--{name}", options[name])
        ]
        command = shlex.join(["dreambench", "run", "--task", task, *place, "--ids", str(clean)])
        print(printable(f"scores of the rest: {command}"))
    elif clean is not None:
        say(f"no sample is untouched: {clean} was not written")


def _print(overlap: Overlap, task: str) -> None:
    """What was compared, a line for each kind of overlap with an example, and the templates."""
    from dreambench.contamination import KINDS
    from dreambench.safety import printable

    counts, check, total = overlap.counts, overlap.check, len(overlap.ids)
    texts_only = check["image"] is None
    print(f"{task}: {counted(total, 'sample')}" + ("" if texts_only else f", {counted(counts['images'], 'image')}"))
    print(printable(f"training: {', '.join(map(str, check['training_files']))}"))
    print(
        f"  {counted(counts['training_records'], 'record')}, {counted(counts['training_texts'], 'text')},"
        f" {'images not compared' if texts_only else counted(counts['training_images'], 'image')}"
    )
    for kind in KINDS[3 * texts_only :]:
        ids = overlap.touched(kind)
        example = ""
        if ids:
            hit = overlap.hits[ids[0]][kind]
            example = f"  {ids[0]} in {hit.train}" + (f": {hit.what}" if hit.what != kind else "")
        print(printable(f"{kind:14s} {len(ids):6d} {100 * len(ids) / total:6.2f} %{example[:160]}"))
    for what, n in {"image and text": overlap.both, "any": len(overlap.hits)}.items():
        if what == "any" or not texts_only:
            print(f"{what:14s} {n:6d} {100 * n / total:6.2f} %")
    print(f"samples in groups without any: {len(overlap.clean())}")
    print(f"texts: {check['text']}; a template is {check['template']}")
    seen = sum(1 for _, _, times in overlap.templates if times)
    if seen:
        text, groups, times = overlap.templates[0]
        print(
            printable(
                f"templates, not counted: {seen} in training, such as {text[:80]!r} ({groups} groups, {times} training texts)"
            )
        )
    if not texts_only:
        near, pairs = check["similar_pairs_within_benchmark"]
        print(f"images: {check['image']}; of the benchmark's own, {near} of {counted(pairs, 'pair')} are that similar")
    for name, what in {
        "broken_images": "images of the benchmark cannot be decoded, and were compared by their bytes",
        "unreadable_training_images": "training images are missing or cannot be decoded: --train-images DIR says where they are",
        "broken_lines": "training lines are no JSON object",
        "empty_records": "training records have neither a text nor an image",
    }.items():
        if counts[name]:
            print(f"note: {counts[name]} {what}")
