"""The benchmarks, one module or small package each, found through the entry-point group ``dreambench.tasks``."""
