"""Training: the losses, the trainer, runs that survive a kill, and models assembled before their first step."""
