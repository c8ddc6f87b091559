"""Data sets: where they come from, how they arrive, and the prepared form that everything else reads."""

from localnorm.data.prepare import PARTS, Dataset, load, prepare

__all__ = ["PARTS", "Dataset", "load", "prepare"]
