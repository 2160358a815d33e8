"""Training data: sources on disk, the samples made of their records, mixtures of sources, and batches."""

from __future__ import annotations

from dreamllm.data.mixing import BrokenRecords, TrainingData, training_dataset
from dreamllm.data.samples import IGNORED, Collator, Sample

__all__ = ["IGNORED", "BrokenRecords", "Collator", "Sample", "TrainingData", "training_dataset"]
