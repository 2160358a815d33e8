"""The task ``interleaved``: documents of text and images for an instruction, and images for the places in reference documents.

Protocols are modes. ``free``: the model writes a whole document for the instruction. ``teacher-forced``: it generates each image of a
reference document from what precedes it there. ``matched-text``: each image from the text that it illustrates and nothing else, the
baseline that any text-to-image model can run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dreambench.documents import JSON, Document, Image, Text, from_json, to_json
from dreambench.errors import DataError, UsageError, counted
from dreambench.interfaces import Task, sample_choice
from dreambench.requests import Request, Response, Sample, choice_order, sample_seed
from dreambench.scores import Protocol, TaskResult
from dreambench.spec import RunSpec
from dreambench.store import RunFolder
from dreambench_tasks.interleaved.data import (
    FREE,
    MATCHED_TEXT,
    RESIZE,
    TEACHER_FORCED,
    ReferenceData,
    ReferenceDocument,
    read_documents,
    reference_documents,
)
from dreambench_tasks.interleaved.judging import estimate_grading, grade_requests, rubric_judges
from dreambench_tasks.text_to_image import EMBEDDED_FEATURES, SAMPLER, clip_folder

if TYPE_CHECKING:
    from dreambench.judges import PromptedJudge
    from dreambench.metrics.encoders import ClipScorer
    from dreambench.metrics.features import Extractor

__all__ = ["InterleavedTask"]

PROMPTS = {
    FREE: "the instruction, as one user turn",
    TEACHER_FORCED: "the instruction, as one user turn, and the reference document up to the image",
    MATCHED_TEXT: "the text that the image illustrates, as it stands",
}
IMAGE_SETTINGS = (
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "resolution",
)
TEXT_SETTINGS = ("max_new_tokens", "max_images", "temperature", "top_p")
LEAST: dict[str, float] = {
    "num_inference_steps": 1,
    "guidance_scale": 0,
    "guidance_rescale": 0,
    "resolution": 0,
    "max_new_tokens": 1,
    "max_images": 0,
    "temperature": 0,
    "top_p": 0,
    "samples": 1,
    "documents_per_topic": 0,
}


class InterleavedTask(Task):
    """Interleaved documents: image quality in context (teacher-forced) and whole documents written for an instruction (free)

    DreamLLM (arXiv 2309.11499), section 4.3. Without ``--protocol`` a run has both modes.
    """

    name = "interleaved"
    protocol_names: ClassVar[Mapping[str, str]] = {
        FREE: "a whole document for each instruction",
        TEACHER_FORCED: "each image of a reference document from what precedes it there (DreamLLM, section 4.3)",
        MATCHED_TEXT: "each image of a reference document from the text that it illustrates only: the text-to-image baseline",
    }
    uses: ClassVar[frozenset[str]] = frozenset({"images", "features", "judge"})
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "default": {
            "samples": 1,
            "documents_per_topic": 0,
            "context_images": "reference",
            "clip": "",
            "max_new_tokens": 512,
            "max_images": 4,
            "temperature": 0.7,
            "top_p": 1.0,
            "scheduler": "dpm-solver++",
            "num_inference_steps": 20,
            "guidance_scale": 2.0,
            "guidance_rescale": 0.0,
            "negative_prompt": "",
            "resolution": 0,
        }
    }
    left_to_checkpoint: ClassVar[frozenset[str]] = SAMPLER | {"temperature", "top_p"}

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.modes = spec.protocol or (FREE, TEACHER_FORCED)
        self.features = spec.features or ("inception" if spec.data else EMBEDDED_FEATURES)
        for name, least in LEAST.items():
            if self.generation[name] < least:
                raise UsageError(f"--generation {name}={self.generation[name]}: at least {least}")
        if self.generation["context_images"] not in ("reference", "none"):
            raise UsageError(
                f"--generation context_images={self.generation['context_images']}: the values are reference and none"
            )

    # --- samples --------------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> ReferenceData:
        """``--data``, or the embedded documents of the playground."""
        if self.spec.data_path is not None:
            return read_documents(self.spec.data_path, self.spec.images)
        from dreambench_tasks.playground import ensure_documents

        return read_documents(ensure_documents(), self.spec.images)

    def documents(self) -> list[ReferenceDocument]:
        """All documents, or of each topic the ``documents_per_topic`` whose numbers by document id are lowest."""
        documents, wanted = self.data.documents, self.generation["documents_per_topic"]
        if not wanted:
            return documents
        topics: dict[str, list[ReferenceDocument]] = {}
        for document in documents:
            topics.setdefault(document.topic, []).append(document)
        if "" in topics:
            raise DataError(
                f"documents_per_topic={wanted}: {counted(len(topics['']), 'document')} (first {topics[''][0].id}) have no topic;"
                " give topics.json beside the documents"
            )
        few = {topic: len(members) for topic, members in topics.items() if len(members) < wanted}
        if few:
            topic = next(iter(few))
            raise DataError(f"documents_per_topic={wanted}: the topic {topic!r} has {few[topic]}; take at most that")
        chosen = {
            document.id
            for members in topics.values()
            for document in sorted(members, key=lambda one: choice_order(f"document {one.id}"))[:wanted]
        }
        return [document for document in documents if document.id in chosen]

    def samples(self) -> list[Sample]:
        """Document by document: ``free/<document>/<k>`` for k samples, ``teacher-forced/<document>/<image>`` for each image."""
        return [
            sample for document in self.documents() for mode in self.modes for sample in self._samples(mode, document)
        ]

    def _samples(self, mode: str, document: ReferenceDocument) -> Iterator[Sample]:
        targets: dict[str, JSON] = {
            "mode": mode,
            "document_id": document.id,
            "topic": document.topic,
            "instruction": document.instruction,
            "reference": to_json(document.document),
            "expected_images": document.expected_images,
            "truth": document.truth,
        }
        if mode == FREE:
            if not document.instruction:
                raise DataError(
                    f"the document {document.id} has no instruction, which the protocol free needs: add instructions, or"
                    f" give --protocol {TEACHER_FORCED}"
                )
            for k in range(self.generation["samples"]):
                id_ = f"{FREE}/{document.id}/{k}"
                yield Sample(id_, (Text(document.instruction),), targets, group=document.id)
            return
        places = [place for place, part in enumerate(document.document) if isinstance(part, Image)]
        for k, (place, matched) in enumerate(zip(places, document.matched, strict=True)):
            prompt = (Text(matched),) if mode == MATCHED_TEXT else self._context(document, place)
            more = {"image": k, "matched": matched, "reference_image": document.images[k].path}
            yield Sample(f"{mode}/{document.id}/{k}", prompt, targets | more, group=document.id)

    def _context(self, document: ReferenceDocument, place: int) -> Document:
        """The instruction, if there is one, and the reference document before part `place`."""
        instruction = (Text(document.instruction),) if document.instruction else ()
        before = document.document[:place]
        if self.generation["context_images"] == "none":
            text = " ".join(part.text for part in before if isinstance(part, Text))
            before = (Text(text),) if text else ()
        return (*instruction, *before)

    def first(self, samples: Sequence[Sample], n: int) -> list[Sample]:
        """``--limit`` counts documents."""
        documents = list(dict.fromkeys(sample.targets["document_id"] for sample in samples))[:n]
        return [sample for sample in samples if sample.targets["document_id"] in set(documents)]

    def benchmark_texts(self, sample: Sample) -> Iterable[str]:
        """The instruction and the texts of the reference document."""
        texts = (part.text for part in from_json(sample.targets["reference"]) if isinstance(part, Text))
        return filter(None, (sample.targets["instruction"], *texts))

    def benchmark_images(self, sample: Sample) -> Iterable[Image]:
        """The images of the reference document."""
        return (part for part in from_json(sample.targets["reference"]) if isinstance(part, Image))

    def request(self, sample: Sample) -> Request:
        """Free: the prompt is one user turn. Teacher-forced: the instruction is the user's turn and the rest begins the answer."""
        mode, seed = sample.targets["mode"], sample_seed(self.spec.seed, sample.id)
        settings: dict[str, JSON] = {name: self.generation[name] for name in IMAGE_SETTINGS}
        if mode == FREE:
            settings |= {name: self.generation[name] for name in TEXT_SETTINGS}
            return Request(sample.id, "generate_interleaved", sample.prompt, settings, seed, sample.group)
        if mode == TEACHER_FORCED:
            settings["user_parts"] = int(bool(sample.targets["instruction"]))
        return Request(sample.id, "generate_image", sample.prompt, settings, seed)

    def postprocess_batch(self, requests: Sequence[Request], responses: Sequence[Response]) -> Sequence[Response]:
        """A request for an image is answered by one image and nothing else."""
        return [
            Response.failed(response.id, "no-image", "the answer to a request for an image is not one image")
            if request.kind == "generate_image"
            and response.error is None
            and [type(part) for part in response.document] != [Image]
            else response
            for request, response in zip(requests, responses, strict=True)
        ]

    # --- what is measured -----------------------------------------------------------------------------------------------

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        from dreambench.images import require_images
        from dreambench.metrics.features import fingerprint, identity_of, metric_name
        from dreambench.metrics.resize import get_resizer

        images = [Path(image.path or "") for document in reference_documents(samples).values() for image in document]
        if len(images) < 2:
            raise UsageError("one image has no spread, so no Fréchet distance: take documents with two images at least")
        require_images(images)
        extractor, clip = self.extractor(), self.clip()
        shared = {
            "task": self.name,
            "metric": metric_name("frechet", extractor.name),
            "data": {"form": self.data.form, "sha256": self.data.sha256},
            "documents_per_topic": self.generation["documents_per_topic"] or "all",
            "left_out": {reason: {"n": len(ids), "first": ids[0]} for reason, ids in self.data.left_out.items()},
            "reference": {"kind": "images of the documents", **fingerprint(images)},
            "quantisation": "PNG, 8 bits a channel, before any resize",
            **identity_of(extractor, get_resizer(RESIZE)),
        }
        own: dict[str, dict[str, JSON]] = {
            FREE: {"clip": None if clip is None else clip.identity},
            TEACHER_FORCED: {"context_images": self.generation["context_images"]},
            MATCHED_TEXT: {},
        }
        if self.spec.judge is not None:
            if FREE not in self.modes:
                raise UsageError(f"--judge {self.spec.judge} has no effect without the protocol {FREE}: leave it out")
            judges = {name: dict(judge.identity()) for name, judge in self.judges.items()}
            own[FREE] |= {"judges": judges, "grading_runs": next(iter(self.judges.values())).runs}
        found: list[Protocol] = []
        for mode in self.modes:
            chosen = [sample for sample in samples if sample.targets["mode"] == mode]
            if chosen:
                fields = {"samples": sample_choice(chosen), "prompt": PROMPTS[mode], **own[mode]}
                found.append(Protocol(mode, 1, {**shared, **fields}))
            elif mode in self.spec.protocol:
                raise UsageError(f"--ids: none of the ids is a sample of the protocol {mode}")
        return found

    @cached_property
    def judges(self) -> Mapping[str, PromptedJudge]:
        """The judge of ``--judge`` under each rubric."""
        return rubric_judges(self.spec.judge or "", offline=self.spec.offline, device=self.spec.device)

    def estimate(self, samples: Sequence[Sample]) -> Sequence[str]:
        """The judge's cost, if the generated documents are as long as the references."""
        if self.spec.judge is None:
            return ()
        free = [sample for sample in samples if sample.targets["mode"] == FREE]
        references = {sample.id: from_json(sample.targets["reference"]) for sample in free}
        return estimate_grading(self.judges, grade_requests(free, references))

    def extractor(self) -> Extractor:
        """The feature extractor of the Fréchet distance."""
        return self._networks[0]

    def clip(self) -> ClipScorer | None:
        """The CLIP of the documents' metrics: ``--generation clip=clip:DIR``, or that of ``--features`` if it is one."""
        return self._networks[1]

    @cached_property
    def _networks(self) -> tuple[Extractor, ClipScorer | None]:
        from dreambench.adapters.torch_tools import resolve_device
        from dreambench.metrics.encoders import ClipScorer
        from dreambench.metrics.features import load_extractor

        device = resolve_device(self.spec.device)
        chosen: str = self.generation["clip"]
        is_clip = self.features == EMBEDDED_FEATURES or self.features.startswith("clip:")
        clip = chosen or (self.features if is_clip else "")
        scorer = ClipScorer(clip_folder(clip, "clip"), device=device) if clip else None
        return load_extractor(self.features, device, offline=self.spec.offline), scorer

    def system(self) -> Mapping[str, JSON]:
        """Without what the protocols say: which documents, how many samples of each, what precedes an image, the CLIP of the metrics."""
        measured = ("samples", "documents_per_topic", "context_images", "clip")
        return {"generation": {name: value for name, value in self.generation.items() if name not in measured}}

    # --- facts for scoring ----------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        from dreambench_tasks.interleaved.scoring import collect

        collect(run, samples, responses, self.extractor, self.clip, lambda: self.judges)

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        from dreambench_tasks.interleaved.scoring import score

        return score(run, samples, responses)
