"""What has to hold before a stage starts: params.yaml as the stages will read it.

A mistake in params.yaml costs a second here, and hours where the stage that stumbles over it is the last one.
"""

import re
import sys
from collections.abc import Callable
from types import UnionType
from typing import get_args, get_origin, get_type_hints, is_typeddict

import yaml

from localnorm.arms import ARMS, NETWORKS, arm_of, find
from localnorm.data import prepare
from localnorm.noise import catalogue
from localnorm.params import check_keys, grid, load_params
from localnorm.settings import AblationConfig, AnswersConfig, ControlsConfig, FineTuningConfig, StudyConfig, TrainConfig
from localnorm.settings.ablations import variants

__all__ = ["check_params"]

# a folder's name, a word of the commands in dvc.yaml, and a key for DVC, to which a dot is a step into a block
NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)

LARGEST = 2**63  # whole numbers below fit what they are handed to

STAGES = {
    "train": TrainConfig,
    "answers": AnswersConfig,
    "ablations": AblationConfig,
    "study": StudyConfig,
    "controls": ControlsConfig,
    "fine_tuning": FineTuningConfig,
}

GIVEN = ("output",)  # arguments of `prepare` that are no settings


def check_params() -> None:
    """Check all of params.yaml.

    Raises:
        ValueError: the file is not YAML, an experiment has no block, a key is unknown or missing, or a value has the wrong type or
            cannot work. The message names the experiment and the key.
    """
    try:
        params = load_params()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"params.yaml is not YAML: {error}") from None
    if not isinstance(params, dict):
        raise ValueError(f"params.yaml must map names to values, it is {type(params).__name__}")
    _check_lists(params)
    for experiment in params["experiments"]:
        block, (networks, _) = load_params(experiment), grid(experiment)  # whose errors name the experiment themselves
        try:
            _check_types("prepare", block["prepare"], prepare)
            check_keys("prepare", block["prepare"], prepare, GIVEN)
            settings = {}
            for stage, target in STAGES.items():
                if stage in block:
                    _check_types(stage, block[stage], target)
                    _check_names(block[stage])
                    settings[stage] = target.from_params(block[stage])
            _check_networks(networks, settings["train"], settings["answers"])
            if "ablations" in settings:
                _check_types("ablations' train", settings["ablations"].train, TrainConfig)
                variants(settings["ablations"], settings["train"])
            if "study" in settings:
                for name in settings["study"].variants:
                    settings["study"].train_of(name, settings["train"])
                    settings["study"].asked(name, settings["answers"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"params.yaml, {experiment}: {error}") from None


def _check_networks(networks: list[str], train: TrainConfig, answers: AnswersConfig) -> None:
    """Whether each network is asked something, and no two are the same."""
    if lacking := [network for network in networks if not answers.statistics.get(network)]:
        known = [arm.statistics for arm in ARMS.values() if arm.network == lacking[0]]
        raise ValueError(
            f"answers: networks lists {lacking[0]}, and statistics has none for it; add e.g. `{lacking[0]}: [{known[0]}]` to statistics"
        )
    if train.group_sizes and {"ln", "ln_drawn"} <= set(networks):
        raise ValueError(
            f"train: with group_sizes={train.group_sizes} the networks ln and ln_drawn are the same; "
            "leave one of them out of networks, or group_sizes away (ln_drawn then takes the divisors of batch_size)"
        )


def _check_lists(params: dict) -> None:
    """The three lists at the top, and that each experiment's block is one."""
    for key, kind in (("experiments", str), ("networks", str), ("seeds", int)):
        values = params.get(key)
        if not values or not _fits(values, list[kind]) or len(set(values)) < len(values):
            raise ValueError(f"params.yaml: {key} must be {_words(list[kind])}, none of them twice, got {values!r}")
    for network in params["networks"]:
        try:
            find("network", network, NETWORKS)
        except ValueError as error:
            raise ValueError(f"params.yaml, networks: {error}") from None
    if min(params["seeds"]) < 0:
        raise ValueError(f"params.yaml: seeds must be at least 0, got {params['seeds']}")
    for name in params["experiments"]:
        if not NAME.fullmatch(name):
            raise ValueError(f"params.yaml: an experiment's name is letters, digits, '-' and '_', got {name!r}")
        lists = ("networks", "seeds")  # an experiment may name its own
        blocks = (
            {key: one for key, one in params[name].items() if key not in lists}
            if isinstance(params.get(name), dict)
            else params.get(name)
        )
        if name in params and not _fits(blocks, dict[str, dict]):
            raise ValueError(f"params.yaml, {name}: must map each of its stages to a block of settings")
    for key in ("ablated", "studied", "controlled", "published", "paired", "lengths", "tuned"):
        named = params.get(key, [])
        if not _fits(named, list[str]) or not set(named) <= set(params["experiments"]):
            raise ValueError(f"params.yaml: {key} must be a list of experiments, empty for none, got {named!r}")
    for key, stage in (
        ("ablated", "ablations"),
        ("studied", "study"),
        ("controlled", "controls"),
        ("controlled", "fine_tuning"),
    ):
        if lacking := [name for name in params.get(key, []) if stage not in params.get(name, {})]:
            raise ValueError(f"params.yaml: {lacking[0]} is in the list {key} and has no block {stage}; add one")


def _check_types(stage: str, block: dict, target: Callable) -> None:
    types = get_type_hints(target)
    for key in types:
        if key in block and not _fits(block[key], types[key]):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(block[key], str) else ""
            raise ValueError(f"{key} must be {_words(types[key])}, got {block[key]!r}{hint}, in the {stage} block")


def _check_names(block: dict) -> None:
    """The noises and arms of a block, so that a refusal names the key that they stand under."""
    checks = (
        ("noises", lambda suite, name: catalogue.levels(name, suite)),
        ("statistics", arm_of),
        ("prior_noises", lambda suite, name: catalogue.check(name, block["prior_noises"][suite][name], suite)),
    )
    for key, check in checks:
        for group, names in block.get(key, {}).items():
            for name in names:
                try:
                    check(group, name)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None


def _fits(value, kind) -> bool:
    """Whether a value that YAML gave is of an annotated type; a whole number is a number too, true and false are none."""
    inner = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in inner)
    if get_origin(kind) in (list, tuple):  # YAML has lists alone
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if is_typeddict(kind):
        types = get_type_hints(kind)
        return (
            isinstance(value, dict) and set(value) == set(types) and all(_fits(value[key], types[key]) for key in types)
        )
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is int:
        return type(value) is int and abs(value) < LARGEST
    return type(value) is kind


def _words(kind) -> str:
    inner = get_args(kind)
    if isinstance(kind, UnionType):
        return " or ".join(_words(each) for each in inner)
    if get_origin(kind) in (list, tuple):
        return f"a list, each {_words(inner[0])}"
    if get_origin(kind) is dict:
        return f"a mapping of {_words(inner[0])} to {_words(inner[1])}"
    if is_typeddict(kind):
        return "a mapping with " + ", ".join(f"{key}: {_words(each)}" for key, each in get_type_hints(kind).items())
    words = {
        dict: "a mapping",
        str: "text",
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        type(None): "null",
    }
    return words[kind]
