"""Training data: samples of text and images, where they come from, how sources are mixed, and batches of them."""

from __future__ import annotations

from dreamllm.data.collator import Collator
from dreamllm.data.mixing import BrokenRecords, TrainingData, training_dataset
from dreamllm.data.samples import IGNORED, Sample

__all__ = ["IGNORED", "BrokenRecords", "Collator", "Sample", "TrainingData", "training_dataset"]
