"""Reads params.yaml: one block per experiment, in it one block per stage."""

from collections.abc import Callable, Container
from inspect import signature

import yaml

from localnorm import paths

__all__ = ["check_keys", "from_block", "grid", "load_params"]

STAGES = ("prepare", "train", "answers")  # the blocks that an experiment has
OPTIONAL = ("ablations", "study", "controls", "fine_tuning", "networks", "seeds")  # and may have


def load_params(experiment: str | None = None) -> dict:
    """params.yaml as a dictionary, or one experiment's block of it.

    Raises:
        ValueError: `experiment` has no block, or one with other parts than those of the stages.
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


def grid(experiment: str) -> tuple[list[str], list[int]]:
    """The networks and seeds of an experiment: its block's own, and where it names none those of the whole file.

    Raises:
        ValueError: the block names a network or a seed that the lists of the whole file lack, which DVC then has no stage for.
    """
    params, block, chosen = load_params(), load_params(experiment), []
    for key in ("networks", "seeds"):
        own = block.get(key, params[key])
        if not isinstance(own, list) or not own or [each for each in own if each not in params[key]]:
            raise ValueError(
                f"params.yaml, {experiment}: {key} must be some of {params[key]}, the list at the top of the file; got {own}. Add what is "
                "missing there"
            )
        chosen.append(own)
    return chosen[0], chosen[1]


def check_keys(stage: str, block: dict, target: Callable, given: Container[str] = ()) -> None:
    """Whether the keys of a block are arguments of `target`, a function or dataclass, and none that it needs is missing.

    Args:
        given: arguments that do not come from the block.

    Raises:
        ValueError: an unknown or a missing key.
    """
    arguments = {name: one for name, one in signature(target).parameters.items() if name not in given}
    if unknown := [str(key) for key in block if key not in arguments]:
        raise ValueError(f"unknown key {', '.join(unknown)} in the {stage} block; it knows {', '.join(arguments)}")
    if missing := [name for name, one in arguments.items() if one.default is one.empty and name not in block]:
        raise ValueError(f"the {stage} block needs {', '.join(missing)}; it has {', '.join(block)}")


def from_block(settings: type, stage: str, block: dict):
    """A block of params.yaml as the dataclass `settings`.

    Raises:
        ValueError: an unknown or a missing key, or what `settings` itself refuses.
    """
    check_keys(stage, block, settings)
    return settings(**block)
