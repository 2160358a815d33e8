"""The sample browser of a page: what it shows of each sample, as plain data that one script, or the page's static part, draws.

A sample is ``{"id", "title", "lead", "groups", "blocks", "answers"}``: `blocks` are what all runs share (prompt, options, references),
`answers` one entry for each run of the set, or null. A block is a heading and parts; a part is a text, or an image as
``{"i": place in the page's table of images, "n": note, "c": chosen}``, or ``{"x": why there is none}``. Field names of targets and rows
that benchmarks share (options, answers, letter, rule, ...) have their own blocks; what else a row has is listed as it stands.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dreambench.documents import JSON, Document, Image, Text, document_text, from_json
from dreambench.environment import code_sha256
from dreambench.errors import DataError, DreambenchError, RunError
from dreambench.files import read_json_lines
from dreambench.interfaces import Task
from dreambench.records import JudgementLine, parse
from dreambench.registry import load_task
from dreambench.report.images import SIDE, nearest_reference_images, saved_reference_images, thumbnail
from dreambench.report.runs import (
    SHOWN,
    CompleteRun,
    choose,
    random_order,
    shown_documents,
    shown_images,
    shown_samples,
)
from dreambench.report.text import number, printable
from dreambench.requests import Response, Sample

__all__ = ["ImageTable", "SampleSet", "sample_sets"]

IMAGE_BYTES = 7_000_000
"""Bytes of images on a page, about; samples beyond are left to ``--all``."""
CHARACTERS, TITLE = 4000, 300
"""Characters of a text, and of a sample's line in the list."""
STATUSES = ("right", "partly right", "wrong", "scored", "unscored", "error")
NEIGHBOUR_SIDE = 96
_LOST_IMAGE = re.compile(r"\[image ([0-9a-f]{8})\]")
_OF_SAMPLES = ("id", "image", "image_id", "caption", "caption_id", "document_id", "mode", "topic")
_OF_ANSWERS = ("answer", "text", "error", "letter", "rule", "reason", "right")
_NOT_LISTED = frozenset((*_OF_SAMPLES, *_OF_ANSWERS))
"""Columns of a row that other blocks show."""

Entry = dict[str, Any]
Part = str | dict[str, Any]


def clean(text: str, most: int = CHARACTERS) -> str:
    """A text of data or of a model as the page shows it: without control characters, and not endless."""
    text = text.strip("\n")
    return printable(text if len(text) <= most else text[: most - 1] + "…", keep="\n")


