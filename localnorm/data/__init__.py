"""Data sets: where they come from, how they arrive, and the prepared form that everything else reads."""

from localnorm.data.dataset import PARTS, Dataset, load
from localnorm.data.prepare import prepare

__all__ = ["PARTS", "Dataset", "load", "prepare"]
