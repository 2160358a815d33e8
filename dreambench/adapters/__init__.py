"""Models under test, each behind `dreambench.interfaces.Model`. A module imports its model's library, so it is imported on use."""