class ImageTable:
    """The images of a page as ``data:`` URLs, each file once."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.size = 0
        self._places: dict[tuple[Path, int], dict[str, Any]] = {}

    def part(self, path: Path | None, note: str = "", *, side: int = SIDE, chosen: bool = False) -> dict[str, Any]:
        """A file of a run as a part of a block, or the reason why it cannot be shown."""
        more = {"n": note} if note else {}
        if path is None:
            return {"x": "not kept in the run", **more}
        if (path, side) not in self._places:
            self._places[path, side] = self._add(path, side)
        return {**self._places[path, side], **more, **({"c": True} if chosen else {})}

    def _add(self, path: Path, side: int) -> dict[str, Any]:
        try:
            # Thumbnails of the run are small already.
            data = path.read_bytes() if path.parent.name == "thumbnails" and side == SIDE else thumbnail(path, side)
        except (DataError, OSError):
            return {"x": f"{printable(path.name)} is missing or damaged"}
        self.urls.append(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")
        self.size += len(self.urls[-1])
        return {"i": len(self.urls) - 1}


@dataclass(frozen=True)
class SampleSet:
    """Runs of one protocol, and a part of their samples."""

    title: str
    column: str | None
    gallery: bool
    runs: list[dict[str, str]]
    groups: list[str]
    samples: list[Entry]
    part: str
    images: ImageTable

    def data(self) -> dict[str, JSON]:
        """For the script. A sample has its groups by number."""
        shared = {name: getattr(self, name) for name in ("title", "column", "gallery", "runs", "groups", "samples")}
        return shared | {"part": self.part, "statuses": STATUSES}

    @property
    def random(self) -> list[Entry]:
        """The samples in random order."""
        return sorted(self.samples, key=lambda entry: random_order(entry["id"]))


def sample_sets(
    runs: Sequence[tuple[str, CompleteRun]], images: ImageTable | None = None, *, every: int = 0
) -> Iterator[SampleSet]:
    """The samples of labelled runs, runs of one task and headline protocol together.

    Of each set the part that a page shows, its images in `images`; with `every`, all samples in the order of the run, that many at a
    time, each part with images of its own.
    """
    images = images or ImageTable()
    sets: dict[tuple[str, str], list[_Run]] = {}
    for label, run in runs:
        protocol = run.metrics.get("protocol") or next(iter(run.metrics["protocols"]), "")
        sets.setdefault((run.metrics["task"], protocol), []).append(_Run(label, run))
    for (task, protocol), members in sets.items():
        builder = _Builder(members, images)
        ids = list(dict.fromkeys(chain.from_iterable(member.run.ids for member in members)))
        title = f"{', '.join(member.label for member in members)} · " if len(runs) > 1 else ""
        title += f"{task} · {protocol}"
        if every:
            stream = iter(members[0].run.run.samples())
            for start in range(0, len(ids), every):
                builder.images = ImageTable()
                read = {sample.id: sample for sample in islice(stream, every)}
                entries = list(builder.entries(ids[start : start + every], read))
                part = f"samples {start + 1:,} to {start + len(entries):,} of {len(ids):,}, in the order of the run"
                yield builder.sample_set(title, entries, part)
            continue
        wanted, how = _shown(members, ids, SHOWN // len(sets))
        before, entries = images.size, list[Entry]()
        for entry in builder.entries(wanted):
            entries.append(entry)
            if images.size - before > IMAGE_BYTES / len(sets):
                break
        part = (
            f"{len(entries):,} of {len(ids):,} samples: {how}"
            if len(entries) < len(ids)
            else f"all {len(ids):,} samples"
        )
        yield builder.sample_set(title, entries, part)


def _shown(members: Sequence[_Run], ids: Sequence[str], most: int) -> tuple[list[str], str]:
    """The ids that the page shows, and how they were chosen."""
    errors = {
        id_ for member in members for kind in member.run.metrics["errors"]["types"].values() for id_ in kind["ids"]
    }
    first = "errors first, then " if errors else ""
    with_images = [member.run for member in members if member.run.has_images or "images" in member.run.columns]
    if not with_images:
        return shown_samples(ids, errors, most), f"{first}random ones"
    rows = [(shown_images(run.rows), shown_documents(run.rows)) for run in with_images]
    order = [row["id"] for images, documents in rows for row in (*images, *documents)]
    extremes = "the lowest and the highest scores, then random ones" if any(images for images, _ in rows) else "random"
    return list(dict.fromkeys([*shown_samples(errors, errors, most // 8), *order]))[:most], first + extremes


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """A run of a set, with what its samples need."""

    label: str
    run: CompleteRun
    nearest: dict[str, list[tuple[str, float]]] = field(default_factory=dict[str, list[tuple[str, float]]])

    @cached_property
    def column(self) -> str | None:
        """The column of scores.parquet by which samples are ranked: that of the scores over most samples, else the first of fractions."""
        if self.run.has_images:  # that by which the lowest and highest are shown
            return choose([row for row in self.run.rows if row["image"]]).column
        columns = dict.fromkeys(score.cells.column for score in self.run.scores if score.cells is not None)
        counts = {name: self.run.count(name) for name in columns}
        if any(counts.values()):
            return max(counts, key=lambda name: counts[name])
        return choose(self.run.rows[:SHOWN], self.run.scores[0].metric if self.run.scores else "").column

    @cached_property
    def is_share(self) -> bool:
        """Whether a cell of that column says right (1), wrong (0) or how much of it is right."""
        cells = [score.cells for score in self.run.scores if score.cells is not None]
        return not self.run.has_images and any(c.column == self.column and c.bounds == (0.0, 1.0) for c in cells)

    @cached_property
    def thumbnails(self) -> dict[str, Path | None]:
        return saved_reference_images(self.run.run)

    @cached_property
    def task(self) -> Task | None:
        """The task, which knows what it sent; None where it is not installed under its name: a run's file imports no code."""
        spec = self.run.run.run_file()["spec"]
        if not isinstance(spec.get("task"), str) or ":" in spec["task"]:
            return None
        try:
            return load_task(self.run.run.spec())
        except DreambenchError:
            return None

    @cached_property
    def prompt_heading(self) -> str:
        """Whether the task's code is that which scored the run."""
        if self.task is None:
            return "question"
        same = code_sha256(type(self.task)) == self.run.metrics.get("code", {}).get("task")
        return "prompt as sent" if same else "prompt as the task words it today (its code has changed since)"

    def sent(self, sample: Sample) -> Document | None:
        """The prompt as it was sent."""
        if self.task is None:
            return None
        first, *rest = sample.prompt or (Text(""),)
        lost = _LOST_IMAGE.fullmatch(first.text) if isinstance(first, Text) else None
        if lost is not None:
            sample = Sample(sample.id, (Image(path=lost[0]), *rest), sample.targets, sample.group)
        try:
            return self.task.request(sample).document
        except (DreambenchError, AttributeError, KeyError, TypeError, ValueError, StopIteration):
            return None  # targets that are not the task's: what is stored is shown

    @cached_property
    def judgements(self) -> dict[str, list[dict[str, JSON]]]:
        """The judge's replies by sample; an answer that another sample gave, too, was graded once, and is found by its content."""
        path, found = self.run.run.path / "judgements.jsonl", dict[str, list[dict[str, JSON]]]()
        for number_, line in read_json_lines(path, RunError, torn=True) if path.is_file() else ():
            if not isinstance(line, dict) or "identity" not in line:
                line = parse(JudgementLine, line, RunError, f"{path}, line {number_}", "; remove the line")
                content = _content(*(line.get(name) for name in ("question", "reference", "prediction")))
                for key in (line["id"], content):
                    found.setdefault(key, []).append(line)
        return found


