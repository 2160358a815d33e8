"""MMBench: single-choice questions about images, each asked once per rotation of its options."""
