"""Reads params.yaml: a block an experiment, in it a block a stage."""

import yaml

from localnorm import paths

__all__ = ["load_params"]

STAGES = ("prepare", "train", "sweep", "statistics")  # the blocks that an experiment has
OPTIONAL = ("ablations",)  # and may have


def load_params(experiment: str | None = None) -> dict:
    """params.yaml as a dictionary, or one experiment's block of it.

    Raises:
        ValueError: `experiment` has no block, or a block that is none of a stage's.
    """
    params = yaml.safe_load((paths.project() / "params.yaml").read_text(encoding="utf-8"))
    if experiment is None:
        return params
    known = [name for name in params["experiments"] if name in params]
    if experiment not in known:
        raise ValueError(
            f"unknown experiment {experiment!r}; params.yaml has {', '.join(known)}: "
            f"add the name to its list `experiments` and a block {experiment}:"
        )
    block = params[experiment]
    if not set(STAGES) <= set(block) <= set(STAGES + OPTIONAL):
        raise ValueError(
            f"params.yaml: the block {experiment} must have {', '.join(STAGES)} and may have {', '.join(OPTIONAL)}; "
            f"it has {', '.join(block)}"
        )
    return block
