"""VQAv2: open questions about images, each with ten human answers."""
