"""Leaderboards: the tables follow from the evidence, the evidence from runs, and every altered digit is found."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report.made_runs import HOSTILE, make_run

from dreambench import run
from dreambench.cli import main
from dreambench.documents import Text
from dreambench.errors import DataError
from dreambench.files import sha256_file, write_arrays
from dreambench.leaderboard import update
from dreambench.leaderboard.evidence import FACTS, MANIFEST, evidence_folders, read
from dreambench.leaderboard.rows import measured_rows
from dreambench.leaderboard.verify import verify
from dreambench.metrics.compare import Reference, compare
from dreambench.requests import Response, Sample
from dreambench.scores import Cells, Protocol, Score
from dreambench.statistics import mean_estimate

ROOT = Path(__file__).parents[2]
FIELDS = {"task": "made", "metric": "fd[x]"}
PROTOCOL = Protocol("p", 1, FIELDS).id


def made(
    folder: Path, values: Sequence[float | None], *, better: str = "higher", protocol: str = "p", **options: object
) -> Path:
    """A run of a model named like the folder without ``-N``, whose accuracy is the mean of `values`; None is unscored."""
    fields = {"n": len(values), "kind": protocol}
    id_ = Protocol("p", 1, fields).id
    samples = [Sample(f"q{i}", (Text("?"),)) for i in range(len(values))]
    rows = [{"id": f"q{i}", "answer": "a secret text", "accuracy": value} for i, value in enumerate(values)]
    scored = [value for value in values if value is not None]
    score = Score.of(
        "accuracy",
        mean_estimate(scored),
        id_,
        unscored=len(values) - len(scored),
        better=better,
        cells=Cells("accuracy"),
    )
    responses = [Response(sample.id, (Text("a secret text"),)) for sample in samples]
    path = make_run(folder, samples, responses, rows, [score], model=folder.name.partition("-")[0], fields=fields)
    begun = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**begun, "spec": {"seed": 0, "data": "/home/me/data", **options}}))
    return path


def hits(n: int, of: int) -> list[float]:
    return [1.0] * n + [0.0] * (of - n)


def table(out: Path, name: str = "comprehension") -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the harness itself, with means and a Fréchet distance, and made ones that rank."""
    folder = tmp_path_factory.mktemp("board")
    runs = [run("vqav2", "blind", out=folder, limit=64).folder, image_run(folder / "far-1", 60, 1.0)]
    runs += [made(folder / f"{name}-1", hits(n, 100)) for name, n in (("good", 80), ("middling", 60), ("other", 65))]
    update(runs, folder / "out")
    return folder / "out"


@pytest.fixture
def copy(board: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(board, tmp_path / "out"))


# --- what is committed ------------------------------------------------------------------------------------------------


def test_the_committed_leaderboards_follow_from_what_is_beside_them() -> None:
    found = verify(ROOT / "leaderboards")
    assert found.problems == []


def test_every_number_is_computed_again_or_said_to_have_its_hash_only(board: Path) -> None:
    found = verify(board)
    assert found.problems == []
    by_run = {one.run.split("-")[0]: one for one in map(read, evidence_folders(board))}
    assert [score.metric for score in by_run["vqav2"].scores] == ["accuracy"]
    assert by_run["far"].facts["frechet"][0]["dim"] == 8
    # vqav2 and the made runs: value, n and both ends; of the distance value and n.
    assert found.recomputed == 4 * 4 + 2
    assert found.hashed == sum(found.why.values()) > 0


def test_evidence_holds_no_texts_and_no_paths(board: Path, tmp_path: Path) -> None:
    for path in (board / "measured").rglob("*"):
        if path.is_file():
            assert b"a secret text" not in path.read_bytes()
            assert b"/home/me" not in path.read_bytes()
            assert str(tmp_path.parent).encode() not in path.read_bytes()
    assert set(pd.read_parquet(board / "measured/good-1/scores.parquet")) == {"id", "accuracy"}


def test_a_leaderboard_grows_and_two_writes_are_equal(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"{name}-1", hits(n, 50)) for name, n in (("a", 40), ("b", 20))]
    update(runs[:1], tmp_path / "out")
    first = contents(tmp_path / "out")
    update(runs[:1], tmp_path / "out")
    assert contents(tmp_path / "out") == first
    shutil.rmtree(runs[0])
    update(runs[1:], tmp_path / "out")
    rows = table(tmp_path / "out")
    assert [row["system"] for row in rows] == ["a", "b"], "one row more, the old one stays without its run"
    update([], tmp_path / "out")
    assert verify(tmp_path / "out").problems == []


