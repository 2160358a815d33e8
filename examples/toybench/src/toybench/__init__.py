"""An example package: a task of 60 questions and prompts about colors, and a model that answers them."""

from toybench.model import Palette
from toybench.task import Toy

__all__ = ["Palette", "Toy"]
