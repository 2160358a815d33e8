"""A package, so that ``python -m tests.hostile`` is this folder's: torch-fidelity installs a package `tests` too."""
