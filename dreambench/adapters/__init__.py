"""Models under test, each behind the interface of `dreambench.interfaces.Model`. Importing one loads what it needs, and no earlier."""
