"""The page: self-contained, nothing in it acts, and it shows what the run holds."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image as Pillow
from report.made_runs import HOSTILE, image_run, make_run, score, text_run

import dreambench
from dreambench.api import score_run
from dreambench.documents import Text
from dreambench.errors import RunError
from dreambench.report.images import thumbnail
from dreambench.report.page import page
from dreambench.report.runs import COUNT, load, load_all, shown_images
from dreambench.report.tables import Table, save_tables
from dreambench.report.text import printable
from dreambench.requests import Response, Sample
from dreambench_tasks import playground

VOID = {"meta", "img", "line", "rect"}


class Parsed(HTMLParser):
    """Tags with their attributes, and text by the path of classes it stands in."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
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
            self.text.append(data)

    def sources(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def shown(text: str) -> str:
    return printable(text, keep="\n")


def assert_inert(parsed: Parsed) -> None:
    """No script, no handler, no style of its own, no URL but embedded images and anchors."""
    assert not parsed.open, "every tag is closed"
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [attributes["content"] for _, attributes in parsed.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")


def test_hostile_captions_are_text(tmp_path: Path) -> None:
    html = page([load(image_run(tmp_path / "run", HOSTILE, candidates=2, failed=1))])
    parsed = Parsed(html)
    assert_inert(parsed)
    for caption in HOSTILE:
        assert shown(caption) in parsed.text
        assert "generated: " + shown(caption) in [attributes.get("alt") for _, attributes in parsed.tags]
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
        score(value=72.78, interval=(70.6, 74.9), n=1500, unscored=3, bounds=(72.6, 72.8)),
        score(metric="recall", interval=None, interval_method="none: it has none"),
    ]
    parsed = Parsed(page([load(text_run(tmp_path / "run", ["yes", "no"], scores))]))
    for text in (
        "72.78 %",
        "70.60 … 74.90",
        "95%, by hand",
        "1500",
        "3 (72.60 … 72.80 with them)",
        "none: it has none",
    ):
        assert text in parsed.text
    assert parsed.text.count("p@1-00000000") == 3, "at the headline and at each score"


def test_worst_and_best_answers_are_shown_with_their_questions(tmp_path: Path) -> None:
    answers = [f"answer {i}" for i in range(40)]
    parsed = Parsed(page([load(text_run(tmp_path / "run", answers))]))
    listed = [text for text in parsed.text if text.startswith("answer ")]
    assert listed == [f"answer {i}" for i in (*range(8), *range(39, 31, -1))]
    assert "question answer 39" in parsed.text


@pytest.mark.parametrize("kept", [True, False])
def test_candidates_have_scores_and_the_chosen_one_is_marked(tmp_path: Path, kept: bool) -> None:
    run = image_run(tmp_path / "run", ["first", "second"], candidates=3, kept=kept)
    html = page([load(run)])
    best = html[html.index("Best 1 by") : html.index("2 random samples")]
    items = re.findall(r"<li( class=\"chosen\")?>(.*?)</li>", best, re.DOTALL)
    assert [bool(marked) for marked, _ in items] == [True, False, False]
    assert ["0.1" in items[0][1], "-0.9" in items[1][1], "-0.9" in items[2][1]] == [True] * 3
    assert [content.count("data:image") for _, content in items] == [int(kept)] * 3
    if kept:
        _, candidate, *_ = re.findall(r"base64,([^\"]*)", best)
        generated = load(run).responses["s1"].document[0]
        with Pillow.open(io.BytesIO(base64.b64decode(candidate))) as first, Pillow.open(generated.path) as chosen:  # type: ignore[union-attr,arg-type]
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
    assert "2 random samples of 2" in parsed.text


def test_several_runs_are_grouped_by_protocol_with_a_note(tmp_path: Path) -> None:
    runs = [
        text_run(tmp_path / name, ["a", "b"], [score(protocol=f"{name}@1-0")], model=name) for name in ("one", "two")
    ]
    text = " ".join(Parsed(page(load_all(runs))).text)
    assert "Scores under different protocols are not comparable; this table has 2: one@1-0, two@1-0." in text
    same = [text_run(tmp_path / f"{name}-same", ["a", "b"], model=name) for name in ("one", "two")]
    assert "not comparable" not in " ".join(Parsed(page(load_all(same))).text)


def test_a_page_of_images_stays_small(tmp_path: Path) -> None:
    """36 images and 24 times 8 candidates of smooth noise, which compresses like the busiest images (28 kB)."""
    import numpy as np

    run = image_run(tmp_path / "run", [f"caption {i}" for i in range(24)], candidates=8)
    rough = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise = io.BytesIO()
    rough.resize((512, 512), Pillow.Resampling.BICUBIC).save(noise, format="PNG")
    for path in (run / "images").rglob("*.png"):
        path.write_bytes(noise.getvalue())
    assert len(thumbnail(next((run / "images").rglob("*.png")))) > 25_000
    html = page([load(run)])
    assert html.count("data:image/jpeg") == 3 * COUNT + 2 * COUNT * 8
    reference_images = 3 * COUNT * 28_000 * 4 / 3
    assert len(html) + reference_images < 5e6


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
    assert set(names) == {str(row["image_id"]) for row in shown_rows}
    parsed = Parsed(page([run]))
    assert_inert(parsed)
    assert len(parsed.sources()) == 2 * 3 * COUNT, "a generated and a real image on each card"
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
    assert len(parsed.sources()) == 3 * COUNT
    index.write_text("[]")
    with pytest.raises(RunError, match=r"images\.json is damaged"):
        page([load(copy)])