def test_a_new_run_is_one_line_for_each_of_its_scores(copy: Path, tmp_path: Path) -> None:
    before = (copy / "text_to_image.csv").read_text().splitlines()
    other = image_run(tmp_path / "new-1", 50, 1.0)
    update([other], copy)
    after = (copy / "text_to_image.csv").read_text().splitlines()
    scores = json.loads((other / "metrics.json").read_text())["scores"]
    assert [line for line in after if line in before] == before
    assert len(after) - len(before) == len(scores)


# --- alterations ------------------------------------------------------------------------------------------------------


def alter_digit(text: str, place: int) -> str:
    """Another digit at the first digit from `place` on."""
    at = next(i for i in range(place, len(text)) if text[i].isdigit())
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


@pytest.mark.parametrize(
    "column", ["value", "interval_low", "interval_high", "n", "rank", "rank_last", "attempt_median", "seed"]
)
def test_one_digit_of_a_table_is_found(copy: Path, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "comprehension.csv"
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    place = lines[0].index(column)
    row = next(line for line in lines if line[lines[0].index("system")] == "good")
    before, row[place] = row[place], alter_digit(row[place], len(row[place]) - 1)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    with pytest.raises(SystemExit) as left:
        main(["leaderboard", "--verify", "--out", str(copy)])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert f"comprehension.csv, line {lines.index(row) + 1} (made accuracy good good-1), {column}: found" in said
    assert f"wanted '{before}'" in said


def seal(folder: Path) -> None:
    """A manifest that fits the files, as a careful forger would write it."""
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


def alter_facts(folder: Path, name: str, change: Callable[[object], object]) -> None:
    facts = json.loads((folder / FACTS).read_text())
    facts["scores"][0][name] = change(facts["scores"][0][name])
    (folder / FACTS).write_text(json.dumps(facts))


def alter_cell(folder: Path) -> None:
    cells = pd.read_parquet(folder / "scores.parquet")
    cells.loc[0, "accuracy"] = 0.0
    cells.to_parquet(folder / "scores.parquet", index=False)


def alter_statistics(folder: Path) -> None:
    (path,) = folder.glob("statistics-*.npz")
    arrays = dict(np.load(path))
    arrays["generated_mean"][0] += 0.01
    write_arrays(path, **arrays)


ALTERATIONS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "a value": ("good-1", lambda folder: alter_facts(folder, "value", lambda value: value + 0.0001)),
    "an interval": ("good-1", lambda folder: alter_facts(folder, "interval", lambda ends: [ends[0] + 0.0001, ends[1]])),
    "a method": ("good-1", lambda folder: alter_facts(folder, "interval_method", lambda _: "bootstrap")),
    "n": ("good-1", lambda folder: alter_facts(folder, "n", lambda n: n + 1)),
    "a cell": ("good-1", alter_cell),
    "a distance": ("far-1", lambda folder: alter_facts(folder, "value", lambda value: value + 0.0001)),
    "statistics": ("far-1", alter_statistics),
}


@pytest.mark.parametrize("what", ALTERATIONS)
@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "with a manifest and tables that fit"])
def test_altered_evidence_is_found(copy: Path, what: str, sealed: bool) -> None:
    name, alter = ALTERATIONS[what]
    (folder,) = (copy / "measured").glob(name)
    alter(folder)
    if sealed:
        seal(folder)
        update([], copy)
    problems = verify(copy).problems
    assert problems
    assert all("found" in problem and "wanted" in problem for problem in problems[:1])
    assert folder.name in problems[0]


def test_a_protocol_with_another_field_is_found(copy: Path) -> None:
    (folder,) = (copy / "measured").glob("vqav2-*")
    text = (folder / FACTS).read_text()
    (folder / FACTS).write_text(text.replace('"split": "val', '"split": "test', 1))
    seal(folder)
    with pytest.raises(DataError, match="hash"):
        update([], copy)
    assert any("hash" in problem for problem in verify(copy).problems)


