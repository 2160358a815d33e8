"""Training: losses, recipes, the trainer, and how a model is put together before its first step."""
