"""dreambench: exact, resumable evaluation of models that read and paint."""