def test_published_results_and_text_are_tied_to_the_tables(copy: Path) -> None:
    (copy / "published").mkdir()
    header = "system,params,benchmark,metric,value,split_or_setting,source,confidence"
    (copy / "published/comprehension.csv").write_text(f"{header}\nX,7B,VQAv2,accuracy,56.6,test-dev,a paper,high\n")
    update([], copy)
    (row,) = [row for row in table(copy) if row["status"] == "published"]
    assert (row["value"], row["rank"], row["source"], row["parameters"]) == ("56.6", "", "a paper", "7B")
    assert "interval" in row["unknown"]
    assert "n" in row["unknown"].split(", ")
    (copy / "index.html").write_text((copy / "index.html").read_text().replace("56.6", "65.6"))
    assert any("index.html, line" in problem for problem in verify(copy).problems)
    (copy / "published/comprehension.csv").write_text(f"{header}\nX,7B,VQAv2,accuracy,fifty,test-dev,a paper,high\n")
    with pytest.raises(DataError, match="row 2: the value 'fifty' is no number"):
        update([], copy)


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranked(tmp_path: Path, runs: Sequence[Path]) -> dict[str, dict[str, str]]:
    update(runs, tmp_path / "out")
    return {row["run"]: row for row in table(tmp_path / "out")}


def test_ranks_and_what_the_intervals_leave_open(board: Path) -> None:
    rows = {row["system"]: row for row in table(board) if row["task"] == "made"}
    spans = {
        name: tuple(row[column] for column in ("rank", "rank_first", "rank_last", "ranked"))
        for name, row in rows.items()
    }
    # 80, 65 and 60 of 100: the intervals of the last two overlap, that of 80 touches 65's but not 60's.
    assert spans["good"][0] == "1"
    assert (spans["other"][0], spans["middling"][0]) == ("2", "3")
    assert spans["middling"][1:] == ("2", "3", "3")


def test_lower_is_better_where_a_score_says_so(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"{name}-1", hits(n, 100), better="lower") for name, n in (("high", 90), ("low", 10))]
    rows = ranked(tmp_path, runs)
    assert [rows[f"{name}-1"]["rank"] for name in ("low", "high")] == ["1", "2"]


def test_unequal_protocols_never_rank_together(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"{name}-1", hits(n, 100), protocol=name) for name, n in (("a", 90), ("b", 10))]
    rows = ranked(tmp_path, runs)
    assert [(row["rank"], row["ranked"]) for row in rows.values()] == [("1", "1"), ("1", "1")]


def test_a_system_is_ranked_by_its_median_attempt(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"a-{n}", hits(n, 100)) for n in (50, 60, 90, 70)]
    runs.append(made(tmp_path / "b-1", hits(65, 100)))
    rows = ranked(tmp_path, runs)
    assert [row["run"] for row in rows.values() if row["rank"]] == ["a-60", "b-1"]
    assert (rows["a-60"]["rank"], rows["b-1"]["rank"]) == ("2", "1")
    for name in ("attempt_best", "attempt_median", "attempt_worst"):
        assert {row[name] for row in rows.values() if row["system"] == "a"} == {
            {"attempt_best": "90.0", "attempt_median": "60.0", "attempt_worst": "50.0"}[name]
        }
    assert rows["a-90"]["attempts"] == "4"
    assert rows["a-90"]["barred"] == "another attempt, a-60, is this system's median"


def test_lucky_attempts_do_not_lift_a_system_whose_median_is_barred(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"a-{n}", hits(n, 100)) for n in (50, 51, 90)]
    rows = ranked(tmp_path, [*runs, made(tmp_path / "blind-1", hits(50, 100))])
    assert [row["rank"] for row in rows.values()] == [""] * 4
    assert rows["a-51"]["barred"].startswith("not shown to be better than blind")
    assert rows["a-90"]["barred"] == "another attempt, a-51, is this system's median"


def test_rows_that_show_nothing_are_barred_with_the_reason(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "limited-1", hits(50, 100), limit=100),
        made(tmp_path / "echo-1", hits(60, 100)),
        made(tmp_path / "blind-1", hits(50, 100)),
        made(tmp_path / "floor-1", hits(52, 100)),
        made(tmp_path / "above-1", hits(90, 100)),
        made(tmp_path / "unscored-1", [*hits(80, 90), *([None] * 10)]),
        made(tmp_path / "sideways-1", hits(70, 100), better=None),  # type: ignore[arg-type]
    ]
    rows = ranked(tmp_path, runs)
    reasons = {name.partition("-")[0]: row["barred"] for name, row in rows.items()}
    assert reasons == {
        "above": "",
        "blind": "a blind baseline",
        "echo": "a toy",
        "floor": "not shown to be better than blind, 50.00",
        "limited": "limited: --limit or --ids chose the samples",
        "sideways": "neither direction is better: a baseline or a description",
        "unscored": "10 of 100 are unscored, more than 5%",
    }
    assert [name for name, row in rows.items() if row["rank"]] == ["above-1"]


