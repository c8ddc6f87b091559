"""What has to hold before a stage starts: params.yaml as the stages will read it, and files that DVC can read.

A mistake in params.yaml costs a second here, and hours where the stage that stumbles over it is the last one.
"""

import json
import re
import sys
from collections.abc import Callable, Container
from contextlib import ExitStack
from types import UnionType
from typing import get_args, get_origin, get_type_hints, is_typeddict

import yaml

from localnorm import noise, paths
from localnorm.ablations import AblationConfig, variants
from localnorm.data import prepare
from localnorm.evaluate import SweepConfig, arm_label
from localnorm.models import NORMS
from localnorm.params import check_keys, load_params
from localnorm.stats import claims
from localnorm.train import TrainConfig

__all__ = ["check_params", "repair_dvc"]

NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # a folder's name, and a word of the commands in dvc.yaml

LARGEST = 2**63  # whole numbers below fit what they are handed to

GIVEN = ("output", "table", "num_classes", "runs")  # arguments of a stage's function that are no settings


def check_params() -> None:
    """Check all of params.yaml.

    Raises:
        ValueError: it is no YAML, an experiment has no block, a key is unknown or missing, a value has the wrong type or cannot
            work; names the experiment and the key.
    """
    try:
        params = load_params()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"params.yaml is not YAML: {error}") from None
    if not isinstance(params, dict):
        raise ValueError(f"params.yaml must map names to values, it is {type(params).__name__}")
    _check_lists(params, NORMS)
    for experiment in params["experiments"]:
        block = load_params(experiment)
        try:
            for stage, target in (("prepare", prepare), ("statistics", claims)):
                _check_types(stage, block[stage], target)
                check_keys(stage, block[stage], target, GIVEN)
            settings = {}
            for stage, target in (("train", TrainConfig), ("sweep", SweepConfig), ("ablations", AblationConfig)):
                if stage in block:
                    _check_types(stage, block[stage], target)
                    _check_names(block[stage])
                    settings[stage] = target.from_params(block[stage])
            if lacking := [norm for norm in params["norms"] if norm not in settings["sweep"].modes]:
                raise ValueError(
                    f"sweep: norms lists {lacking[0]}, and modes has none for it; add e.g. `{lacking[0]}: [batch]` to modes"
                )
            if settings["train"].group_sizes and {"local", "drawn"} <= set(params["norms"]):
                raise ValueError(
                    f"train: with group_sizes={settings['train'].group_sizes} the norms local and drawn are the same network; "
                    "leave one of them out of norms, or group_sizes away (drawn then takes the divisors of batch_size)"
                )
            if "ablations" in settings:
                _check_types("ablations' train", settings["ablations"].train, TrainConfig)
                variants(settings["ablations"], settings["train"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"params.yaml, {experiment}: {error}") from None


def _check_lists(params: dict, norms: Container[str]) -> None:
    """The three lists at the top, and that each experiment's block is one."""
    for key, kind in (("experiments", str), ("norms", str), ("seeds", int)):
        values = params.get(key)
        if not values or not _fits(values, list[kind]) or len(set(values)) < len(values):
            raise ValueError(f"params.yaml: {key} must be {_words(list[kind])}, none of them twice, got {values!r}")
    if unknown := [norm for norm in params["norms"] if norm not in norms]:
        raise ValueError(f"params.yaml: unknown norm {unknown[0]!r}; choose of {', '.join(norms)}")
    if min(params["seeds"]) < 0:
        raise ValueError(f"params.yaml: seeds must be at least 0, got {params['seeds']}")
    for name in params["experiments"]:
        if not NAME.fullmatch(name):
            raise ValueError(f"params.yaml: an experiment's name is letters, digits, '-', '_' and '.', got {name!r}")
        if name in params and not _fits(params[name], dict[str, dict]):
            raise ValueError(f"params.yaml, {name}: must map each of its stages to a block of settings")
    ablated = params.get("ablated", [])
    if not _fits(ablated, list[str]) or not set(ablated) <= set(params["experiments"]):
        raise ValueError(f"params.yaml: ablated must be a list of experiments, empty for none, got {ablated!r}")
    if lacking := [name for name in ablated if "ablations" not in params.get(name, {})]:
        raise ValueError(f"params.yaml: {lacking[0]} is in the list ablated and has no block ablations; add one")


def _check_types(stage: str, block: dict, target: Callable) -> None:
    types = get_type_hints(target)
    for key in types:
        if key in block and not _fits(block[key], types[key]):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(block[key], str) else ""
            raise ValueError(f"{key} must be {_words(types[key])}, got {block[key]!r}{hint}, in the {stage} block")


def _check_names(block: dict) -> None:
    """The noises and modes of a block, so that a refusal names the key that they stand under."""
    checks = (
        ("noises", lambda suite, name: noise.levels(name, suite)),
        ("modes", arm_label),
        ("prior_noises", lambda suite, name: noise.check(name, block["prior_noises"][suite][name], suite)),
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


def repair_dvc() -> list[str]:
    """Remove the files that a DVC killed in the middle of writing left unreadable, and return their names.

    DVC rewrites dvc.lock and its table of locks in place and does not start on half of one. Nothing is lost with them: what
    finished stages made comes back from DVC's cache without running again. Where another DVC is writing now, its files are left.
    """
    from dvc.lock import LockError, make_lock  # slow to import
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    project = paths.project()
    internal = project / ".dvc" / "tmp"
    if not internal.is_dir():  # DVC has not run here yet
        return []
    readers = {
        project / "dvc.lock": lambda text: COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text)),
        internal / "rwlock": json.loads,
    }
    removed = []
    with ExitStack() as locks:
        try:
            for name in ("lock", "rwlock.lock"):
                locks.enter_context(make_lock(str(internal / name)))
        except LockError:
            return []
        for file, read in readers.items():
            try:
                read(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (Invalid, ValueError, yaml.YAMLError):
                file.unlink()
                removed.append(file.relative_to(project).as_posix())
    return removed
