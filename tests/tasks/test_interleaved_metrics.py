"""Automatic metrics of interleaved documents: each against values worked out by hand."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dreambench.documents import JSON, Document, Image, Text, to_json
from dreambench.errors import DataError, RunError
from dreambench_tasks.interleaved.metrics import (
    FAULTS,
    METRICS,
    DocumentFeatures,
    collect_features,
    document_metrics,
    load_features,
    matched_sentences,
    metric_estimate,
    sentences,
)


def picture(colour: str, side: int = 8, kind: str = "PNG") -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), colour).save(buffer, format=kind)
    return Image(data=buffer.getvalue())


BROKEN = Image(data=b"\x89PNG not really")


def test_each_image_is_matched_with_the_last_sentence_before_it() -> None:
    red, blue = picture("red"), picture("blue")
    assert sentences('He said "go!" Then: 3.5 m. And?\nYes') == ['He said "go!', "Then: 3.5 m.", "And?", "Yes"]
    document = (red, Text("One. Two. "), red, blue, Text("Three."), blue)
    assert matched_sentences(document) == ["One.", "Two.", "Two.", "Three."]
    assert matched_sentences((red, Text("  "), blue)) == [None, None]
    assert matched_sentences((red, blue, Text("Late. Later."), red)) == ["Late.", "Late.", "Later."]


def test_every_metric_says_what_it_is_and_which_way_is_better() -> None:
    assert {metric.better for metric in METRICS.values()} == {"higher", "lower", None}
    assert all(metric.low < metric.high and " " in metric.about for metric in METRICS.values())


def test_counts_layout_and_repetition() -> None:
    reference = (Text("One. Two."), picture("red"), Text("Three."), picture("blue"))
    targets = {
        "expected_images": 2,
        "reference": [{"text": "One. Two."}, {"image": "r"}, {"text": "Three."}, {"image": "b"}],
    }
    values = document_metrics(reference, targets)
    assert (values["images"], values["image_count_match"], values["layout_agreement"], values["words"]) == (2, 1, 1, 3)
    assert values["repeated_images"] == 0
    # S S I S I against S I I: one sentence is missing, one is an image.
    values = document_metrics(
        (
            Text("One."),
            picture("red"),
            picture("red", kind="BMP"),
        ),
        targets,
    )
    assert values["layout_agreement"] == pytest.approx(1 - 2 / 5)
    assert values["repeated_images"] == 0.5  # the same pixels in another file format
    values = document_metrics((Text("a b c d e a B c d f"),), targets)
    assert values["repeated_ngrams"] == pytest.approx(1 / 7)
    assert values["image_count_match"] == 0
    assert values["repeated_images"] is None
    assert document_metrics(reference, {})["image_count_match"] is None
    assert document_metrics(reference, {})["layout_agreement"] is None


@settings(deadline=None)
@given(some.text("SI", max_size=7), some.text("SI", min_size=1, max_size=7))
def test_layout_agreement_is_levenshteins_distance(found: str, wanted: str) -> None:
    """Against the recursive definition: the first letters are equal, or one of the three changes is made there."""

    @functools.cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    shapes = {"S": Text("One."), "I": picture("red")}
    reference: list[JSON] = [{"text": "One."} if letter == "S" else {"image": "r"} for letter in wanted]
    values = document_metrics(tuple(shapes[letter] for letter in found), {"reference": reference})
    expected = 1 - distance(found, wanted) / max(len(found), len(wanted))
    assert values["layout_agreement"] == pytest.approx(expected)


def test_clip_metrics_are_means_over_images_and_pairs() -> None:
    document = (Text("One."), picture("red"), picture("blue"), picture("green"))
    images = np.array([[1, 0], [0, 2], [-1, 0]], np.float32)
    texts = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    values = document_metrics(document, {}, DocumentFeatures(images, texts))
    assert values["clip_score"] == pytest.approx(2.5 / 3)  # cosines 1, 0 and -1, which counts as 0
    assert values["image_consistency"] == pytest.approx(-1 / 3)
    one = document_metrics(document[:2], {}, DocumentFeatures(images[:1], texts[:1]))
    assert (one["clip_score"], one["image_consistency"]) == (2.5, None)
    assert document_metrics(document, {})["clip_score"] is None


@pytest.mark.parametrize(
    ("document", "finish_reason", "faults"),
    [
        ((), "stop", {"empty"}),
        ((Text(" \n"),), "stop", {"empty"}),
        ((picture("red"),), "stop", {"no_text"}),
        ((Text("A."), BROKEN), "stop", {"broken_image"}),
        ((Text("A <dream_start> b."), picture("red")), "stop", {"special_tokens"}),
        ((Text("A <|im_end|>"),), "length", {"special_tokens", "length"}),
        ((Text("a < b and <b> [1] are text."), picture("red")), "stop", set()),
    ],
)
def test_every_fault_is_counted(document: Document, finish_reason: str, faults: set[str]) -> None:
    values = document_metrics(document, {}, finish_reason=finish_reason)
    assert {name for name in FAULTS if values[f"malformed_{name}"]} == faults
    assert values["malformed"] == bool(faults)


def test_a_missing_image_is_an_error_and_not_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone"):
        document_metrics((Image(path=str(tmp_path / "gone.png")),), {})


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't draw images.", 1),
        ("I’m afraid that is not possible.", 1),
        ("As an AI language model, I have no pencil.", 1),
        ("Unfortunately, no images can be made here.", 1),
        ("The circle is sorry. It moves left. The end. I cannot see it.", 0),
        ("", 0),
    ],
)
def test_refusals_are_counted_where_no_image_follows(text: str, refused: int) -> None:
    assert document_metrics((Text(text),), {})["refusal"] == refused
    assert document_metrics((Text(text), picture("red")), {})["refusal"] == 0


def test_intervals_stay_within_the_range_and_cluster_by_document() -> None:
    shares = [1.0] * 9 + [0.5]
    estimate = metric_estimate("layout_agreement", shares, list(range(10)))
    assert estimate.value == 0.95
    assert estimate.interval is not None
    assert estimate.interval[0] < 0.95 < estimate.interval[1] <= 1
    certain = metric_estimate("malformed", [0.0] * 20, [i // 2 for i in range(20)])
    assert certain.unit == "%"
    assert certain.interval == pytest.approx((0, 30.85), abs=0.01)  # Clopper and Pearson's for 0 of 10 documents
    twice = metric_estimate("layout_agreement", shares * 2, list(range(10)) * 2)
    assert twice.interval == pytest.approx(estimate.interval, abs=0.01)
    cosines = metric_estimate("image_consistency", [0.98, 1.0, -0.2], range(3))
    assert cosines.interval is not None
    assert -1 <= cosines.interval[0] < 0 < cosines.interval[1] <= 1
    words = metric_estimate("words", [3, 40, 21], range(3))
    assert words.interval is not None
    assert words.interval[0] >= 0


class _Scorer:
    dim = 3

    def image_features(self, images):  # type: ignore[no-untyped-def]
        return images.float().mean((2, 3))

    def text_features(self, texts):  # type: ignore[no-untyped-def]
        import torch

        return torch.tensor([[len(text), 1.0, 0.0] for text in texts])


def test_features_are_computed_once_and_refused_for_other_documents(tmp_path: Path) -> None:
    documents = [
        (Text("Ab."), picture("red"), picture("blue", 5), BROKEN),
        (Text("No image."),),
        (picture("lime"), picture("red")),
    ]
    path = tmp_path / "features.npz"
    collect_features(path, documents, _Scorer)  # type: ignore[arg-type]
    collect_features(path, documents, lambda: pytest.fail("loaded again"))
    first, second, third = load_features(path, documents)
    assert first.images.tolist() == [[255, 0, 0], [0, 0, 255], [0, 0, 0]]
    assert first.texts.tolist() == [[3, 1, 0]] * 3
    assert second.images.shape == (0, 3)
    assert third.images.tolist() == [[0, 255, 0], [255, 0, 0]]
    assert not third.texts.any()
    assert document_metrics(documents[2], {}, third)["clip_score"] is None
    with pytest.raises(RunError, match="other documents"):
        load_features(path, documents[:2])


def test_every_metric_is_defined_and_is_plain_data() -> None:
    values = document_metrics((Text("A."), picture("red")), {"reference": to_json((Text("A."),))})
    assert set(values) <= set(METRICS)
    assert json.loads(json.dumps(values)) == values
    assert [name for name in METRICS if name in values] == list(values)
