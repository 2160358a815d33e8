"""DreamLLM (arXiv 2309.11499): one causal decoder that reads and paints."""
