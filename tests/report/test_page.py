"""The page: self-contained, nothing in it acts, and it shows what the run holds."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from report.made_runs import HOSTILE, image_run, make_run, png, score, text_run

import dreambench
from dreambench.api import score_run
from dreambench.documents import Image, Text
from dreambench.errors import RunError
from dreambench.report.page import Axis, page, write_page
from dreambench.report.runs import COUNT, load, load_all, shown_images
from dreambench.report.tables import Table, save_tables
from dreambench.report.text import printable
from dreambench.requests import Response, Sample
from dreambench.scores import Cells
from dreambench_tasks import playground

VOID = {"meta", "img", "line", "path", "circle"}


class Parsed(HTMLParser):
    """Tags with their attributes, texts, and the content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, "tags are nested"

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            (self.scripts if self.open[-1] == "script" else self.text).append(data)

    def sources(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]

    def data(self) -> dict[str, Any]:
        """What the script reads."""
        return json.loads(self.scripts[0])

    def samples(self) -> dict[str, Any]:
        """The samples of the first set, by id."""
        return {sample["id"]: sample for sample in self.data()["sets"][0]["samples"]}


def block(holder: dict[str, Any], heading: str) -> list[Any]:
    """The parts of the first block of that heading."""
    return next(block["p"] for block in holder["blocks"] if block["h"] == heading)


def shown(text: str) -> str:
    return printable(text, keep="\n")