def _content(question: JSON, reference: JSON, prediction: JSON) -> str:
    return f"{question}\0{reference}\0{prediction}"


# --- samples ----------------------------------------------------------------------------------------------------------


class _Builder:
    """Makes the entries of a set of runs."""

    def __init__(self, members: Sequence[_Run], images: ImageTable) -> None:
        self.members, self.images = members, images
        self.gallery = any(member.run.has_images for member in members)
        self.groups: dict[str, int] = {}
        scores = [score.group for member in members for score in member.run.scores if score.group]
        self._names = list(dict.fromkeys(scores))
        self._by_column = dict.fromkeys(name.partition("=")[0] for name in self._names)

    def sample_set(self, title: str, samples: list[Entry], part: str) -> SampleSet:
        column = next((member.column for member in self.members), None)
        runs = [
            {
                "label": member.label,
                "name": clean(member.run.name),
                "model": clean(str(member.run.metrics["model"]), TITLE),
            }
            for member in self.members
        ]
        shown, groups = column and clean(column), list(self.groups)
        return SampleSet(clean(title), shown, self.gallery, runs, groups, samples, part, self.images)

    def entries(self, ids: Sequence[str], samples: Mapping[str, Sample] | None = None) -> Iterator[Entry]:
        """In the order of `ids`. `samples` are those that are read already."""
        found = dict(samples or {})
        for member in self.members:
            if missing := set(ids) - found.keys():
                found |= {sample.id: sample for sample in member.run.run.samples().pick(missing)}
        rows = [member.run.rows_of(ids) for member in self.members]
        for member, own in zip(self.members, rows, strict=True):
            shown = [id_ for id_ in ids if own.get(id_, {}).get("image")]
            member.nearest = nearest_reference_images(member.run.run, shown) if shown else {}
        for id_ in ids:
            if id_ in found:
                yield self._entry(found[id_], [own.get(id_) for own in rows])

    def _entry(self, sample: Sample, rows: Sequence[Mapping[str, JSON] | None]) -> Entry:
        first = next(row for row in rows if row is not None)
        sent = [member.sent(sample) if row else None for member, row in zip(self.members, rows, strict=True)]
        same = all(one == sent[0] for one in sent)
        shared = sent[0] if same else None
        heading = self.members[0].prompt_heading if shared else "question"
        blocks = [(heading, self._document(shared or sample.prompt, sample, first))]
        blocks += self._targets(sample, first)
        text = _LOST_IMAGE.sub("", " ".join(part.text for part in sample.prompt if isinstance(part, Text)), 1)
        entry: Entry = {"id": clean(sample.id), "title": clean(" ".join(text.split()), TITLE)}
        entry["answers"] = [
            row and self._answer(member, sample, row, None if same else prompt)
            for member, row, prompt in zip(self.members, rows, sent, strict=True)
        ]
        entry["blocks"] = [_block(heading, parts) for heading, parts in blocks if parts]
        entry["groups"] = [self.groups.setdefault(name, len(self.groups)) for name in self._groups_of(first)]
        return entry | {"lead": self._lead(entry)}

    def _groups_of(self, row: Mapping[str, JSON]) -> list[str]:
        """The groups of the scores that a row belongs to, and its mode."""
        named = [f"{name}={row[name]}" for name in (*self._by_column, "mode") if row.get(name) not in (None, "")]
        return list(map(clean, [*named, *(name for name in self._names if row.get(name) is True)]))

    def _lead(self, entry: Entry) -> list[dict[str, Any]]:
        """The images of a sample's line in the list: of image generation the generated ones and the reference, else the first."""
        if not self.gallery:
            return [part for part in _first_image(entry["blocks"]) if "i" in part]
        found: list[dict[str, Any]] = []
        for member, answer in zip(self.members, entry["answers"], strict=True):
            of = f" by {member.label}" if len(self.members) > 1 else ""
            found += [
                {**part, "n": f"generated{of}"}
                for part in _first_image(answer["blocks"] if answer else [], "generated")
            ]
        return [*found[:3], *({**part, "n": "reference"} for part in _first_image(entry["blocks"], "reference"))]

    def _document(self, document: Document, sample: Sample, row: Mapping[str, JSON]) -> list[Part]:
        """Parts of a prompt or a reference; its images are those of which the run keeps thumbnails."""
        reference = sample.targets.get("reference")
        keys: dict[str, str] = {}
        if isinstance(reference, list):
            paths = [str(part["image"]) for part in reference if isinstance(part, dict) and "image" in part]
            keys = {path: f"{sample.targets.get('document_id')}/{place}" for place, path in enumerate(paths)}
        parts: list[Part] = []
        for part in document:
            if isinstance(part, Text) and not _LOST_IMAGE.fullmatch(part.text):
                parts.append(clean(part.text))
            else:
                key = keys.get(part.path or "") if isinstance(part, Image) else None
                parts.append(self._kept(key or str(row.get("image_id"))))
        return parts

    def _kept(self, key: str, note: str = "") -> dict[str, Any]:
        """A thumbnail that a run of the set keeps."""
        for member in self.members:
            if (path := member.thumbnails.get(key)) is not None:
                return self.images.part(path, note)
        if any(key in member.thumbnails for member in self.members):
            return {"x": "no reference image", **({"n": note} if note else {})}
        return self.images.part(None, note)

    def _targets(self, sample: Sample, row: Mapping[str, JSON]) -> Iterator[tuple[str, list[Part]]]:
        """Options and references."""
        targets = sample.targets
        options, answer, answers, reference = (targets.get(k) for k in ("options", "answer", "answers", "reference"))
        if isinstance(options, dict):
            yield "options", [clean("\n".join(f"{letter}. {text}" for letter, text in options.items()))]
            if isinstance(answer, str) and answer in options:
                answer = f"{answer}. {options[answer]}"
        if targets.get("hint"):
            yield "hint", [clean(str(targets["hint"]))]
        listed = answers.split("\n") if isinstance(answers, str) else answers
        if isinstance(listed, list) and listed:
            counts = Counter(map(str, listed)).most_common()
            yield "reference answers", [clean(", ".join(f"{text} ×{n}" if n > 1 else text for text, n in counts))]
        if not row.get("image") and isinstance(reference, list) and all(map(_is_part, reference)):
            yield "reference", self._document(from_json(reference), sample, row)
        elif isinstance(reference, str):
            yield "reference answer", [clean(reference)]
        elif isinstance(answer, str):
            yield "reference answer", [clean(answer)]
        if row.get("caption") and row.get("mode"):
            yield "text that the image illustrates", [clean(str(row["caption"]))]
        if "image" in row and row.get("image_id") is not None:
            yield "reference", [self._kept(str(row["image_id"]))]

    def _answer(self, member: _Run, sample: Sample, row: Mapping[str, JSON], sent: Document | None) -> Entry:
        response = member.run.responses[sample.id]
        value = row.get(member.column or "")
        value = float(value) if isinstance(value, (int, float)) and value == value else None
        if response.error is not None:
            status = "error"
        elif value is None:
            status = "unscored"
        else:
            status = {1.0: "right", 0.0: "wrong"}.get(value, "partly right") if member.is_share else "scored"
        blocks: list[tuple[str, list[Part]]] = []
        if sent is not None:
            blocks.append((member.prompt_heading, self._document(sent, sample, row)))
        blocks += chain(self._reply(member, response, row), _extracted(response, row), _judge(member, sample, row))
        blocks.append(("row of scores.parquet", [_listed(row)]))
        blocks.append(("tokens", [_usage(response)]))
        answer: Entry = {"s": STATUSES.index(status), "r": clean(" ".join(_short(response, row).split()), TITLE)}
        if value is not None:
            answer |= {"v": value, "t": number(value)}
        return answer | {"blocks": [_block(heading, parts) for heading, parts in blocks if any(parts)]}

    def _reply(self, member: _Run, response: Response, row: Mapping[str, JSON]) -> Iterator[tuple[str, list[Part]]]:
        if response.error is not None:
            yield "error", [clean(f"{response.error.type}: {response.error.message}")]
            return
        paths = [Path(part.path or "") for part in response.document if isinstance(part, Image)]
        if not row.get("image"):
            heading = "generated" if paths else "reply"
            yield (
                heading,
                [
                    clean(part.text) if isinstance(part, Text) else self.images.part(Path(part.path or ""))
                    for part in response.document
                ],
            )
            return
        yield "generated", [self.images.part(paths[0] if paths else None)]
        chosen = response.details.get("chosen")
        scores, kept = (_numbers(response.details.get(name)) for name in ("clip_scores", "kept"))
        if len(scores) > 1:
            by_place = dict(zip(kept, paths, strict=False)) if len(paths) > 1 else {}
            order = sorted(range(len(scores)), key=lambda j: (j != chosen, -scores[j]))
            yield (
                "candidates and their CLIPScore",
                [self._candidate(by_place.get(j), scores[j], j == chosen) for j in order],
            )
        if nearest := member.nearest.get(str(row["id"])):
            own = str(row.get("image_id"))
            notes = {key: f"cosine {cosine:.3f}{' (its own)' if key == own else ''}" for key, cosine in nearest}
            yield "nearest reference images", [self._kept(key, note) for key, note in notes.items()]

    def _candidate(self, path: Path | None, score: float, chosen: bool) -> dict[str, Any]:
        note = f"{number(score)}{', chosen' if chosen else ''}"
        if path is None:
            return {"x": "not kept", "n": note, **({"c": True} if chosen else {})}
        return self.images.part(path, note, side=NEIGHBOUR_SIDE, chosen=chosen)


