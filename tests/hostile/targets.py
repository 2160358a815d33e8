"""What is damaged, and which command then runs on it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """A command on a fixture, and the files of it that are damaged, each at a time."""

    part: str
    fixture: str
    files: tuple[str, ...]
    command: tuple[str, ...]
    values: str = "stdout"
    """What is compared: the name of a function ``values_...``, or the command's standard output."""
    weight: int = 60
    """Cases of each file in a full run."""
    places: tuple[str, ...] = ()
    """What a complaint may name beside the file: where the files lie that it names."""


def score(task: str, responses: str, data: str = ".", *more: str) -> tuple[str, ...]:
    return ("dreambench", "score", "--task", task, "--data", data, "--responses", responses, *more)


VQA = ("questions.json", "annotations.json")
GENERATE = ("dreamllm", "generate", "<image> what?", "--image", "x.png", "--max-new-tokens", "3", "--device", "cpu")
DRY = ("dreambench", "run", "--model", "echo", "--dry-run")
STORY = (*DRY, "--task", "interleaved", "--features", "playground-clip", "--data")
JSON_OUT = ("--json", "made.json")
CHECKPOINT = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
RUN_FILES = ("run/run.json", "run/metrics.json", "run/responses/rank-00000.jsonl")
TABLES = ("run/samples.parquet", "run/scores.parquet")
TARGETS = (
    Target("vqav2", "vqav2", (*VQA, "results.json"), score("vqav2", "results.json"), "scores", 130),
    Target("vqav2", "vqav2", ("results.jsonl",), score("vqav2", "results.jsonl"), "scores", 80),
    Target(
        "vqav2",
        "vqav2_gz",
        (*(f"{name}.gz" for name in VQA), "results.jsonl.gz"),
        score("vqav2", "results.jsonl.gz"),
        "scores",
        30,
    ),
    Target(
        "ids",
        "vqav2",
        ("ids.txt",),
        (*DRY, "--task", "vqav2", "--data", ".", "--ids", "ids.txt"),
        weight=50,
        places=("--ids",),
    ),
    Target(
        "mmbench",
        "mmbench",
        ("mmbench.tsv", "predictions.tsv"),
        score("mmbench", "predictions.tsv", "mmbench.tsv"),
        "scores",
        110,
    ),
    Target(
        "mmbench", "mmbench", ("predictions.csv",), score("mmbench", "predictions.csv", "mmbench.tsv"), "scores", 50
    ),
    Target(
        "mmbench", "mmbench", ("predictions.xlsx",), score("mmbench", "predictions.xlsx", "mmbench.tsv"), "scores", 40
    ),
    Target(
        "mmbench", "mmbench", ("predictions.jsonl",), score("mmbench", "predictions.jsonl", "mmbench.tsv"), "scores", 80
    ),
    Target(
        "mmvet",
        "mmvet",
        ("mm-vet.json", "answers.json"),
        score("mmvet", "answers.json", ".", "--judge", "rule"),
        "scores",
        110,
    ),
    Target(
        "judges",
        "mmvet",
        ("grades.json",),
        score("mmvet", "answers.json", ".", "--judge", "grades:grades.json"),
        "scores",
        110,
    ),
    Target(
        "judges",
        "mmvet",
        ("judgements.jsonl",),
        score("mmvet", "answers.json", ".", "--judge", "replay:judgements.jsonl"),
        "scores",
        150,
    ),
    Target(
        "captions",
        "captions",
        ("annotations/captions_val2017.json",),
        (*DRY, "--task", "coco_fid", "--data", ".", "--features", "playground-clip"),
        weight=120,
        places=("val2017",),
    ),
    Target(
        "captions",
        "captions",
        ("coco_val_localized_narratives.jsonl",),
        (*DRY, "--task", "lncoco_fid", "--data", ".", "--features", "playground-clip"),
        weight=120,
        places=("val2017",),
    ),
    Target("documents", "documents", ("plain/documents.jsonl", "plain/topics.json"), (*STORY, "plain"), weight=120),
    Target(
        "documents",
        "documents",
        ("mmc4/stories_train.jsonl",),
        (*STORY, "mmc4", "--protocol", "teacher-forced"),
        weight=100,
    ),
    Target("documents", "documents", ("instructions/instructions_train.jsonl",), (*STORY, "instructions"), weight=100),
    Target(
        "documents",
        "documents",
        ("obelics/part.parquet",),
        (*STORY, "obelics", "--protocol", "teacher-forced"),
        weight=70,
    ),
    Target(
        "score RUN",
        "run",
        ("run/run.json", "run/responses/rank-00000.jsonl", "run/samples.parquet"),
        ("dreambench", "score", "run"),
        "metrics",
        160,
    ),
    Target(
        "score RUN", "graded", ("run/judgements.jsonl", "run/run.json"), ("dreambench", "score", "run"), "metrics", 110
    ),
    Target(
        "rerun RUN",
        "begun",
        (*RUN_FILES[::2], "run/lock/rank-00000.json", "run/lock/launch"),
        ("dreambench", "rerun", "run", "--out", "runs"),
        "anywhere",
        60,
    ),
    Target(
        "score RUN",
        "begun",
        ("run/lock/rank-00000.json", "run/lock/launch"),
        ("dreambench", "score", "run"),
        "metrics",
        80,
    ),
    Target("report RUN", "run", RUN_FILES[:2], ("dreambench", "report", "run", "--csv"), weight=90),
    Target("report RUN", "run", ("run/metrics.json",), ("dreambench", "report", "run"), weight=90),
    Target(
        "report RUN",
        "run",
        (*RUN_FILES, *TABLES),
        ("dreambench", "report", "run", "--html", "page.html"),
        "nothing",
        90,
    ),
    Target(
        "human export",
        "stories",
        (
            "run-one/run.json",
            "run-one/metrics.json",
            "run-one/responses/rank-00000.jsonl",
            "run-one/samples.parquet",
            "questions.json",
        ),
        (
            "dreambench",
            "human",
            "export",
            "run-one",
            "run-two",
            "--questions",
            "questions.json",
            "--references",
            "2",
            "--raters",
            "15",
            "--out",
            "study",
        ),
        "study",
        60,
    ),
    Target(
        "human import",
        "study",
        ("study/organiser/key.json", "rater-1.jsonl"),
        ("dreambench", "human", "import", "study", "rater-1.jsonl"),
        "ratings",
        110,
    ),
    *(
        Target("human import", "study", (name,), ("dreambench", "human", "import", "study", name), "ratings", 70)
        for name in ("plain.jsonl", "label-studio.json", "potato.jsonl", "mturk.csv")
    ),
    Target(
        "human analyse",
        "imported",
        ("study/organiser/key.json", "study/organiser/ratings/*.jsonl", "study/organiser/*.json"),
        ("dreambench", "human", "analyse", "study", *JSON_OUT),
        "made",
        90,
    ),
    Target(
        "human analyse",
        "votes",
        ("votes.csv", "judge.csv"),
        ("dreambench", "human", "analyse", "--votes", "votes.csv", "--judge-votes", "judge.csv", *JSON_OUT),
        "made",
        50,
    ),
    Target(
        "human analyse",
        "votes",
        ("votes.jsonl",),
        ("dreambench", "human", "analyse", "--votes", "votes.jsonl", *JSON_OUT),
        "made",
        80,
    ),
    Target(
        "fid",
        "images",
        ("real.npz", "fake/000000000001.png"),
        ("dreambench", "fid", "real.npz", "fake", "--features", "playground-clip"),
        weight=60,
    ),
    Target(
        "checkpoint",
        "checkpoint",
        tuple(f"model/{name}" for name in CHECKPOINT),
        (*GENERATE, "--model", "model"),
        weight=110,
    ),
    Target(
        "checkpoint", "checkpoint", ("model/model.safetensors", "x.png"), (*GENERATE, "--model", "model"), weight=70
    ),
    Target(
        "checkpoint",
        "checkpoint",
        ("model/config.json",),
        ("dreamllm", "generate-image", "a ring", "made.png", "--steps", "1", "--model", "model", "--device", "cpu"),
        "image",
        120,
    ),
    Target(
        "checkpoint",
        "sharded",
        ("model/model.safetensors.index.json", "model/model-00001-*.safetensors"),
        (*GENERATE[:2], "what?", *GENERATE[5:], "--model", "model"),
        weight=60,
    ),
    Target(
        "released checkpoint",
        "released",
        ("released/*.json", "released/clip/*.json", "released/diffusion/*/*.json", "released/*.bin"),
        (*GENERATE, "--model", "released"),
        weight=60,
    ),
    Target(
        "transformers",
        "llava",
        ("model/*.json", "model/model.safetensors"),
        ("dreambench", "run", "--task", "vqav2", "--data", "data", "--limit", "2", "--model", "transformers:model"),
        "scores",
        30,
    ),
    Target(
        "diffusers",
        "stable_diffusion",
        ("model/*.json", "model/*/*.json"),
        (
            "dreambench",
            "run",
            "--task",
            "coco_fid",
            "--data",
            "data",
            "--limit",
            "2",
            "--model",
            "diffusers:model",
            "--features",
            "playground-clip",
            "--dry-run",
        ),
        "nothing",
        20,
    ),
    Target(
        "recipes",
        "training",
        ("igpt.yaml", "sft.yaml", "igpt.json", "sft.json"),
        ("dreamllm", "train", "FILE", "--dry-run"),
        "nothing",
        120,
    ),
    Target(
        "training data", "training", ("pairs.jsonl",), ("dreamllm", "train", "igpt.json", "--dry-run"), "nothing", 90
    ),
    Target("training data", "training", ("talk.json",), ("dreamllm", "train", "sft.json", "--dry-run"), "nothing", 90),
    Target(
        "training data",
        "training",
        ("stories/stories_train.jsonl",),
        ("dreamllm", "train", "mmc4.json", "--dry-run"),
        "nothing",
        90,
    ),
    Target(
        "training data",
        "training",
        ("instructions/instructions_train.jsonl",),
        ("dreamllm", "train", "instructions.json", "--dry-run"),
        "nothing",
        90,
    ),
)
