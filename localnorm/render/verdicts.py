"""The verdict of a comparison in words and as a mark."""

from localnorm.comparisons import FAILS, HOLDS, UNDECIDED, lacks_training, verdict
from localnorm.words import percent, seed_count

__all__ = ["MARKS", "NONE", "UNTESTED", "verdict_words"]

UNTESTED = "not tested here"
NONE = "no verdict"
MARKS = {HOLDS: "✓", FAILS: "✗", UNDECIDED: "?"}


def verdict_words(row) -> str:
    """The verdict of a primary comparison in words. If it is undecided, they say which differences the interval allows.

    Args:
        row: a row of `localnorm.comparisons.evaluate`.
    """
    if not row.seeds:
        return UNTESTED
    word = verdict(row) or f"{NONE}: {seed_count(row.seeds)}"
    if word != UNDECIDED:
        return word
    if row.estimate <= row.threshold and lacks_training(row):
        return f"{word}: not trained to the end, {percent(-row.train_gap)} points behind on its training images"
    margin = f", and {100 * row.threshold:+.1f} is the threshold" if row.threshold else ""
    return f"{word}: {100 * row.low:+.1f} to {100 * row.high:+.1f} points remain possible{margin}"
