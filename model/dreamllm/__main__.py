"""`python -m dreamllm`."""

from dreamllm.cli import main

main()
