"""Ablations: what the number of groups, the images a group and the fine-tuning after a conversion do to accuracy.

Each ablation varies one setting of an experiment's training and leaves the rest; every value is trained with the same seeds. All are
shorter and scored on less than the experiment's own networks, but for "groups at full length", which stands beside those.
Each trained variant's rows are kept beside the checkpoints until the whole table is written, so that an interrupted ablation
continues with the next one. What is kept bears in its name a digest of all that it follows from, so nothing else is ever taken.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from localnorm import paths
from localnorm.convert import convert_to_localnorm
from localnorm.data.dataset import Dataset
from localnorm.evaluate import ARMS, SweepConfig, sweep
from localnorm.params import check_keys, from_block
from localnorm.train import TrainConfig, TrainedRun, fit

__all__ = [
    "COLUMNS",
    "FINE_TUNING",
    "FIXED_BATCH",
    "FIXED_SIZE",
    "FULL_LENGTH",
    "NORM",
    "TRAINED_SIZES",
    "AblationConfig",
    "Variant",
    "run",
    "save_table",
    "variants",
]

FIXED_BATCH = "groups at fixed batch"
FULL_LENGTH = "groups at full length"
FIXED_SIZE = "groups at fixed group size"
TRAINED_SIZES = "images a group drawn in training"
FINE_TUNING = "fine-tuning epochs after conversion"
NORM = "norm"
# a column on how the row's network was trained -> what the training's record calls it
TRAINED = {"device": "device", "precision": "precision", "train_seconds": "seconds"}
COLUMNS = ["ablation", "value", "seed", "norm", "mode", "suite", "noise", "level", "images", "accuracy", *TRAINED]


@dataclass(frozen=True)
class AblationConfig:
    """The settings of an experiment's ablations: an `ablations` block of params.yaml, checked.

    Args:
        seeds: of the trainings; each variant is trained with each.
        noises: suite -> noises, as in the sweep block.
        max_levels: levels a noise, as in the sweep block.
        images: test images a condition.
        train: settings that differ from those of the train block, in every training but `groups_at_full_length`; fewer epochs, say.
            Those of fine-tuning are its own in epochs and learning rate.
        groups_at_fixed_batch: values of K; a group has B / K images, down to 1 at K = B.
        groups_at_full_length: values of K at the same batch, trained and scored as the experiment's own networks are (the epochs, noises,
            levels and images of its train and sweep blocks), to be set beside those of the same seeds.
        groups_at_fixed_group_size: values of K; the batch has K times the train block's images a group, and the learning rate is in
            proportion to the batch.
        group_sizes: lists of images a group to draw from in each training step.
        fine_tuning_epochs: after a trained BatchNorm network was converted; 0 is the converted network as it is.
        fine_tuning_rate: the peak of its learning rate, as a share of the train block's.
        norms: other norms in the same network.

    Raises:
        ValueError: an unknown or missing key, or a value that cannot work.
    """

    seeds: list[int]
    noises: dict[str, list[str]]
    max_levels: int
    images: int
    train: dict = field(default_factory=dict)
    groups_at_fixed_batch: list[int] = field(default_factory=list)
    groups_at_full_length: list[int] = field(default_factory=list)
    groups_at_fixed_group_size: list[int] = field(default_factory=list)
    group_sizes: list[list[int]] = field(default_factory=list)
    fine_tuning_epochs: list[int] = field(default_factory=list)
    fine_tuning_rate: float = 0.1
    norms: list[str] = field(default_factory=list)

    @classmethod
    def from_params(cls, block: dict) -> "AblationConfig":
        """The `ablations` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key.
        """
        return from_block(cls, "ablations", block)


@dataclass(frozen=True)
class Variant:
    """One network of an ablation: the value on its axis, and how it is trained."""

    ablation: str
    value: str
    norm: str
    train: TrainConfig
    fine_tuning: TrainConfig | None = None  # after a conversion to LocalNorm

    @property
    def modes(self) -> list[str]:
        if self.ablation == FULL_LENGTH:
            return ["batch", "single", "prior"]
        asked = {
            "batch": ["fixed", "batch"],
            "local": ["batch", "single"],
            "drawn": ["batch", "single"],
            "ghost": ["batch", "single"],
        }
        return asked.get(self.norm, ["batch"])


def variants(config: AblationConfig, train: TrainConfig) -> list[Variant]:
    """The networks that an experiment's ablations train for each seed.

    Raises:
        ValueError: a value that the train block cannot have, such as K above B, or at full length the K that it has; before any training.
    """
    if train.num_groups in config.groups_at_full_length:
        raise ValueError(
            f"groups_at_full_length: K = {train.num_groups} is the experiment's own num_groups, whose networks the stage train has; "
            "leave it out"
        )
    full, train = train, _shorter(config, train)
    size = train.batch_size // train.num_groups
    made = [Variant(FIXED_BATCH, str(k), "local", replace(train, num_groups=k)) for k in config.groups_at_fixed_batch]
    made += [Variant(FULL_LENGTH, str(k), "local", replace(full, num_groups=k)) for k in config.groups_at_full_length]
    for k in config.groups_at_fixed_group_size:
        rate = train.learning_rate * k * size / train.batch_size
        made.append(
            Variant(FIXED_SIZE, str(k), "local", replace(train, num_groups=k, batch_size=k * size, learning_rate=rate))
        )
    for sizes in config.group_sizes:
        name = " or ".join(map(str, sizes))
        made.append(Variant(TRAINED_SIZES, name, "local", replace(train, group_sizes=sizes)))
    for epochs in config.fine_tuning_epochs:
        tuning = replace(train, epochs=max(1, epochs), learning_rate=train.learning_rate * config.fine_tuning_rate)
        made.append(Variant(FINE_TUNING, str(epochs), "local", train, tuning))
    made += [Variant(NORM, norm, norm, train) for norm in config.norms]
    return made


def _shorter(config: AblationConfig, train: TrainConfig) -> TrainConfig:
    check_keys("ablations' train", asdict(train) | config.train, TrainConfig)
    return replace(train, **config.train)


def run(
    experiment: str, dataset: Dataset, train: TrainConfig, sweep_config: SweepConfig, config: AblationConfig
) -> pd.DataFrame:
    """Train and sweep every variant with every seed; those that an interrupted run of the same data, settings and code kept are read.

    Returns:
        A row a variant, seed, mode, noise and level: COLUMNS. `value` is text: K, epochs, a norm, or the sizes drawn from. `train_seconds`
        are of a network's own training, so that of a converted one the fine-tuning alone: the plain network is a variant itself.
    """
    planned, train = variants(config, train), _shorter(config, train)
    full = replace(sweep_config, batches=None, modes={v.norm: v.modes for v in planned if v.ablation == FULL_LENGTH})
    short = replace(
        sweep_config,
        noises=config.noises,
        max_levels=config.max_levels,
        images=config.images,
        prior_noises={},
        prior=0,
        batches=None,  # ablations have no study of test batches
        # those of single arms are the sweep's own: here all variants are asked on the same images
        mode_images={name: most for name, most in sweep_config.mode_images.items() if name not in ARMS.values()},
        modes={v.norm: v.modes for v in planned if v.ablation != FULL_LENGTH},
    )
    given = [
        _read(dataset.folder / "dataset.json"),
        _read(paths.project() / "data" / "sources" / "ablations.py"),
    ]
    tables = []
    with tqdm(
        total=len(planned) * len(config.seeds), desc=f"ablations {experiment}", unit="network", file=sys.stderr
    ) as bar:
        for seed in config.seeds:
            plain = _kept(experiment, *given, short, train, seed)
            batchnorm = cache(partial(_train_batchnorm, dataset, train, seed, plain))
            for variant in planned:
                swept = full if variant.ablation == FULL_LENGTH else replace(short, batch_size=variant.train.batch_size)
                checkpoint = _kept(experiment, *given, swept, variant, seed)
                file = checkpoint.with_suffix(".csv")
                if not file.is_file():
                    trained = _train(dataset, variant, seed, batchnorm, checkpoint)
                    described = f"sweep {variant.ablation} {variant.value} s{seed}"
                    table, _ = sweep(trained.model, dataset, swept, variant.norm, described)
                    rows = table.assign(
                        ablation=variant.ablation,
                        value=variant.value,
                        seed=seed,
                        norm=variant.norm,
                        **{column: trained.record[key] for column, key in TRAINED.items()},
                    )
                    paths.write(file, _csv(rows))
                    checkpoint.unlink(missing_ok=True)
                tables.append(pd.read_csv(file, dtype={"value": str}))
                bar.update()
            plain.unlink(missing_ok=True)
    return pd.concat(tables, ignore_index=True)


def save_table(experiment: str, table: pd.DataFrame) -> None:
    """Write the table of `run` to its place, then drop what was kept for an interruption."""
    paths.write(paths.ablations(experiment), _csv(table))
    shutil.rmtree(_kept(experiment).parent, ignore_errors=True)


def _csv(table: pd.DataFrame) -> str:
    return table[COLUMNS].to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _kept(experiment: str, *given) -> Path:
    """The checkpoint of what follows from `given`: the prepared data, the stage's code, its settings and a seed."""
    return paths.checkpoint(f"{experiment}-ablations/{hashlib.sha256(repr(given).encode()).hexdigest()[:16]}")


def _train_batchnorm(dataset: Dataset, train: TrainConfig, seed: int, checkpoint: Path) -> TrainedRun:
    """The plain network of a seed: a variant of its own, and what every length of fine-tuning starts from."""
    return fit(dataset, train, "batch", seed, checkpoint=checkpoint)


def _train(
    dataset: Dataset, variant: Variant, seed: int, batchnorm: Callable[[], TrainedRun], checkpoint: Path
) -> TrainedRun:
    if variant.norm == "batch":
        return batchnorm()
    if variant.fine_tuning is None:
        return fit(dataset, variant.train, variant.norm, seed, checkpoint=checkpoint)
    plain = batchnorm()
    network = convert_to_localnorm(plain.model, variant.train.num_groups, assignment="contiguous")
    if variant.value == "0":
        return TrainedRun(network, [], plain.record | {"seconds": 0.0})
    return fit(dataset, variant.fine_tuning, "local", seed, initial=network, checkpoint=checkpoint)