def assert_inert(parsed: Parsed) -> None:
    """One script, allowed by its hash; no handler, no style of its own, no URL but embedded images and anchors."""
    assert not parsed.open, "every tag is closed"
    assert not {"iframe", "object", "embed", "link", "form", "base"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [
        {"type": "application/json", "id": "samples"},
        {},
    ]
    assert all(url.startswith("data:image/jpeg;base64,") for url in parsed.data()["images"])
    hashed = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    (policy,) = [attributes["content"] for _, attributes in parsed.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{hashed}';" in policy


def test_hostile_captions_are_text(tmp_path: Path) -> None:
    html = page([load(image_run(tmp_path / "run", HOSTILE, candidates=2, failed=1))])
    parsed = Parsed(html)
    assert_inert(parsed)
    prompts = [block(sample, "question")[0] for sample in parsed.samples().values()]
    for caption in HOSTILE:
        assert shown(caption) in parsed.text
        assert shown(caption) in prompts
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028]", html)


def test_hostile_text_everywhere_else_is_text(tmp_path: Path) -> None:
    for number, text in enumerate(HOSTILE):
        scores = [
            score(metric=text, group=text, interval_method=text, notes=(text,), protocol=text),
            score(interval=None),
        ]
        run = make_run(
            tmp_path / str(number),
            [Sample(text, (Text(text),)), Sample("b", (Text(text),))],
            [Response(text, (Text(text),)), Response("b", (Text(text),))],
            [{"id": text, "answer": text, text: 0.1}, {"id": "b", "answer": text, text: 0.9}],
            scores,
            task=text,
            model=text,
            notes=[text],
            fields={text: text, "list": [text]},
        )
        parsed = Parsed(page([load(run)]))
        assert_inert(parsed)
        assert parsed.text.count(shown(text)) >= 8
        assert json.dumps(shown(text))[1:-1] in json.dumps(parsed.data())
    assert_inert(Parsed(page(load_all(sorted(tmp_path.iterdir())))))


def test_a_tasks_own_tables_are_shown_as_text_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = image_run(tmp_path / "run", ["a"])
    before = page([load(run)])
    save_tables(run, [Table(title=text, columns=(text,), rows=((text,),), notes=(text,)) for text in HOSTILE])
    parsed = Parsed(page([load(run)]))
    assert_inert(parsed)
    for text in HOSTILE:
        assert parsed.text.count(shown(text)) >= 4
    (run / "tables.json").write_text('[{"title": 5}]')
    with pytest.raises(RunError, match="remove it"):
        page([load(run)])
    (run / "tables.json").unlink()
    assert page([load(run)]) == before


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = image_run(tmp_path / "run", HOSTILE)
    assert page([load(run)]) == page([load(run)])


def test_scores_have_interval_n_unscored_and_protocol(tmp_path: Path) -> None:
    scores = [
        score(value=72.78, interval=(70.6, 74.9), n=1500, unscored=3, bounds=(72.6, 72.8), better="higher"),
        score(metric="recall", interval=None, interval_method="none: it has none"),
    ]
    parsed = Parsed(page([load(text_run(tmp_path / "run", ["yes", "no"], scores))]))
    text = " ".join(parsed.text)
    for wanted in (
        "72.78 %",
        "70.60 … 74.90",
        "95%, by hand",
        "1500",
        "3 (72.60 … 72.80 with them)",
        "↑",
        "none: it has none",
    ):
        assert wanted in text
    assert parsed.text.count("p@1-00000000") == 1, "once for the table of its scores"


def test_a_plot_places_values_and_intervals_on_one_scale() -> None:
    axis = Axis.of([20.0, 40.0, 60.0])
    assert axis is not None
    assert axis.x(40.0) == 150
    assert 0 < axis.x(20.0) < axis.x(60.0) < 300
    assert [text for _, text in axis.marks] == ["20", "40", "60"]
    assert Axis.of([5.0]) is None
    assert [text for _, text in Axis.of([0.1, 0.1000001]).marks]  # type: ignore[union-attr]


def test_a_sample_has_prompt_reference_reply_and_score(tmp_path: Path) -> None:
    answers = [f"answer {i}" for i in range(11)]
    cells = Cells("accuracy", bounds=(0.0, 1.0))
    run = load(text_run(tmp_path / "run", answers, [score(cells=cells)]))
    parsed = Parsed(page([run]))
    samples = parsed.samples()
    assert len(samples) == len(answers)
    assert parsed.data()["sets"][0]["part"] == "all 11 samples"
    statuses = parsed.data()["sets"][0]["statuses"]
    for i, text in enumerate(answers):
        sample = samples[f"q{i}"]
        (answer,) = sample["answers"]
        assert sample["title"] == f"question {text}"
        assert block(answer, "reply") == [text]
        assert (answer["v"], statuses[answer["s"]]) == (i / 10, {0: "wrong", 10: "right"}.get(i, "partly right"))


def test_the_judges_words_and_what_was_extracted_are_shown(tmp_path: Path) -> None:
    options = {"A": "red", "B": "blue"}
    samples = [Sample("q", (Text("Which?"),), {"options": options, "answer": "B"}), Sample("e", (Text("?"),))]
    row = {"answer": "I say (B)", "letter": "B", "rule": "in brackets", "right": "B", "reason": None, "hit": 1.0}
    run = make_run(
        tmp_path / "run",
        samples,
        [Response("q", (Text("I say (B)"),), prompt_tokens=7, new_tokens=3), Response.failed("e", "refused", "no")],
        [{"id": "q", **row}, {"id": "e", **dict.fromkeys(row)}],
        [score(cells=Cells("hit"))],
    )
    line = {
        "key": "k",
        "judge": "j",
        "id": "q",
        "run": 0,
        "score": 0.5,
        "reason": None,
        "raw": "Half <b>right</b>.",
        "answered_by": "m",
    }
    (run / "judgements.jsonl").write_text(json.dumps(line) + "\n" + '{"key": "torn')
    parsed = Parsed(page([load(run)]))
    found = parsed.samples()
    (answer,) = found["q"]["answers"]
    assert block(found["q"], "options") == ["A. red\nB. blue"]
    assert block(found["q"], "reference answer") == ["B. blue"]
    assert block(answer, "extracted") == ["letter B, by the rule “in brackets”; right is B"]
    assert block(answer, "judge: grade 0.5 by m") == ["Half <b>right</b>."]
    assert "7 prompt tokens\n3 new tokens" in block(answer, "tokens")[0]
    assert block(found["e"]["answers"][0], "error") == ["refused: no"]
    assert list(found) == ["e", "q"], "errors first"


def test_runs_of_one_protocol_share_their_samples(tmp_path: Path) -> None:
    runs = [text_run(tmp_path / name, ["a", name], model=name) for name in ("one", "two")]
    data = Parsed(page(load_all(runs))).data()
    (found,) = data["sets"]
    assert [run["model"] for run in found["runs"]] == ["one", "two"]
    assert [[answer["r"] for answer in sample["answers"]] for sample in found["samples"] if sample["id"] == "q1"] == [
        ["one", "two"]
    ]


def test_what_agrees_in_all_runs_stands_once(tmp_path: Path) -> None:
    runs = [text_run(tmp_path / name, ["a", "b"], model=name) for name in ("one", "two", "three")]
    parsed = Parsed(page(load_all(runs)))
    assert parsed.text.count("dreambench") == 1, "the version"
    assert parsed.text.count("note a") == 1
    assert "unknown" in parsed.text, "no date was noted"


@pytest.mark.parametrize("kept", [True, False])
def test_candidates_have_scores_and_the_chosen_one_is_marked(tmp_path: Path, kept: bool) -> None:
    run = image_run(tmp_path / "run", ["first", "second"], candidates=3, kept=kept)
    parsed = Parsed(page([load(run)]))
    (answer,) = parsed.samples()["s1"]["answers"]
    candidates = block(answer, "candidates and their CLIPScore")
    assert [candidate.get("c", False) for candidate in candidates] == [True, False, False]
    assert [candidate["n"] for candidate in candidates] == ["0.1, chosen", "-0.9", "-0.9"]
    assert ["i" in candidate for candidate in candidates] == [kept] * 3
    if kept:
        data = base64.b64decode(parsed.data()["images"][candidates[0]["i"]].partition(",")[2])
        generated = load(run).responses["s1"].document[0]
        with Pillow.open(io.BytesIO(data)) as first, Pillow.open(generated.path) as chosen:  # type: ignore[union-attr,arg-type]
            pairs = zip(first.convert("RGB").getpixel((9, 9)), chosen.getpixel((9, 9)), strict=True)  # type: ignore[arg-type]
            assert all(abs(a - b) < 8 for a, b in pairs), "the marked candidate is the generated image"


def test_a_deleted_image_leaves_a_gap_with_a_reason(tmp_path: Path) -> None:
    run = image_run(tmp_path / "run", ["one", "two"])
    gone = next((run / "images").rglob("*.png"))
    gone.unlink()
    parsed = Parsed(page([load(run)]))
    assert f"{gone.name} is missing or damaged" in parsed.text
    assert "not kept in the run" in parsed.text


def test_samples_without_an_image_are_counted_and_not_shown(tmp_path: Path) -> None:
    parsed = Parsed(page([load(image_run(tmp_path / "run", ["one", "two"], failed=1))]))
    assert "Samples that ended in an error: 1" in parsed.text
    assert shown(HOSTILE[0]) in parsed.text
    assert next(iter(parsed.samples())) == "f0", "errors first"


def test_several_runs_are_grouped_by_protocol_with_a_note(tmp_path: Path) -> None:
    runs = [
        text_run(tmp_path / name, ["a", "b"], [score(protocol=f"{name}@1-0")], model=name) for name in ("one", "two")
    ]
    text = " ".join(Parsed(page(load_all(runs))).text)
    assert "Scores under different protocols are not comparable; this table has 2: one@1-0, two@1-0." in text
    same = [text_run(tmp_path / f"{name}-same", ["a", "b"], model=name) for name in ("one", "two")]
    assert "not comparable" not in " ".join(Parsed(page(load_all(same))).text)


def test_a_page_says_which_part_of_the_samples_it_holds_and_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(image_run(tmp_path / "run", [f"caption {i}" for i in range(40)], candidates=4))
    monkeypatch.setattr("dreambench.report.viewer.IMAGE_BYTES", 30_000)
    parsed = Parsed(page([run]))
    held = len(parsed.samples())
    assert 4 < held < 40
    assert sum(map(len, parsed.data()["images"])) < 45_000
    part = parsed.data()["sets"][0]["part"]
    assert part == f"{held} of 40 samples: the lowest and the highest scores, then random ones"
    assert len(parsed.sources()) == COUNT * (1 + 4), "random samples, without the script"


def test_all_samples_are_written_as_numbered_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambench.report.page.SHOWN", 4)
    run = load(text_run(tmp_path / "run", [f"answer {i}" for i in range(10)]))
    (tmp_path / "r-samples").mkdir()
    (tmp_path / "r-samples" / "00009.html").write_text("of an earlier report")
    write_page([run], tmp_path / "r.html", every_sample=True)
    pages = sorted((tmp_path / "r-samples").iterdir())
    assert [path.name for path in pages] == ["00001.html", "00002.html", "00003.html"]
    ids = [id_ for path in pages for id_ in Parsed(path.read_text()).samples()]
    assert ids == [f"q{i}" for i in range(10)]
    links = [attributes["href"] for tag, attributes in Parsed((tmp_path / "r.html").read_text()).tags if tag == "a"]
    assert [link for link in links if "html" in link] == [f"r-samples/{path.name}" for path in pages]
    last = [attributes["href"] for tag, attributes in Parsed(pages[-1].read_text()).tags if tag == "a"]
    assert last == ["../r.html", "00002.html"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the image generation task over 80 scenes whose data are gone."""
    folder = tmp_path_factory.mktemp("generated")
    data = playground.write(folder / "data", split="val", n=80, formats=["coco"])
    result = dreambench.run("coco_fid", "echo", data=data, features="playground-clip", out=folder / "runs")
    shutil.move(data, folder / "gone")
    return result.folder


def test_images_are_shown_from_the_run_alone(generated: Path) -> None:
    run = load(generated)
    shown_rows = shown_images(run.rows)
    assert len(shown_rows) > 2 * COUNT
    names = json.loads((generated / "thumbnails" / "reference_images.json").read_text())
    assert set(names) >= {str(row["image_id"]) for row in shown_rows}
    parsed = Parsed(page([run]))
    assert_inert(parsed)
    for sample in parsed.samples().values():
        (answer,) = sample["answers"]
        parts = [*block(sample, "reference"), *block(answer, "generated"), *block(answer, "nearest reference images")]
        assert len(parts) == 5, "a generated image, its reference, and the nearest"
        assert all("i" in part for part in parts)
    assert any("mean clip_score by word of the caption" in text for text in parsed.text)
    reference_images = generated.parents[1] / "gone" / "val2017"
    for image_id, name in names.items():
        with (
            Pillow.open(reference_images / f"{int(image_id):012d}.png") as real,
            Pillow.open(generated / "thumbnails" / name) as small,
        ):
            pairs = zip(
                real.convert("RGB").resize((1, 1)).getpixel((0, 0)), small.resize((1, 1)).getpixel((0, 0)), strict=True
            )  # type: ignore[arg-type]
            assert all(abs(a - b) < 8 for a, b in pairs), f"image {image_id}"


def test_a_run_scored_again_without_data_keeps_its_images(generated: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(generated, tmp_path / generated.name))
    score_run(copy)
    assert page([load(copy)]) == page([load(generated)])
    shutil.rmtree(copy / "thumbnails")


def test_missing_thumbnails_are_written_again_with_the_same_bytes(tmp_path: Path) -> None:
    data = playground.write(tmp_path / "data", split="val", n=30, formats=["coco"])
    folder = dreambench.run("coco_fid", "echo", data=data, features="playground-clip", out=tmp_path / "runs").folder
    before = {path.name: path.read_bytes() for path in (folder / "thumbnails").iterdir()}
    (folder / "thumbnails" / "reference_images.json").unlink()
    next((folder / "thumbnails").glob("*.jpg")).unlink()
    score_run(folder)
    assert {path.name: path.read_bytes() for path in (folder / "thumbnails").iterdir()} == before


def test_missing_data_and_thumbnails_are_reported_and_scores_stay(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(generated, tmp_path / generated.name))
    shutil.rmtree(copy / "thumbnails")
    score_run(copy)
    assert "will show no reference images" in capsys.readouterr().err
    assert (copy / "metrics.json").read_bytes() == (generated / "metrics.json").read_bytes()
    assert "not kept in the run" in Parsed(page([load(copy)])).text


def test_thumbnail_names_cannot_point_outside_the_run(generated: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(generated, tmp_path / generated.name))
    outside = tmp_path / "secret.png"
    Pillow.new("RGB", (8, 8)).save(outside)
    index = copy / "thumbnails" / "reference_images.json"
    index.write_text(json.dumps(dict.fromkeys(json.loads(index.read_text()), "../../secret.png")))
    parsed = Parsed(page([load(copy)]))
    assert len(parsed.sources()) == COUNT, "only generated images"
    index.write_text("[]")
    with pytest.raises(RunError, match=r"images\.json is damaged"):
        page([load(copy)])


def test_odd_targets_and_details_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    targets = {"options": {"A": 1}, "answer": ["A"], "answers": [1, None], "reference": [{"x": 1}], "hint": {"a": 2}}
    details = {"clip_scores": ["high", 2], "chosen": "x", "kept": {"a": 1}}
    image = Image(data=png(1))
    samples = [Sample("a", (Text("?"),), targets), Sample("b", (), {"reference": 3, "options": []})]
    responses = [Response("a", (image,), details=details), Response("b", (image, Text("t"), image))]
    rows = [{"id": id_, "image_id": None, "caption": None, "similarity": None} for id_ in "ab"]
    run = make_run(tmp_path / "run", samples, responses, rows, [score()])
    parsed = Parsed(page([load(run)]))
    assert_inert(parsed)
    assert set(parsed.samples()) == {"a", "b"}
    (run / "judgements.jsonl").write_text('{"key": "k", "judge": "j", "id": "a", "run": 0, "score": "high"}\n')
    with pytest.raises(RunError, match="line 1 is damaged"):
        page([load(run)])