def _is_part(part: JSON) -> bool:
    return isinstance(part, dict) and any(isinstance(part.get(name), str) for name in ("text", "image"))


def _numbers(values: JSON) -> list[Any]:
    """A list of numbers as it is, nothing for anything else."""
    return values if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values) else []


def _block(heading: str, parts: list[Part]) -> dict[str, Any]:
    return {"h": clean(heading, TITLE), "p": parts}


def _first_image(blocks: Iterable[Mapping[str, Any]], heading: str | None = None) -> list[dict[str, Any]]:
    """The first image of the blocks, or of the block with that heading, if there is one."""
    parts = (part for block in blocks if heading in (None, block["h"]) for part in block["p"])
    return [part for part in parts if isinstance(part, dict)][:1]


def _short(response: Response, row: Mapping[str, JSON]) -> str:
    """The answer in one line."""
    if response.error is not None:
        return f"{response.error.type}: {response.error.message}"
    answer = row.get("answer")
    return answer if isinstance(answer, str) else document_text(response.document)


def _extracted(response: Response, row: Mapping[str, JSON]) -> Iterator[tuple[str, list[Part]]]:
    """What was taken from the reply to be scored, and by which rule."""
    if "letter" in row:
        letter = "no letter" if row["letter"] is None else f"letter {row['letter']}"
        by = f", by the rule “{row['rule']}”" if row.get("rule") else ""
        yield "extracted", [clean(f"{letter}{by}{'; right is ' + str(row['right']) if row.get('right') else ''}")]
    elif isinstance(row.get("answer"), str) and row["answer"] != document_text(response.document):
        yield "answer that is scored", [clean(row["answer"])]
    if isinstance(row.get("reason"), str):
        yield "unscored because", [clean(row["reason"])]


