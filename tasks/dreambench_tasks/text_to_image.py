"""What the image generation benchmarks share: settings, protocols, the choice among candidates, features, scores.

A benchmark adds its captions and their sampling. Every protocol of a run is computed from the same images, each decoded once.
"""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dreambench.documents import JSON, Image, digest, document_text
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import write_atomically
from dreambench.interfaces import Task, sample_choice
from dreambench.requests import Request, Response, Sample, sample_seed
from dreambench.scores import Protocol, TaskResult
from dreambench.spec import RunSpec
from dreambench.store import RunFolder
from dreambench_tasks.coco import COCO_FILE_NAME

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor

__all__ = ["EMBEDDED_FEATURES", "PROTOCOLS", "SAMPLER", "TextToImageTask", "clip_folder"]

PROTOCOLS = {
    "clean": "clean-fid's resize: bicubic, antialiased, unrounded (Parmar et al. 2022)",
    "pytorch": "pytorch-fid's resize: bilinear, half-pixel centres, not antialiased",
    "tf1": "torch-fidelity's resize: that of the TensorFlow 1 graph",
    "torchmetrics": "torchmetrics' resize: bilinear, antialiased",
    "dreamllm": "DreamLLM's script: short side to 256 and centre crop, then pytorch-fid",
}
DEFAULT: dict[str, JSON] = {
    "scheduler": "dpm-solver++",
    "num_inference_steps": 25,
    "guidance_scale": 2.0,
    "guidance_rescale": 0.0,
    "negative_prompt": "",
    "resolution": 0,
    "candidates": 1,
    "rerank": "",
    "keep_candidates": False,
}
SAMPLER = frozenset({"scheduler", "num_inference_steps", "guidance_scale", "guidance_rescale"})
CANDIDATE_SETTINGS = ("rerank", "keep_candidates")
EMBEDDED_FEATURES = "playground-clip"


