"""The same study for other tools, in the folder ``organiser/forms``; each holds opaque ids only.

images/                       all images; where they will be found is `images_url`, by default as each tool serves this folder
label-studio.xml              Label Studio's labeling configuration, with choices for every answer
label-studio-pairwise.xml     pairwise studies: the same with Label Studio's ``Pairwise`` for the first question, which knows no ties
label-studio-RATER.json       its tasks
potato-RATER.yaml, .jsonl     Potato's configuration and items
mturk.html, mturk.csv         Mechanical Turk's template and one HIT for each rater
items.jsonl, raters.jsonl     items with questions and answers, and the items of each rater, in order

In all of them a question is named by its id and an answer by its code (`dreambench.human.study.Answer`); ``Pairwise`` says left or right.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from dreambench.documents import JSON
from dreambench.human.study import Answer, Item, Question, Rater, Study
from dreambench.report.text import printable

__all__ = ["write_forms"]

MTURK_BYTES = 65_000
"""The question of a HIT may have 65,535 bytes (reference of CreateHIT); the rest is for what Mechanical Turk wraps it in."""
LABEL_STUDIO_IMAGES = "/data/local-files/?d=images"
POTATO_IMAGES = "/media"
VOTES = {
    "a": "the first is better",
    "b": "the second is better",
    "tie": "tie",
    "both_good": "both are good",
    "both_bad": "neither is good",
}


def write_forms(study: Study, images: Mapping[str, bytes], folder: Path, images_url: str | None = None) -> list[str]:
    """Write all forms of a study into `folder`. Text of models and data is escaped for each tool.

    Returns why a form is missing: Mechanical Turk's, where what a rater sees is more than a HIT can hold.
    """
    form = _Forms(study, images_url and images_url.rstrip("/"))
    files: dict[str, bytes] = {"label-studio.xml": form.label_studio_config(pairwise=False)}
    if form.pairwise:
        files["label-studio-pairwise.xml"] = form.label_studio_config(pairwise=True)
    for rater in study.raters:
        items = [form.items[id_] for id_ in rater.items]
        files[f"label-studio-{rater.id}.json"] = _json([form.label_studio_task(rater, item) for item in items])
        files[f"potato-{rater.id}.yaml"] = form.potato_config(rater)
        files[f"potato-{rater.id}.jsonl"] = _lines([form.potato_item(item) for item in items])
    template, rows = form.mturk_template(), form.mturk_rows()
    largest = max(len(template) + len(items.encode()) for _, _, items in rows)
    if largest <= MTURK_BYTES:
        files |= {"mturk.html": template, "mturk.csv": form.mturk_table(rows)}
    files["items.jsonl"] = _lines([form.plain_item(item) for item in study.items])
    files["raters.jsonl"] = _lines([{"rater": rater.id, "items": list(rater.items)} for rater in study.raters])
    files |= {f"images/{name}": data for name, data in images.items()}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if largest <= MTURK_BYTES:
        return []
    return [
        f"no form for Mechanical Turk: the items of a rater are {largest // 1000} kB and a HIT holds {MTURK_BYTES // 1000}; "
        "take more --raters, or let a HIT link to `dreambench human serve`"
    ]


class _Forms:
    """A study, in the words of each tool."""

    def __init__(self, study: Study, images_url: str | None) -> None:
        self.study, self.images_url = study, images_url
        self.items = {item.id: item for item in study.items}
        self.pairwise = study.questions[0].kind == "pairwise"
        self.questions = {question.id: question for question in study.questions}

    # --- Label Studio -----------------------------------------------------------------------------------------------

    def label_studio_config(self, *, pairwise: bool) -> bytes:
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Text", name="instruction", value="$instruction")
        sides = ("left", "right") if self.pairwise else ("document",)
        row = ElementTree.SubElement(view, "View", style="display: flex; gap: 2em")
        for side in sides:
            column = ElementTree.SubElement(row, "View", style="flex: 1; max-width: 60em")
            ElementTree.SubElement(column, "HyperText", name=side, value=f"${side}", inline="true")
        for number, question in enumerate(self.study.questions):
            # A dollar sign would name a field of the task.
            ElementTree.SubElement(view, "Header", value=_line(question.text).replace("$", "＄"), size="4")
            if pairwise and number == 0:
                ElementTree.SubElement(view, "Pairwise", name=question.id, toName=",".join(sides))
                continue
            choices = ElementTree.SubElement(
                view, "Choices", name=question.id, toName=sides[0], choice="single-radio", required="true"
            )
            for answer, label in _answers(question):
                ElementTree.SubElement(choices, "Choice", value=_line(label).replace("$", "＄"), alias=str(answer))
        ElementTree.indent(view)
        return ElementTree.tostring(view, encoding="utf-8") + b"\n"

    def label_studio_task(self, rater: Rater, item: Item) -> JSON:
        shown = [self._document(parts, LABEL_STUDIO_IMAGES) for parts in item.documents]
        fields = dict(zip(("left", "right") if self.pairwise else ("document",), shown, strict=True))
        ids = {"study": self.study.id, "rater": rater.id, "item": item.id}
        return {"data": {**ids, "instruction": self._instruction(item), **fields}}

    # --- Potato -----------------------------------------------------------------------------------------------------

    def potato_config(self, rater: Rater) -> bytes:
        import yaml

        schemes = [
            {
                "annotation_type": "radio",
                "name": question.id,
                "description": _line(question.text),
                "labels": [{"name": str(answer), "text": _line(label)} for answer, label in _answers(question)],
                "label_requirement": {"required": True},
            }
            for question in self.study.questions
        ]
        config = {
            "annotation_task_name": _line(self.study.title),
            "task_dir": ".",
            "data_files": [f"potato-{rater.id}.jsonl"],
            "item_properties": {"id_key": "id", "text_key": "text"},
            "media_directory": "images",
            "output_annotation_dir": f"potato-output/{rater.id}",
            "export_annotation_format": "jsonl",
            "assignment_strategy": "fixed_order",
            "require_password": False,
            "user_config": {"allow_all_users": False, "users": [rater.id]},
            "annotation_schemes": schemes,
        }
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()

    def potato_item(self, item: Item) -> JSON:
        return {"id": item.id, "text": self._html(item, POTATO_IMAGES)}

    # --- Mechanical Turk ----------------------------------------------------------------------------------------------

    def mturk_template(self) -> bytes:
        """A HIT is everything that one rater rates: single items would let a worker see a prompt from two systems."""
        texts = "\n".join(f"<p>{_escaped(text)}</p>" for text in (self.study.consent, self.study.warning))
        ids = "\n".join(f'<input type="hidden" name="{name}" value="${{{name}}}">' for name in ("study", "rater"))
        rules = "section { max-width: 60em; margin: 3em auto } img { max-width: 100% } td { vertical-align: top; width: 50% }"
        return f"<style>{rules}</style>\n<h1>{_escaped(self.study.title)}</h1>\n{texts}\n{ids}\n${{items}}\n".encode()

    def mturk_rows(self) -> list[tuple[str, str, str]]:
        """(study, rater, items). Cells are ids, or HTML that begins with a tag: none can be read as a formula."""
        rows: list[tuple[str, str, str]] = []
        for rater in self.study.raters:
            sections = [self._section(self.items[id_], place) for place, id_ in enumerate(rater.items, 1)]
            rows.append((self.study.id, rater.id, "".join(sections)))
        return rows

    @staticmethod
    def mturk_table(rows: Sequence[tuple[str, str, str]]) -> bytes:
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([("study", "rater", "items"), *rows])
        return table.getvalue().encode()

    def _section(self, item: Item, place: int) -> str:
        fields: list[str] = []
        for id_ in item.questions:
            question, name = self.questions[id_], f"{item.id}.{id_}"
            options = "".join(
                f'<label><input type="radio" name="{name}" value="{answer}" required> {_escaped(label)}</label> '
                for answer, label in _answers(question)
            )
            fields.append(f"<fieldset><legend>{_escaped(question.text)}</legend>{options}</fieldset>")
        return f"<section><h2>{place}</h2>{self._html(item, 'images')}{''.join(fields)}</section>"

    # --- JSON Lines ---------------------------------------------------------------------------------------------------

    def plain_item(self, item: Item) -> JSON:
        questions = [
            {
                "id": id_,
                "text": self.questions[id_].text,
                "answers": [{"answer": answer, "label": label} for answer, label in _answers(self.questions[id_])],
            }
            for id_ in item.questions
        ]
        return {
            "study": self.study.id,
            "item": item.id,
            "instruction": self._instruction(item),
            "documents": item.documents,
            "questions": questions,
        }

    # --- documents ----------------------------------------------------------------------------------------------------

    def _instruction(self, item: Item) -> str:
        if item.purpose != "training":
            return item.instruction
        answers = {id_: dict(_answers(self.questions[id_]))[answer] for id_, answer in item.expected.items()}
        return f"(Training; expected: {'; '.join(answers.values())}.) {item.instruction}"

    def _html(self, item: Item, images: str) -> str:
        """Instruction and documents; two documents side by side."""
        shown = [self._document(parts, images) for parts in item.documents]
        if len(shown) > 1:
            shown = [f"<table><tr>{''.join(f'<td>{document}</td>' for document in shown)}</tr></table>"]
        return f'<p dir="auto"><b>{_escaped(self._instruction(item))}</b></p>{shown[0]}'

    def _document(self, parts: Sequence[Mapping[str, str | int]], images: str) -> str:
        place = self.images_url or images
        return "".join(
            f'<p><img src="{html.escape(place)}/{part["image"]}" width="{part["width"]}" height="{part["height"]}" alt=""></p>'
            if "image" in part
            else f'<p dir="auto">{_escaped(str(part["text"]))}</p>'
            for part in parts
        )


def _answers(question: Question) -> list[tuple[Answer, str]]:
    """Codes of the possible answers with their words."""
    if question.kind == "pairwise":
        return list(VOTES.items())
    return list(enumerate(question.labels, 0 if question.kind == "accept" else 1))


def _line(text: str) -> str:
    """One line without control characters, which XML cannot hold."""
    return printable(" ".join(text.split()))


def _escaped(text: str) -> str:
    """Text for HTML. Colons, brackets and dollar signs, too: tools remove ``data:`` and ``expression(``, and ``${x}`` is a field."""
    shown = html.escape(printable(text, keep="\n\t"))
    for sign in ":($":
        shown = shown.replace(sign, f"&#{ord(sign)};")
    return shown.replace("\n", "<br>")


def _json(value: JSON) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _lines(values: Sequence[JSON]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()
