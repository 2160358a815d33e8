"""Write a study: what each rater gets, and apart from it the key that unblinds it.

Raters' files hold no name of a system or of a run, in no name, text of ours, order, time or metadata: images are decoded and encoded
again without loss, names are hashes, files and zip entries have one constant time. The same command writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dreambench.documents import JSON, Document, Image, Text, digest
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import discard, temporary
from dreambench.human.design import Mode, Showing, design_study
from dreambench.human.forms import write_forms
from dreambench.human.page import render_page
from dreambench.human.sources import Prompt, Sources, read_sources
from dreambench.human.study import KEY, Item, Rater, Study
from dreambench.human.texts import Check, Texts, attention_checks, read_texts, training_items
from dreambench.images import BrokenImageError, decode_rgb
from dreambench.report.text import printable

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Export", "Form", "export_study", "summary"]

Form: TypeAlias = Literal["folder", "zip", "html"]
HTML_BYTES = 50_000_000
"""What a page with its images inside may have: browsers become slow above."""
TIME = 315_532_800
"""1980-01-01, the first day that a zip archive knows, for every file of a rater."""
WEBP_SIDE = 16_383
DESIGN = 1
"""Version of `design_study`'s rules."""
Parts: TypeAlias = tuple[dict[str, str | int], ...]


@dataclass(frozen=True)
class Export:
    """A study that was written, the reasons why prompts are left out, and what else its maker should know."""

    study: Study
    folder: Path
    left_out: Mapping[str, str]
    notes: Sequence[str]


