"""Interleaved documents: the benchmark of DreamLLM's section 4.3, with automatic metrics, their trial, and judges."""
