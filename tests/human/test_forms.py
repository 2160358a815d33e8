"""The forms of other tools: well-formed, with opaque ids only, and hostile text is text in all of them."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from human.runs import make_run, picture, samples

from dreambench.documents import Image, Text
from dreambench.human.export import export_study
from dreambench.human.study import VOTES, Study

HOSTILE = (
    '=HYPERLINK("http://example.org","x")',
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "${study} $instruction {{ 7 * 7 }} {% raw %}",
    "javascript:alert(1) data:text/html,x expression(1)",
    "\u202ereversed \u2066 \x1b[31m red \x00 nul",
    "שלום عالم " + "long" * 1000,
    "]]> &amp; --> '\"; line\nbreak\ttab",
    "@SUM(A1)",
    "-1+1",
)


class Tags(HTMLParser):
    """The elements, attributes and text of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += "\n" * (tag == "br")

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()  # noqa: S314 - our own file


@pytest.fixture(scope="module", params=["rating", "pairwise"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("forms")
    some = samples(folder / "data", len(HOSTILE))
    some = [
        type(one)(one.id, one.prompt, {**one.targets, "instruction": HOSTILE[k // 3]}) for k, one in enumerate(some)
    ]
    said = {f"free/doc-{k}/0": (Text(text), Image(data=picture(text))) for k, text in enumerate(HOSTILE)}
    runs = [make_run(folder, model, some, documents=said) for model in ("zebra-model", "quokka-model")]
    kind = "pairwise" if request.param == "pairwise" else "accept"
    questions = folder / "questions.json"
    asked = {"id": "q1", "text": "Is $this <b>good</b>: yes\u0007?", "kind": kind, "labels": ["=no $1", "</Choice>yes"]}
    questions.write_text(json.dumps({"title": "${title} <i>", "questions": [asked]}))
    made = export_study(runs, folder / "study", mode=request.param, votes_per_document=2, questions=questions)
    return made.study, folder / "study/organiser/forms"


def test_no_form_names_a_system_or_a_prompt(study: tuple[Study, Path]) -> None:
    for path in study[1].rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [name for name in (b"zebra", b"quokka", b"doc-", b"free/", b"beach") if name in data], path
            assert study[0].raters[0].token.encode() not in data


def test_label_studio_knows_every_answer_by_its_code(study: tuple[Study, Path]) -> None:
    key, folder = study
    config = parsed(folder / "label-studio.xml")
    (question,) = key.questions
    (choices,) = config.iter("Choices")
    assert choices.get("name") == "q1"
    codes = [choice.get("alias") for choice in choices]
    assert codes == (list(VOTES) if question.kind == "pairwise" else ["0", "1"])
    fields = {value[1:] for node in config.iter() for value in node.attrib.values() if value.startswith("$")}
    dollars = [value for node in config.iter() for value in node.attrib.values() if "$" in value]
    assert len(dollars) == len(fields), "a dollar sign of the question's text names a field"
    for rater in key.raters:
        tasks = json.loads((folder / f"label-studio-{rater.id}.json").read_text())
        assert [task["data"]["item"] for task in tasks] == list(rater.items)
        for task in tasks:
            assert set(task) == {"data"}
            assert set(task["data"]) == {"study", "rater", "item"} | fields
    if question.kind == "pairwise":
        (pairwise,) = parsed(folder / "label-studio-pairwise.xml").iter("Pairwise")
        assert pairwise.attrib == {"name": "q1", "toName": "left,right"}


def test_documents_are_paragraphs_and_images_and_nothing_else(study: tuple[Study, Path]) -> None:
    key, folder = study
    shown: list[str] = []
    for rater in key.raters:
        for task in json.loads((folder / f"label-studio-{rater.id}.json").read_text()):
            shown += [task["data"][name] for name in ("document", "left", "right") if name in task["data"]]
        for line in (folder / f"potato-{rater.id}.jsonl").read_text().splitlines():
            shown.append(json.loads(line)["text"])
    for text in shown:
        found = Tags(text)
        assert found.tags <= {"p", "img", "br", "b", "table", "tr", "td"}
        assert found.attributes <= {"src", "width", "height", "alt", "dir"}
        # What tools' own filters look for does not occur: they would cut it out of the text.
        assert not re.search(r"javascript:|data:|expression\s*\(|\$\{", text)
    read = "\n".join(Tags(text).text for text in shown)
    for text in HOSTILE:
        if "\x00" not in text:
            assert text in read
    assert not {"\u202e", "\u2066", "\x1b", "\x00"} & set(read)
    assert "\\u202ereversed" in read


def test_images_of_forms_are_there(study: tuple[Study, Path]) -> None:
    key, folder = study
    images = {path.name for path in (folder / "images").iterdir()}
    used = set(re.findall(r"/([0-9a-f]{20}\.webp)\"", (folder / "mturk.csv").read_text().replace('""', '"')))
    assert used == images
    assert used == {
        part["image"] for item in key.items for parts in item.documents for part in parts if "image" in part
    }


def test_potato_reads_its_configuration(study: tuple[Study, Path]) -> None:
    key, folder = study
    rater = key.raters[0]
    config = yaml.safe_load((folder / f"potato-{rater.id}.yaml").read_text())
    assert config["assignment_strategy"] == "fixed_order"
    assert config["media_directory"] == "images"
    (file,) = config["data_files"]
    items = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    assert [item["id"] for item in items] == list(rater.items)
    (scheme,) = config["annotation_schemes"]
    names = [label["name"] for label in scheme["labels"]]
    assert all(key.questions[0].allows(int(name) if name.isdigit() else name) for name in names)
    assert len(names) == (5 if key.questions[0].kind == "pairwise" else 2)


def test_mechanical_turk_gets_a_hit_for_each_rater_and_no_formula(study: tuple[Study, Path]) -> None:
    key, folder = study
    csv.field_size_limit(1 << 30)
    header, *rows = csv.reader(io.StringIO((folder / "mturk.csv").read_text(), newline=""))
    template = (folder / "mturk.html").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(header), "the title's ${title} is no field"
    assert [row[1] for row in rows] == [rater.id for rater in key.raters]
    for row, rater in zip(rows, key.raters, strict=True):
        assert not any(cell[:1] in "=+-@\t\r" for cell in row)
        names = re.findall(r'type="radio" name="([0-9a-f]+)\.q1"', row[2])
        assert list(dict.fromkeys(names)) == list(rater.items)
        assert Tags(row[2]).tags <= {
            "section",
            "h2",
            "p",
            "b",
            "br",
            "img",
            "table",
            "tr",
            "td",
            "fieldset",
            "legend",
            "label",
            "input",
        }


def test_more_than_a_hit_holds_is_said_and_not_written(tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 6)
    long = {sample.id: (Text("long " * 5000),) for sample in some}
    done = export_study([make_run(tmp_path, "one", some, documents=long)], tmp_path / "study", votes_per_document=1)
    (note,) = done.notes
    assert re.match(r"no form for Mechanical Turk: the items of a rater are \d+ kB and a HIT holds 65", note)
    names = {path.name for path in (tmp_path / "study/organiser/forms").iterdir()}
    assert "label-studio.xml" in names
    assert not {"mturk.csv", "mturk.html"} & names


def test_json_lines_hold_items_questions_and_orders(study: tuple[Study, Path]) -> None:
    key, folder = study
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert {item["item"] for item in items} == {item.id for item in key.items}
    assert {item["study"] for item in items} == {key.id}
    texts = {part.get("text") for item in items for document in item["documents"] for part in document}
    assert set(HOSTILE) <= texts, "plain data are not escaped"
    orders = [json.loads(line) for line in (folder / "raters.jsonl").read_text().splitlines()]
    assert orders == [{"rater": rater.id, "items": list(rater.items)} for rater in key.raters]


def test_training_items_say_what_is_expected(study: tuple[Study, Path]) -> None:
    key, folder = study
    first = json.loads((folder / f"label-studio-{key.raters[0].id}.json").read_text())[0]["data"]
    assert first["instruction"].startswith("(Training; expected: ")


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", samples(tmp_path / "data", 4))
    export_study([run], tmp_path / "study", votes_per_document=1, images_url="https://example.org/a b/?x=1&y=")
    for name in ("mturk.csv", "label-studio-rater-1.json"):
        text = (tmp_path / "study/organiser/forms" / name).read_text()
        assert "https://example.org/a b/?x=1&amp;y=/" in text
