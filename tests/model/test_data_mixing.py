"""The sequence of samples: a function of (seed, index), in the shares of the weights, the same for any number of processes."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dreamllm.data import Collator, TrainingData, training_dataset
from dreamllm.data.mixing import BrokenRecords, _shares
from dreamllm.data.samples import Sample
from dreamllm.data.tables import Stream
from dreamllm.errors import UsageError

SIZES = {"a": 7, "b": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of pairs; the left half of the image is dark, so that mirroring shows."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(folder / "x.png")
    for name, size in SIZES.items():
        rows = [{"image": "x.png", "caption": f"{name} {i}"} for i in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def mixed(processor, folder: Path, weights: tuple[float, float] | None = None, **options) -> TrainingData:
    sources = [
        {"kind": "pairs", "path": f"{name}.jsonl", "name": name, **({} if weights is None else {"weight": weight})}
        for name, weight in zip(SIZES, weights or (1, 1), strict=True)
    ]
    return training_dataset({"cache": "cache", "sources": sources, **options}, processor, folder=folder)


def caption(data: TrainingData, sample: Sample) -> str:
    """The sample's caption, which names its source and record."""
    return data.sources[0].processor.decode(sample.input_ids).strip()


def captions(data: TrainingData, indices) -> list[str]:
    return [caption(data, data[index]) for index in indices]