def export_study(
    runs: Sequence[Path],
    out: Path,
    *,
    mode: Mode = "rating",
    references: int = 0,
    documents: int | None = None,
    raters: int | None = None,
    votes_per_document: int = 5,
    attention: int | None = None,
    repeats: int | None = None,
    questions: Path | None = None,
    texts: Mapping[str, str | None] | None = None,
    size: int | None = None,
    form: Form = "folder",
    images_url: str | None = None,
    seed: int = 0,
) -> Export:
    """Write a blind, balanced study of complete runs on the same samples into the folder `out`.

    Args:
        mode: ``rating`` shows one document at a time, ``pairwise`` two documents of one prompt.
        references: add the reference documents of so many prompts as one more system; the study then has these prompts.
        documents: number of prompts, in equal parts from all topics; default: all.
        raters: default: the fewest that the votes allow, because a rater sees a prompt once.
        votes_per_document: votes for each document; in a pairwise study, for each prompt, spread over the pairs.
        attention, repeats: checks, and items shown twice, for each rater; default: one of each for every 20 items.
        questions: YAML or JSON file with questions and texts, see `dreambench.human.texts.Texts`; `texts` overrides single texts.
        size: crop images to the centered square and scale it to so many pixels, so that sizes tell no system apart.
        images_url: where the images of the other forms will be found; default: a folder beside them.

    Raises:
        UsageError: unequal runs, impossible numbers, or another study in `out`.
        RunError: a run is not complete.
    """
    if references and documents not in (None, references):
        raise UsageError(f"--references {references} and --documents {documents}: both are the number of prompts")
    wording = read_texts(questions, mode, **(texts or {}))
    sources = read_sources(runs, references=references > 0)
    secret = digest([sources.fingerprint(), seed, mode, size])
    gallery = _Gallery(secret, size)
    prompts, left_out = _choose(sources, gallery, documents or references or None, seed)
    systems = sorted(sources.systems)  # not in the order of the command: that would make another study
    votes = votes_per_document * (len(systems) if mode == "rating" else 1)
    raters = votes if raters is None else raters
    lessons = training_items(wording.questions)
    checks, repeats = _checks(wording, len(prompts) * votes // raters, attention, repeats)
    counts = {"attention": len(checks), "repeats": repeats}
    orders = design_study(
        len(prompts), systems, mode, raters=raters, votes=votes, training=len(lessons), seed=seed, **counts
    )
    design: dict[str, JSON] = {
        "version": DESIGN,
        "mode": mode,
        "task": sources.task,
        "prompts": len(prompts),
        "votes_per_prompt": votes,
        "raters": raters,
        **counts,
        "seed": seed,
        "image_size": size,
        "left_out": left_out,
        "stopping_rule": wording.stopping_rule,
    }
    items = _Items(secret, prompts, gallery, {"training": lessons, "attention": checks}, wording)
    study = _study(wording, design, sources.systems, items, orders)
    missing = _write(study, gallery.files, out, form, images_url)
    return Export(study, out, left_out, _telling(study, gallery) + missing)


def _checks(wording: Texts, items: int, attention: int | None, repeats: int | None) -> tuple[list[Check], int]:
    """The attention checks and the number of repeats for a rater of so many items."""
    usual = min(items // 3, max(1, round(items / 20)))
    if attention is not None and attention > items:  # before any is drawn
        raise UsageError(
            f"--attention {attention}: a rater has {counted(items, 'item')}, and checks are fewer than items"
        )
    return attention_checks(
        wording.questions, usual if attention is None else attention
    ), usual if repeats is None else repeats


def _study(
    wording: Texts,
    design: dict[str, JSON],
    systems: dict[str, JSON],
    items: _Items,
    orders: Sequence[Sequence[Showing]],
) -> Study:
    """The key of a study in which rater k sees ``orders[k]``."""
    shown = [tuple(items.id(showing) for showing in order) for order in orders]
    digits = len(str(len(orders)))
    raters = [
        Rater(id=f"rater-{k:0{digits}}", token=digest([items.secret, "token", k])[:32], items=ids)
        for k, ids in enumerate(shown, 1)
    ]
    return Study(
        title=wording.title,
        consent=wording.consent,
        warning=wording.warning,
        design=design,
        questions=wording.questions,
        systems=systems,
        items=tuple(items.made[id_] for id_ in sorted(items.made)),
        raters=tuple(raters),
    )


def summary(export: Export) -> list[str]:
    """What was written, in a few lines for the terminal."""
    study, design = export.study, export.study.design
    items = [len(rater.items) for rater in study.raters]
    longest = str(max(items)) if min(items) == max(items) else f"{min(items)} to {max(items)}"
    lines = [
        f"study {study.id} ({design['mode']}): {counted(design['prompts'], 'prompt')} of {', '.join(study.systems)}",
        f"{counted(len(items), 'rater')}, {design['prompts'] * design['votes_per_prompt']} votes; a rater sees {longest} items, "
        f"{design['attention']} of them attention checks and {design['repeats']} repeats",
    ]
    if export.left_out:
        named = "; ".join(f"{id_} ({why})" for id_, why in list(export.left_out.items())[:5])
        more = f"; and {len(export.left_out) - 5} more, all in the key" if len(export.left_out) > 5 else ""
        lines.append(f"left out for all systems: {counted(len(export.left_out), 'prompt')}: {named}{more}")
    lines += [f"note: {note}" for note in export.notes]
    lines.append(f"for the raters: {export.folder / 'raters'}")
    lines.append(f"for you alone: {export.folder / 'organiser'} (the key, and the forms of other tools)")
    return [printable(line) for line in lines]


# --- documents and images ---------------------------------------------------------------------------------------------


@dataclass
class _Gallery:
    """Images as raters get them, by opaque name."""

    secret: str
    size: int | None
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    sizes: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """By system: how many images have which size."""

    def document(self, document: Document) -> tuple[Parts, dict[str, bytes]]:
        """A document as it is shown, and its images. Raises `DataError`, `BrokenImageError` for an image that cannot be shown."""
        parts: list[dict[str, str | int]] = []
        images: dict[str, bytes] = {}
        for part in document:
            if isinstance(part, Image):
                image = self._fitted(decode_rgb(part))
                name = self._name(image)
                images[name] = self.files.get(name) or _webp(image)
                parts.append({"image": name, "width": image.width, "height": image.height})
            elif part.text.strip():
                parts.append({"text": part.text})
        return tuple(parts) or ({"text": "(an empty document)"},), images

    def _name(self, image: PIL.Image.Image) -> str:
        pixels = hashlib.sha256(image.tobytes()).hexdigest()
        return digest([self.secret, "image", image.size, pixels])[:20] + ".webp"

    def _fitted(self, image: PIL.Image.Image) -> PIL.Image.Image:
        from PIL import Image as Pillow
        from PIL import ImageOps

        if self.size is not None:
            return ImageOps.fit(image, (self.size, self.size), Pillow.Resampling.LANCZOS)
        if max(image.size) > WEBP_SIDE:
            raise UsageError(f"an image of {image.width} × {image.height} pixels is too large: give --size")
        return image


def _webp(image: PIL.Image.Image) -> bytes:
    """Lossless, from the pixels alone: no EXIF, no colour profile, no comment."""
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    bare = Pillow.frombytes("RGB", image.size, image.tobytes())
    bare.save(buffer, format="WEBP", lossless=True, quality=50, method=3)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Shown:
    """A prompt with its documents by system, ready to be shown."""

    prompt: Prompt
    documents: Mapping[str, Parts]


def _choose(sources: Sources, gallery: _Gallery, wanted: int | None, seed: int) -> tuple[list[_Shown], dict[str, str]]:
    """The study's prompts. One that a system failed at, or whose images cannot be shown, is left out for all systems."""
    chosen: list[_Shown] = []
    left_out = dict(sources.failed)
    for prompt in sources.in_order(seed):
        if len(chosen) == wanted:
            break
        shown: dict[str, Parts] = {}
        images: dict[str, bytes] = {}
        try:
            lead: Document = (*prompt.images, Text("—")) if prompt.images else ()
            for system, documents in sources.documents.items():
                shown[system], more = gallery.document((*lead, *documents[prompt.id]))
                images |= more
        except (DataError, BrokenImageError) as error:
            system = next(name for name in sources.documents if name not in shown)
            left_out[prompt.id] = (
                f"{system}: {'image that cannot be decoded' if isinstance(error, BrokenImageError) else 'missing image'}"
            )
            continue
        gallery.files |= images
        for system, parts in shown.items():
            sizes = (f"{part['width']} × {part['height']}" for part in parts if "image" in part)
            gallery.sizes.setdefault(system, Counter()).update(sizes)
        chosen.append(_Shown(prompt, shown))
    if not chosen or (wanted is not None and len(chosen) < wanted):
        why = f" ({len(left_out)} left out, the first {next(iter(left_out.items()))})" if left_out else ""
        raise UsageError(f"{counted(len(chosen), 'prompt')} can be shown{why}: ask for no more than that")
    return chosen, left_out


@dataclass
class _Items:
    """Items by opaque id, made on first use: raters who see the same share one."""

    secret: str
    prompts: Sequence[_Shown]
    gallery: _Gallery
    checks: Mapping[str, Sequence[Check]]
    wording: Texts
    made: dict[str, Item] = field(default_factory=dict[str, Item])

    def id(self, showing: Showing) -> str:
        key = [showing.purpose, showing.prompt, list(showing.systems), showing.check]
        id_ = digest([self.secret, "item", key])[:16]
        if id_ not in self.made:
            self.made[id_] = self._item(id_, showing)
        return id_

    def _item(self, id_: str, showing: Showing) -> Item:
        questions = tuple(question.id for question in self.wording.questions)
        if showing.check >= 0:
            check = self.checks[showing.purpose][showing.check]
            documents: list[Parts] = []
            for document in check.documents:
                parts, images = self.gallery.document(document)
                self.gallery.files |= images
                documents.append(parts)
            return Item(
                id=id_,
                purpose=showing.purpose,
                prompt=f"{showing.purpose} {showing.check + 1}",
                topic=None,
                instruction=check.instruction,
                systems=("check",) * len(documents),
                documents=tuple(documents),
                questions=questions,
                expected=check.expected,
            )
        shown = self.prompts[showing.prompt]
        repeats = None if showing.purpose == "study" else self.id(Showing("study", showing.prompt, showing.systems))
        return Item(
            id=id_,
            purpose=showing.purpose,
            prompt=shown.prompt.id,
            topic=shown.prompt.topic,
            instruction=shown.prompt.instruction,
            systems=showing.systems,
            documents=tuple(shown.documents[system] for system in showing.systems),
            questions=questions,
            repeats=repeats,
        )


def _telling(study: Study, gallery: _Gallery) -> list[str]:
    """What could tell systems apart and is not ours to change."""
    notes: list[str] = []
    sizes = {system: counts for system, counts in gallery.sizes.items() if counts}
    if len({frozenset(counts) for counts in sizes.values()}) > 1:
        common = "; ".join(
            f"{system}: {', '.join(size for size, _ in counts.most_common(2))}" for system, counts in sizes.items()
        )
        notes.append(f"image sizes can tell systems apart ({common}): --size PX makes them equal")
    for system in study.systems:
        words = {system, system.rpartition("/")[2].partition(":")[0]}
        named = sum(
            any(
                word.lower() in str(part.get("text", "")).lower()
                for word in words
                for parts in item.documents
                for part in parts
            )
            for item in study.items
            if item.purpose == "study"
        )
        if named and len(system) > 3:
            notes.append(f"{counted(named, 'item')} with the word {system} in a text: raters may recognise the system")
    return notes


# --- files ------------------------------------------------------------------------------------------------------------


def _write(study: Study, images: Mapping[str, bytes], out: Path, form: Form, images_url: str | None) -> list[str]:
    """Everything is written beside `out` and then takes its place; ratings that are there stay. Returns why a form is missing."""
    if out.name in ("", ".."):
        raise UsageError(f"--out {out}: name a folder for the study")
    if (out / KEY).is_file():
        if Study.read(out).id != study.id:
            raise UsageError(
                f"{out} holds another study ({Study.read(out).id}, this is {study.id}): choose another --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is neither a study nor an empty folder: choose another --out")
    with temporary(out) as unfinished:
        for rater in study.raters:
            _write_rater(study, rater, images, unfinished / "raters", form)
        missing = write_forms(study, images, unfinished / "organiser" / "forms", images_url)
        study.write(unfinished)
        if not out.exists() or not any(out.iterdir()):
            unfinished.replace(out)
            return missing
        for part in (Path("raters"), Path("organiser/forms")):
            discard(out / part)
            (unfinished / part).replace(out / part)
        return missing


def _write_rater(study: Study, rater: Rater, images: Mapping[str, bytes], folder: Path, form: Form) -> None:
    by_id = {item.id: item for item in study.items}
    names = {
        str(part["image"]): None
        for id_ in rater.items
        for parts in by_id[id_].documents
        for part in parts
        if "image" in part
    }
    public: Any = study.public(rater)
    folder.mkdir(parents=True, exist_ok=True)
    if form == "html":
        _write_html(public, {name: images[name] for name in names}, folder / f"{rater.id}.html")
        return
    files = {"index.html": render_page(public).encode(), "study.json": json.dumps(public, indent=1).encode()}
    files |= {f"images/{name}": images[name] for name in sorted(names)}
    if form == "zip":
        _write_zip(files, folder / f"{rater.id}.zip")
        return
    for name, data in files.items():
        path = folder / rater.id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    _set_times([folder / rater.id, *(folder / rater.id).rglob("*")])


def _write_html(public: Any, images: Mapping[str, bytes], path: Path) -> None:
    import base64

    urls = {name: f"data:image/webp;base64,{base64.b64encode(data).decode()}" for name, data in images.items()}
    page = render_page(public, urls).encode()
    if len(page) > HTML_BYTES:
        raise UsageError(
            f"--form html: the page of {path.stem} would have {len(page) / 1e6:.0f} MB, more than {HTML_BYTES / 1e6:.0f}: "
            "take --form zip, a smaller --size, or more raters"
        )
    path.write_bytes(page)
    _set_times([path])


def _write_zip(files: Mapping[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    _set_times([path])


def _set_times(paths: Iterable[Path]) -> None:
    for path in paths:
        os.utime(path, (TIME, TIME))
