"""Measures that tasks share. Pure functions of arrays; nothing here knows a benchmark or a model."""
