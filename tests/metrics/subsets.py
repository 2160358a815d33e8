"""KID as torch-fidelity and clean-fid print it: our kernel distance, averaged over their random subsets."""

from __future__ import annotations

import numpy as np

from dreambench.metrics.set_metrics import kernel_distance


def subset_kernel_distance(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    subsets: int,
    size: int,
    convention: str = "torch-fidelity",
    seed: int | None = None,
) -> tuple[float, float]:
    """Mean and population standard deviation over `subsets`, drawn without replacement.

    "torch-fidelity": RandomState(2020), the generated set is drawn first. "clean-fid": RandomState(0) (it uses numpy's global
    generator), the reference is drawn first, `size` is at most the smaller set.
    """
    clean = convention == "clean-fid"
    if clean:
        size = min(len(generated), len(reference), size)
    random = np.random.RandomState((0 if clean else 2020) if seed is None else seed)
    values: list[float] = []
    for _ in range(subsets):
        sides = (reference, generated) if clean else (generated, reference)
        drawn = [side[random.choice(len(side), size, replace=False)] for side in sides]
        values.append(kernel_distance(*(drawn[::-1] if clean else drawn)).value)
    return float(np.mean(values)), float(np.std(values))