def image_run(folder: Path, n: int, shift: float, seed: int = 0, dim: int = 8) -> Path:
    """A run with features of `n` images, `shift` away from their 400 references."""
    draw = np.random.default_rng(seed)
    real, generated = np.random.default_rng(99).normal(size=(400, dim)), draw.normal(size=(n, dim)) + shift
    fields = {"task": "made", "metric": "fd[x]", "samples": {"n": n}}
    id_ = Protocol("p", 1, fields).id
    scores = compare({"features": generated}, Reference.from_features(real, (), None), "x", id_)
    samples = [Sample(f"s{i}", (Text("?"),)) for i in range(n)]
    rows = [{"id": f"s{i}", "image": f"images/{i}.png"} for i in range(n)]
    responses = [Response(sample.id, (Text("-"),)) for sample in samples]
    path = make_run(folder, samples, responses, rows, scores, model=folder.name.partition("-")[0], fields=fields)
    write_arrays(path / f"features/{id_}/generated.npz", features=generated)
    write_arrays(path / f"features/{id_}/real.npz", features=real)
    return path


def test_distances_are_barred_where_they_are_singular_or_show_no_difference(tmp_path: Path) -> None:
    runs = [image_run(tmp_path / "few-1", 8, 1.0), image_run(tmp_path / "same-1", 200, 0.0)]
    runs += [image_run(tmp_path / f"far-{seed}", 200, 1.0, seed) for seed in (1, 2)]
    update(runs, tmp_path / "out")
    rows = {row["run"]: row for row in table(tmp_path / "out", "text_to_image") if row["metric"] == "fd[x]"}
    assert rows["few-1"]["barred"] == "singular: not more images than the 8 features"
    assert "no difference from real images is shown" in rows["same-1"]["barred"]
    assert [rows[f"far-{seed}"]["rank"] for seed in (1, 2)].count("1") == 1
    assert rows["far-1"]["attempts"] == rows["far-2"]["attempts"] == "2"
    assert verify(tmp_path / "out").problems == []


def test_statistics_of_many_features_are_kept_by_hash_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambench.leaderboard.collect.LARGEST", 4)
    out, path = tmp_path / "out", image_run(tmp_path / "far-1", 50, 1.0)
    update([path], out)
    (large,) = (out / "measured/far-1").glob("*.large.npz")
    assert "*.large.npz" in (ROOT / ".gitignore").read_text().splitlines()
    with_it = verify(out)
    manifest = json.loads((out / "measured/far-1" / MANIFEST).read_text())
    manifest["files"][large.name]["location"] = "https://example.org/release/1"
    (out / "measured/far-1" / MANIFEST).write_text(json.dumps(manifest))
    large.unlink()
    without = verify(out)
    assert with_it.problems == without.problems == []
    assert without.recomputed == with_it.recomputed - 2
    assert any("is not here" in why for why in without.why)
    update([path], out)
    assert "https://example.org/release/1" in (out / "measured/far-1" / MANIFEST).read_text(), "the place stays"


# --- hostile and broken input -----------------------------------------------------------------------------------------


def test_hostile_text_is_text_everywhere(tmp_path: Path) -> None:
    path = made(tmp_path / "bad-1", hits(5, 10))
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["model"] = "=HYPERLINK(1)<script>alert(1)</script>|"
    metrics["notes"] = [text for text in HOSTILE if "\u202e" not in text]
    (path / "metrics.json").write_text(json.dumps(metrics))
    update([path], tmp_path / "out")
    (row,) = table(tmp_path / "out")
    assert row["system"].startswith("'=HYPERLINK")
    page, readme = ((tmp_path / "out" / name).read_text() for name in ("index.html", "README.md"))
    assert "<script" not in page
    assert "\x1b" not in page + readme + (tmp_path / "out/comprehension.csv").read_text()
    assert "<script" not in readme.replace("\\<", "")
    assert verify(tmp_path / "out").problems == []


def refused(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(["leaderboard", *map(str, arguments)])
    assert left.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("dreambench: error: ")
    return said


def test_links_in_evidence_are_not_followed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy / "measured/good-1"
    (folder / "scores.parquet").rename(copy / "elsewhere")
    (folder / "scores.parquet").symlink_to(copy / "elsewhere")
    assert "is a link" in refused(["--out", copy, made(copy / "more-1", hits(1, 3))], capsys)
    assert any("is a link" in problem for problem in verify(copy).problems)
    shutil.rmtree(folder)
    folder.symlink_to(copy / "measured/other-1")
    assert any("good-1 is no folder of evidence" in problem for problem in verify(copy).problems)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (MANIFEST, '{"files": {"../../x": {"sha256": "0"}}}', "no name of a file"),
        (MANIFEST, "[]", "damaged"),
        (MANIFEST, None, "is missing"),
        (FACTS, None, "is missing"),
        ("more.txt", "x", "not in the manifest"),
    ],
)
def test_broken_evidence_is_named(copy: Path, name: str, content: str | None, words: str) -> None:
    path = copy / "measured/good-1" / name
    path.unlink() if content is None else path.write_text(content)
    problems = [problem for problem in verify(copy).problems if words in problem]
    assert problems
    assert "good-1" in problems[0]