class TextToImageTask(Task):
    """A benchmark of text-to-image: images for captions, compared with reference images by Fréchet distance and other measures."""

    protocol_names: ClassVar[Mapping[str, str]] = PROTOCOLS
    uses: ClassVar[frozenset[str]] = frozenset({"images", "real", "split", "features"})
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "default": DEFAULT,
        # The COCO script of the DreamLLM repository: best of 8 by CLIP ViT-L/14, to be given as rerank=clip:DIR.
        "dreamllm": {
            "scheduler": "ddpm",
            "num_inference_steps": 150,
            "guidance_scale": 2.0,
            "resolution": 512,
            "candidates": 8,
            "rerank": "clip",
        },
    }
    left_to_checkpoint: ClassVar[frozenset[str]] = SAMPLER

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.features = spec.features or ("inception" if spec.data else EMBEDDED_FEATURES)
        for name, least in {
            "num_inference_steps": 1,
            "resolution": 0,
            "guidance_scale": 0,
            "guidance_rescale": 0,
        }.items():
            if self.generation[name] < least:
                raise UsageError(f"--generation {name}={self.generation[name]}: at least {least}")
        candidates, rerank = self.generation["candidates"], self.generation["rerank"]
        if candidates < 1:
            raise UsageError(f"--generation candidates={candidates}: at least 1")
        if candidates > 1 and rerank in ("", "clip"):
            raise UsageError(
                "choosing among candidates needs a CLIP folder: --generation rerank=clip:DIR (the published script: ViT-L/14)"
            )

    @cached_property
    def data(self) -> Path:
        """``--data``, or the embedded playground."""
        if self.spec.data_path is not None:
            return self.spec.data_path
        from dreambench_tasks.playground import ensure_default

        return ensure_default()

    # --- what a benchmark adds ------------------------------------------------------------------------------------------

    @abstractmethod
    def reference_images(self) -> list[Path]:
        """The images of the reference set, in a fixed order; not called where ``--real`` is given."""

    @abstractmethod
    def sampling(self) -> Mapping[str, JSON]:
        """Protocol fields: split, annotation file's hash, how captions and their repetitions were chosen."""

    # --- requests -------------------------------------------------------------------------------------------------------

    def first(self, samples: Sequence[Sample], n: int) -> Sequence[Sample]:
        """N captions: each has an image of its own generated for it."""
        return samples[:n]

    def request(self, sample: Sample) -> Request:
        """The caption is the prompt, without a template, in every benchmark of this kind."""
        seed = sample_seed(self.spec.seed, sample.id)
        settings = {key: value for key, value in self.generation.items() if key not in ("preset", *CANDIDATE_SETTINGS)}
        return Request(sample.id, "generate_image", sample.prompt, settings, seed, sample.group)

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        from dreambench.metrics.compare import read_reference
        from dreambench.metrics.features import identity_of, metric_name
        from dreambench.metrics.resize import get_resizer

        extractor = self.extractor
        if len(samples) < 2:
            raise UsageError("one image has no spread, so no Fréchet distance: take two samples at least")
        shared = {
            "task": self.name,
            "metric": metric_name("frechet", extractor.name),
            "prompt": "the caption as it stands",
            **self.sampling(),
            "samples": sample_choice(samples),
            "pairs_sha256": digest([[sample.id, sample.targets["caption_id"]] for sample in samples]),
            "reference": self._reference_fields(),
            "quantisation": "PNG, 8 bits a channel, before any resize",
        }
        names = self.spec.protocol or (next(iter(PROTOCOLS)),)
        identities = {name: identity_of(extractor, get_resizer(name)) for name in names}
        if self._statistics_file is not None:
            for identity in identities.values():
                read_reference(self._statistics_file, extractor.dim, identity)
        return [Protocol(name, 1, {**shared, **identity}) for name, identity in identities.items()]

    def _reference_fields(self) -> JSON:
        from dreambench.files import sha256_file
        from dreambench.images import require_images
        from dreambench.metrics.features import fingerprint

        if (file := self._statistics_file) is not None:
            if not file.is_file():
                raise DataError(f"--real {file}: no such file; make it with `dreambench fid-stats DIR --out {file}`")
            return {"kind": "statistics file", "sha256": sha256_file(file)}
        images = self._reference_files
        if len(images) < 2:
            raise DataError(f"{images[0].parent}: one image has no spread; the reference needs two at least")
        require_images(images)
        return {"kind": "images of the split" if self.spec.real is None else "folder", **fingerprint(images)}

    @property
    def _statistics_file(self) -> Path | None:
        """``--real`` where it is a file of statistics."""
        real = self.spec.real
        return real if real is not None and real.suffix == ".npz" else None

    @cached_property
    def _reference_files(self) -> list[Path]:
        from dreambench.metrics.features import list_images

        return self.reference_images() if self.spec.real is None else list_images(self.spec.real)

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor, loaded on first use."""
        from dreambench.adapters.torch_tools import resolve_device
        from dreambench.metrics.features import load_extractor

        return load_extractor(self.features, resolve_device(self.spec.device), offline=self.spec.offline)

    # --- choosing among candidates ------------------------------------------------------------------------------------------

    def postprocess_batch(self, requests: Sequence[Request], responses: Sequence[Response]) -> Sequence[Response]:
        """Keep the candidate that CLIP finds closest to its own caption; the scores of all are logged."""
        wanted = self.generation["candidates"]
        return [self._choose(*pair, wanted) for pair in zip(requests, responses, strict=True)]

    def _choose(self, request: Request, response: Response, wanted: int) -> Response:
        if response.error is not None:
            return response
        images = [part for part in response.document if isinstance(part, Image)]
        if len(images) != wanted:
            message = f"the model returned {counted(len(images), 'image')} instead of {wanted}"
            return Response.failed(response.id, "no-image", message)
        if wanted == 1:
            return response
        scores, cut = self.scorer.score(images, document_text(request.document))
        chosen = max(range(wanted), key=lambda j: (scores[j], -j))
        order = [chosen, *(j for j in range(wanted) if j != chosen)] if self.generation["keep_candidates"] else [chosen]
        details = {**response.details, "clip_scores": scores, "chosen": chosen, "kept": order, "caption_cut": cut}
        return Response(
            response.id, tuple(images[j] for j in order), prompt_tokens=response.prompt_tokens, details=details
        )

    @cached_property
    def scorer(self) -> CandidateScorer:
        """The CLIP that chooses, loaded on first use."""
        return CandidateScorer(self.generation["rerank"], self.spec.device)

    def system(self) -> Mapping[str, JSON]:
        system: dict[str, JSON] = {"generation": dict(self.generation)}
        if self.generation["candidates"] > 1:
            system["reranker"] = self.scorer.identity
            # The path of the folder is not part of what is measured.
            system["generation"]["rerank"] = self.generation["rerank"].partition(":")[0]
        return system

    # --- what training data should not hold ---------------------------------------------------------------------------------

    def benchmark_images(self, sample: Sample) -> Iterable[Image]:
        """The image that the caption describes."""
        path = self._images_by_id.get(sample.targets["image_id"])
        return [] if path is None else [Image(path)]

    @cached_property
    def _images_by_id(self) -> dict[int, str]:
        found = ((COCO_FILE_NAME.fullmatch(path.name), str(path)) for path in self._reference_files)
        return {int(match[1]): path for match, path in found if match}

    # --- facts for scoring ----------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Features of both sides under each protocol, and the reference images for reports; what is there is not computed again."""
        from dreambench_tasks.text_to_image_features import collect_features, collect_reference_images

        generated = [sample for sample in samples if responses[sample.id].error is None]
        if len(generated) < 2:
            many = "only one image" if generated else "no image"
            raise DataError(
                f"{run.path}: {many} was generated, every other request ended in an error; see its responses/"
            )
        _write_pairs(run, samples)
        reference = self._statistics_file or (lambda: self._reference_files)
        collect_features(run, generated, responses, lambda: self.extractor, reference, self.spec.real)
        collect_reference_images(run, samples, responses, reference)

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        from dreambench_tasks.text_to_image_features import score_features

        return score_features(run, samples, responses)