def test_without_weights_an_epoch_is_every_record_once(processor, folder) -> None:
    data = mixed(processor, folder)
    n = sum(SIZES.values())
    assert len(data) == n
    everything = sorted(f"{name} {i}" for name, size in SIZES.items() for i in range(size))
    epochs = [captions(data, range(e * n, (e + 1) * n)) for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_weights_are_shares_and_records_are_drawn_equally_often(processor, folder) -> None:
    data = mixed(processor, folder, weights=(3, 1), samples=20)
    assert data.counts == [15, 5]
    drawn = captions(data, range(5 * len(data)))
    for epoch in range(5):
        assert Counter(name[0] for name in drawn[20 * epoch : 20 * epoch + 20]) == {"a": 15, "b": 5}
    sources = ["".join(name[0] for name in drawn[i : i + 20]) for i in range(0, len(drawn), 20)]
    assert len(set(sources)) == 5  # shuffled, in each epoch anew
    other = mixed(processor, folder, weights=(3, 1), samples=20, seed=1)
    assert "".join(name[0] for name in captions(other, range(20))) not in sources
    for name, size in SIZES.items():
        counts = Counter(drawn_caption for drawn_caption in drawn if drawn_caption[0] == name)
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 1


@given(
    total=st.integers(1, 10_000),
    weights=st.lists(st.floats(1e-3, 1e3, allow_nan=False), min_size=1, max_size=8),
)
def test_shares_add_up_and_are_off_by_less_than_one(total, weights) -> None:
    counts = _shares(total, weights)
    assert sum(counts) == total
    assert all(abs(count - total * weight / sum(weights)) < 1 for count, weight in zip(counts, weights, strict=True))


def test_a_sample_depends_on_seed_and_index_alone(processor, folder) -> None:
    def contents(data, indices):
        samples = {index: data[index] for index in indices}
        return {index: (sample.input_ids, sample.mirrored) for index, sample in samples.items()}

    forward = contents(mixed(processor, folder), range(30))
    assert contents(mixed(processor, folder), reversed(range(30))) == forward
    assert contents(pickle.loads(pickle.dumps(mixed(processor, folder))), range(30)) == forward  # noqa: S301
    assert contents(mixed(processor, folder, seed=1), range(30)) != forward


def test_half_of_the_pairs_are_generated_and_half_of_those_mirrored(processor, folder) -> None:
    data = mixed(processor, folder)
    samples = [data[index] for index in range(400)]
    generated = [sample for sample in samples if sample.targets]
    assert 160 <= len(generated) <= 240  # 4 standard deviations
    assert len(generated) // 4 <= sum(sample.mirrored == [True] for sample in generated) <= 3 * len(generated) // 4
    assert not any(sample.mirrored for sample in samples if not sample.targets)


def test_nothing_is_mirrored_without_flip(processor, folder) -> None:
    collate = Collator(processor, 16)
    for options in ({"flip": False}, {}):
        data = mixed(processor, folder, **options)
        batch = collate([data[index] for index in range(100)])["target_pixels"]
        left = batch[..., :8].mean(dim=(1, 2, 3)) < 0
        assert bool(left.all()) == ("flip" in options)


def batches(data: TrainingData, rank: int, ranks: int, skip: int = 0, workers: int = 0) -> list[list[str]]:
    """The samples of three epochs that accelerate gives to one process."""
    loader = DataLoader(data, batch_size=3, sampler=range(3 * len(data)), num_workers=workers, collate_fn=list)
    prepared = prepare_data_loader(loader, num_processes=ranks, process_index=rank, put_on_device=False)
    return [[caption(data, sample) for sample in batch] for batch in skip_first_batches(prepared, skip)]


def test_processes_share_the_samples_and_a_resume_reads_none_twice(processor, folder, monkeypatch) -> None:
    data = mixed(processor, folder, samples=20)
    all_batches = batches(data, 0, 1)
    assert all_batches == [captions(data, range(i, i + 3)) for i in range(0, 60, 3)]
    assert batches(data, 0, 1, workers=2) == all_batches
    read: list[int] = []
    get = TrainingData.__getitem__
    monkeypatch.setattr(TrainingData, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    for ranks, skip in itertools.product((1, 2), (0, 8)):
        read.clear()
        each = [batches(data, rank, ranks, skip) for rank in range(ranks)]
        assert [batch for together in zip(*each, strict=True) for batch in together] == all_batches[ranks * skip :]
        assert sorted(read) == list(range(3 * ranks * skip, 60))


def test_a_broken_record_is_replaced_by_another_of_its_source(processor, folder, tmp_path) -> None:
    """By the same one whoever asks for the index, and no other index changes."""
    rows = (folder / "a.jsonl").read_text().splitlines()
    (tmp_path / "x.png").write_bytes((folder / "x.png").read_bytes())
    (tmp_path / "b.jsonl").write_text((folder / "b.jsonl").read_text())
    (tmp_path / "a.jsonl").write_text("\n".join(["{", *rows[1:]]) + "\n")
    intact, damaged = mixed(processor, folder), mixed(processor, tmp_path)
    before, after = captions(intact, range(38)), captions(damaged, range(38))
    changed = [index for index in range(38) if before[index] != after[index]]
    assert changed == [index for index in range(38) if before[index] == "a 0"]
    assert len(changed) == 2
    assert {after[index][0] for index in changed} == {"a"}
    again = mixed(processor, tmp_path)
    assert captions(again, reversed(changed)) == [after[index] for index in reversed(changed)]


def test_the_limit_on_broken_records_counts_those_of_all_processes_once(tmp_path) -> None:
    one, two = (BrokenRecords(3, tmp_path / "broken.jsonl") for _ in range(2))
    for record in ("record 1", "record 2"):
        for process in (one, two):  # each finds both
            process.add("a", record, "torn")
    two.add("a", "record 3", "torn")
    with pytest.raises(UsageError, match="more than 3 records or images are broken, most recently record 4 of a"):
        one.add("a", "record 4", "torn")
    assert len(one.entries()) == 4


def streamed(processor, folder: Path, **options) -> TrainingData:
    sources = [
        {"kind": "pairs", "path": "a.jsonl", "weight": 1, "streaming": True, "shuffle_buffer": 4},
        {"kind": "pairs", "path": "b.jsonl", "weight": 1},
    ]
    return training_dataset({"cache": "cache", "sources": sources, "samples": 14, **options}, processor, folder=folder)


def test_a_stream_gives_each_record_once_per_pass_and_always_the_same(processor, folder) -> None:
    first = captions(streamed(processor, folder), range(42))
    drawn = [name for name in first if name.startswith("a")]
    turns = [tuple(drawn[i : i + 7]) for i in range(0, 21, 7)]
    assert [sorted(turn) for turn in turns] == [[f"a {i}" for i in range(7)]] * 3
    assert len(set(turns)) == 3
    again = streamed(processor, folder)
    order = [30, 31, 5, 41, 0, *range(42)]
    assert captions(again, order) == [first[index] for index in order]
    copy = pickle.loads(pickle.dumps(again))  # noqa: S301
    assert captions(copy, [20]) == [first[20]]


def test_data_loader_workers_share_a_stream(processor, folder) -> None:
    assert batches(streamed(processor, folder), 0, 1, workers=2) == batches(streamed(processor, folder), 0, 1)


def test_a_record_far_back_in_a_stream_is_read_again(folder) -> None:
    rows = "".join(f'{{"n": {i}}}\n' for i in range(300))
    (folder / "long.jsonl").write_text(rows)
    stream = Stream([str(folder / "long.jsonl")], seed=0, buffer_size=10)
    first = [stream.record(i)["n"] for i in range(300)]
    assert sorted(first) == list(range(300))
    assert [stream.record(i)["n"] for i in (299, 299 - 63, 299 - 64, 0, 150)] == [
        first[i] for i in (299, 299 - 63, 299 - 64, 0, 150)
    ]


def test_a_broken_record_of_a_stream_is_replaced_by_an_earlier_one(processor, folder, tmp_path) -> None:
    (tmp_path / "x.png").write_bytes((folder / "x.png").read_bytes())
    (tmp_path / "b.jsonl").write_text((folder / "b.jsonl").read_text())
    rows = (folder / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*rows[:3], "{", *rows[4:]]) + "\n")
    captions = []
    for indices in (range(42), reversed(range(42))):
        data = streamed(processor, tmp_path)
        found = {index: processor.decode(data[index].input_ids).strip() for index in indices}
        captions.append([found[index] for index in range(42)])
        assert len(data.broken.entries()) == 3  # once per pass
    assert captions[0] == captions[1]
    assert "a 3" not in captions[0]