def _judge(member: _Run, sample: Sample, row: Mapping[str, JSON]) -> Iterator[tuple[str, list[Part]]]:
    content = _content(document_text(sample.prompt), sample.targets.get("reference"), row.get("answer"))
    for line in member.judgements.get(sample.id) or member.judgements.get(content, ()):
        score, by = line.get("score"), line.get("answered_by")
        grade = "no grade" if score is None else f"grade {number(float(score))}"
        words = str(line.get("raw") or line.get("reason") or "")
        yield f"judge: {grade}{f' by {by}' if by else ''}", [clean(words) or "a rule without words"]


def _listed(row: Mapping[str, JSON]) -> str:
    """The other cells of a row."""
    cells = {name: v for name, v in row.items() if not (name in _NOT_LISTED or v is None or v is False)}
    texts = {name: number(value) if isinstance(value, float) else str(value) for name, value in cells.items()}
    return clean("\n".join(f"{name}: {text}" for name, text in texts.items()))


def _usage(response: Response) -> str:
    """Tokens, how the answer ended, and what the model said of it."""
    tokens = {"prompt tokens": response.prompt_tokens, "new tokens": response.new_tokens}
    found = [f"{n} {name}" for name, n in tokens.items() if n is not None]
    found.append(f"ended by {response.finish_reason}")
    if response.scores is not None:
        found.append("log-likelihoods " + ", ".join(map(number, response.scores)))
    known = ("clip_scores", "chosen", "kept", "caption_cut")
    found += [f"{name}: {value}" for name, value in response.details.items() if name not in known]
    return clean("\n".join(found))
