"""Where images and dream queries stand in a token sequence.

A span is a start token followed by exactly `length` patch tokens. A start token with no patch token after it is an ordinary token (the
model may have said it); one with some but not all of its patches is an error, since an image is kept whole or dropped whole.

Shapes: B batch, T positions, n spans, L positions in a span.
"""

from __future__ import annotations

import torch

from dreamllm.errors import InputError


def find_spans(input_ids: torch.Tensor, start_id: int, patch_id: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) of the patch positions of all spans in reading order of the flattened batch, each (n, L)."""
    rows, starts = (input_ids == start_id).nonzero(as_tuple=True)
    columns = starts[:, None] + 1 + torch.arange(length, device=input_ids.device)
    inside = columns < input_ids.shape[1]
    patches = inside & (input_ids[rows[:, None], columns.clamp(max=input_ids.shape[1] - 1)] == patch_id)
    begun, whole = patches[:, 0], patches.all(dim=1)
    if (begun != whole).any():
        found = int(patches[begun & ~whole][0].sum())
        raise InputError(
            f"a span that begins with token {start_id} has {found} of its {length} patch tokens: keep it whole or drop it whole"
        )
    return rows[whole, None].expand(-1, length), columns[whole]


def count_spans(input_ids: torch.Tensor, start_id: int, patch_id: int, length: int) -> torch.Tensor:
    """How many spans each row of (B, T) ids holds: (B,)."""
    rows, _ = find_spans(input_ids, start_id, patch_id, length)
    return torch.bincount(rows[:, 0], minlength=input_ids.shape[0])


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) positions that count attended tokens only, so that padding on either side changes nothing."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
