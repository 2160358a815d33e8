"""``python -m dreambench``."""

from dreambench.cli import main

main()