def test_a_stream_needs_weights_and_samples(processor, folder) -> None:
    with pytest.raises(UsageError, match="the length of a stream is unknown"):
        streamed(processor, folder, samples=None)


def test_weights_for_only_some_sources_are_rejected(processor, folder) -> None:
    sources = [{"kind": "pairs", "path": "a.jsonl", "weight": 1}, {"kind": "pairs", "path": "b.jsonl"}]
    with pytest.raises(UsageError, match="every source a weight, or none"):
        training_dataset({"sources": sources}, processor, folder=folder)


def test_a_source_that_would_never_be_drawn_is_rejected(processor, folder) -> None:
    with pytest.raises(UsageError, match="source b gets none of the 10 samples"):
        mixed(processor, folder, (1000, 1), samples=10)


def test_a_cache_that_is_a_file_is_reported_in_one_line(processor, folder) -> None:
    with pytest.raises(UsageError, match=r"data\.cache: folder .*x\.png cannot be created"):
        mixed(processor, folder, cache="x.png")


def test_batches_of_a_mixture_have_an_image_for_each_span(processor, model, folder) -> None:
    data = mixed(processor, folder)
    batch = next(iter(DataLoader(data, batch_size=8, collate_fn=Collator(processor, 64))))
    starts = (batch["input_ids"] == model.config.im_start_token_id).sum() + (
        batch["input_ids"] == model.config.dream_start_token_id
    ).sum()
    assert starts == len(batch["pixel_values"]) + len(batch["target_pixels"]) == 8
    assert all(torch.isfinite(value).all() for value in itertools.chain(batch.values()))