def test_statistics_of_impossible_shapes_are_named_before_memory_is_asked_for(copy: Path) -> None:
    (path,) = (copy / "measured/far-1").glob("statistics-*.npz")
    write_arrays(path, **{**np.load(path), "generated_mean": np.zeros(10**6)})
    seal(path.parent)
    assert "cannot be computed again" in verify(copy).problems[0]


def test_what_is_no_run_and_no_leaderboard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give the runs to add" in refused([], capsys)
    (tmp_path / "nothing").mkdir()
    assert "holds no runs" in refused([tmp_path / "nothing", "--out", tmp_path / "out"], capsys)
    assert "is no leaderboard" in refused(["--verify", "--out", tmp_path / "nothing"], capsys)
    assert "leave them out" in refused(["--verify", tmp_path / "nothing"], capsys)
    (tmp_path / "x.json").write_text('{"benchmarks": [], "datetime": "2026-01-01"}')
    assert "no case" in refused(["--benchmarks", tmp_path / "x.json", "--out", tmp_path / "out"], capsys)


def test_a_run_that_does_not_follow_from_its_own_cells_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path / "a-1", hits(5, 10))
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["scores"][0]["value"] = 99.0
    (path / "metrics.json").write_text(json.dumps(metrics))
    assert "does not follow from its own files" in refused([path, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out/measured/a-1").exists()


# --- throughput -------------------------------------------------------------------------------------------------------


def test_speeds_become_rows_beside_their_scores(tmp_path: Path) -> None:
    shares = {f"share_{name}": 0.2 for name in ("model", "preprocessing", "storing", "scoring", "imports")}
    info = {
        **{"task": "vqav2", "model": "dreamllm", "size": "tiny", "unit": "questions/s", "rate": 12.5, "p50_s": 0.01},
        **{
            "p95_s": 0.02,
            "peak_mb": 900.0,
            **shares,
            "metric": "accuracy",
            "value": 60.0,
            "unit_of_value": "%",
            "n": 64,
        },
        **{"protocol": "official@1-00000000", "device": "cpu", "machine": {"system": "Linux", "cpu_count": 2}},
        **{"versions": {"torch": "2.15"}, "more": "/home/me/x"},
    }
    cases = [{"name": "a", "extra_info": info}, {"name": "other", "extra_info": {}}]
    machine = {"node": "my-host"}
    (tmp_path / "b.json").write_text(
        json.dumps({"machine_info": machine, "datetime": "2026-11-26T05:00:00.123+00:00", "benchmarks": cases})
    )
    for _ in range(2):
        update([], tmp_path / "out", tmp_path / "b.json")
    (row,) = table(tmp_path / "out", "throughput")
    assert (row["rate"], row["machine"], row["date"]) == ("12.5", "system Linux, cpu_count 2", "2026-11-26T05:00:00")
    (kept,) = (tmp_path / "out/throughput").iterdir()
    assert not {b"my-host", b"/home"} & {word for word in (b"my-host", b"/home") if word in kept.read_bytes()}
    kept.write_text(kept.read_text().replace("12.5", "92.5"))
    with pytest.raises(DataError, match="sha256 found"):
        verify(tmp_path / "out")
    del info["rate"]
    (tmp_path / "b.json").write_text(json.dumps({"datetime": "2026-11-26T05:00:00", "benchmarks": cases}))
    with pytest.raises(DataError, match="rate"):
        update([], tmp_path / "out", tmp_path / "b.json")


def test_a_run_names_the_command_that_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["run", "--task", "vqav2", "--model", "echo", "--limit", "4"])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    command = last.partition("dreambench ")[2].split()
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    (evidence,) = map(read, evidence_folders(Path("leaderboards")))
    (row,) = measured_rows([evidence])
    assert (row.cells["task"], row.cells["parameters"], row.cells["seed"]) == ("vqav2", 0, 0)
    assert row.cells["prompt"].startswith("prompt: ")
    assert row.cells["unknown"] == "precision, device"