def _write_pairs(run: RunFolder, samples: Sequence[Sample]) -> None:
    """captions.csv: which caption of which image was generated."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "image_id", "caption_id", "caption"])
    for sample in samples:
        caption = document_text(sample.prompt)
        writer.writerow([sample.id, sample.targets["image_id"], sample.targets["caption_id"], caption])
    write_atomically(run.path / "captions.csv", text.getvalue().encode())


class CandidateScorer:
    """CLIP as a judge of images against one caption: ``clip:DIR``, or the playground's own by its name."""

    def __init__(self, spec: str, device: str) -> None:
        from dreambench.adapters.torch_tools import resolve_device
        from dreambench.metrics.encoders import ClipScorer

        self._clip = ClipScorer(clip_folder(spec, "rerank"), device=resolve_device(device))
        self.identity: dict[str, Any] = self._clip.identity

    def score(self, images: Sequence[Image], caption: str) -> tuple[list[float], bool]:
        """CLIPScore, 2.5 · max(cos, 0), of each image with the caption, and whether that was too long for the CLIP and cut."""
        import torch
        from torchvision.transforms.functional import pil_to_tensor

        from dreambench.images import decode_rgb
        from dreambench.metrics.set_metrics import clip_scores

        pixels = torch.stack([pil_to_tensor(decode_rgb(image)) for image in images])
        features = self._clip.image_features(pixels).cpu().numpy()
        before = self._clip.truncated
        text = self._clip.text_features([caption]).cpu().numpy().repeat(len(images), axis=0)
        return [float(score) for score in clip_scores(features, text)], self._clip.truncated > before


def clip_folder(spec: str, setting: str) -> Path:
    """The folder of ``clip:DIR`` or of the playground's own CLIP, given as ``--generation SETTING=SPEC``."""
    name, _, location = spec.partition(":")
    if spec == EMBEDDED_FEATURES:
        from dreambench_tasks.playground import clip_directory

        return clip_directory()
    if name != "clip" or not location:
        raise UsageError(f"--generation {setting}={spec}: write {setting}=clip:DIR or {setting}={EMBEDDED_FEATURES}")
    return Path(location)
