"""What a little more training makes of a trained BatchNorm network, for one image at a time.

The network is converted and trained on as LocalNorm, or with shrunken statistics, and asked in every way of `localnorm.controls`. So that
the extra training is not taken for the change, the plain BatchNorm network has it too.
"""

import copy
import hashlib
from dataclasses import replace

import pandas as pd
from torch import nn

from localnorm import controls, paths
from localnorm.convert import convert_to_localnorm
from localnorm.data.dataset import Dataset
from localnorm.networks import NETWORKS
from localnorm.settings import AnswersConfig, ControlsConfig, FineTuningConfig, TrainConfig
from localnorm.train import fit

__all__ = ["COLUMNS", "convert", "run", "save_table"]

COLUMNS = ["epochs", *controls.COLUMNS, "seconds", "device"]


def run(
    experiment: str,
    batchnorm: nn.Module,
    dataset: Dataset,
    train: TrainConfig,
    answers: AnswersConfig,
    ways: ControlsConfig,
    config: FineTuningConfig,
) -> pd.DataFrame:
    """Train a BatchNorm network on in each way, and ask each result about one image at a time.

    Args:
        experiment: its name, under which checkpoints of an interrupted run are kept.
        batchnorm: a trained network with BatchNorm layers; it stays as it is.
        dataset: see `localnorm.data.load`.
        train, answers, ways, config: the experiment's blocks train, answers, controls and fine_tuning.

    Returns:
        One row per network and row of `localnorm.controls.measure`, with COLUMNS: epochs and seconds are the fine-tuning's.
    """
    tuning = replace(train, epochs=config.epochs, learning_rate=config.rate * train.learning_rate, pretrained=False)
    start = _digest(batchnorm)  # a checkpoint of another network's fine-tuning is not continued
    tables = []
    for key in config.networks:
        checkpoint = paths.checkpoint(f"{experiment}-fine-tuning-{key}-{start}")
        tuned = fit(
            dataset, tuning, key, config.seed, initial=convert(batchnorm, key, train.num_groups), checkpoint=checkpoint
        )
        table = controls.measure({key: tuned.model.eval()}, dataset, answers, ways)
        about = {name: tuned.record[name] for name in ("seconds", "device")}
        tables.append(table.assign(epochs=config.epochs, **about))
    for key in config.networks:
        paths.checkpoint(f"{experiment}-fine-tuning-{key}-{start}").unlink(missing_ok=True)
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def convert(batchnorm: nn.Module, network: str, num_groups: int) -> nn.Module:
    """A copy of a BatchNorm network whose layers are those of a network: a key of NETWORKS of layer BN or LN.

    Raises:
        ValueError: a network of another layer.
    """
    about = NETWORKS[network]
    if about.layer not in ("BN", "LN"):
        raise ValueError(f"a BatchNorm network becomes one of layer BN or LN, not {network!r}")
    if network == "bn":
        return copy.deepcopy(batchnorm)
    groups, track = (1, True) if about.layer == "BN" else (num_groups, False)
    return convert_to_localnorm(batchnorm, groups, assignment="contiguous", track_running_stats=track)


def save_table(experiment: str, table: pd.DataFrame) -> None:
    """Write data/results/<experiment>/fine_tuning.csv."""
    paths.write_table(paths.results(experiment) / "fine_tuning.csv", table)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
