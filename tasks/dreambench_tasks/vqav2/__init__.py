"""VQAv2: open questions about photographs, each with ten human answers."""
