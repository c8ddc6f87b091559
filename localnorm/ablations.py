"""Ablations: which part of LocalNorm does what. One setting of the training is varied at a time.

Ablations may train for fewer epochs than the experiment's own networks, and use fewer noises and images. Only "groups at full length" is
trained and asked like those, and can be compared with them. The answers of each trained variant are kept beside the checkpoints until the
whole table is written, so that an interrupted ablation continues with the next variant. The file name holds a digest of everything that
the answers depend on.
"""

import hashlib
import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from localnorm import paths
from localnorm.answers import Answers, answer, test_images
from localnorm.arms import ARMS
from localnorm.convert import convert_to_localnorm
from localnorm.data.dataset import Dataset
from localnorm.settings import AblationConfig, AnswersConfig, TrainConfig
from localnorm.settings.ablations import FULL_LENGTH, Variant, variants
from localnorm.strengths import choose_strengths, measure_strengths
from localnorm.train import TrainedRun, fit

__all__ = ["COLUMNS", "run", "save_table"]

CONDITION = ["suite", "noise", "level"]
# a column on how the row's network was trained -> what the training's record calls it
TRAINED = {"device": "device", "precision": "precision", "train_seconds": "seconds"}
COLUMNS = ["ablation", "value", "seed", "network", "statistics", *CONDITION, "images", "right", *TRAINED]


def run(experiment: str, dataset: Dataset, train: TrainConfig, asked: AnswersConfig, config: AblationConfig) -> Answers:
    """Train every variant with every seed, and collect its answers to the test images.

    Variants that an interrupted run finished with the same data, settings and code are read instead.

    Args:
        experiment: its name, under which an interrupted run is kept.
        dataset: see `localnorm.data.load`.
        train, asked: the experiment's train and answers blocks.
        config: its ablations block.

    Returns:
        A table of one row per (variant, seed, statistics, condition) with COLUMNS, the class of each image row by row, and the labels.
        `value` is text: K, epochs, a network, or the sizes drawn from. `train_seconds` are of a network's own training; those of a
        converted one are of its fine-tuning alone, since the plain network is a variant itself.
    """
    planned, train = variants(config, train), config.shorten(train)
    full, short = _asked(asked, config, planned)
    given = [
        _read(dataset.folder / "dataset.json"),
        _read(paths.project() / "data" / "sources" / "ablations.py"),
    ]
    parts = []
    with tqdm(
        total=len(planned) * len(config.seeds), desc=f"ablations {experiment}", unit="network", file=sys.stderr
    ) as bar:
        for seed in config.seeds:
            plain = _kept(experiment, *given, short, train, seed)
            batchnorm = cache(partial(_train_batchnorm, dataset, train, seed, plain))
            for variant in planned:
                ask = full if variant.ablation == FULL_LENGTH else replace(short, batch_size=variant.train.batch_size)
                checkpoint = _kept(experiment, *given, ask, variant, seed)
                if not checkpoint.with_suffix(".csv").is_file():
                    trained = _train(dataset, variant, seed, batchnorm, checkpoint)
                    _keep(checkpoint, *_ask(trained, dataset, ask, variant, seed))
                    checkpoint.unlink(missing_ok=True)
                with np.load(checkpoint.with_suffix(".npz"), allow_pickle=False) as file:
                    parts.append((_read_table(checkpoint.with_suffix(".csv")), file["classes"]))
                bar.update()
            plain.unlink(missing_ok=True)
    tables, classes = zip(*parts, strict=True)
    most = max(each.shape[1] for each in classes)
    labels = max((test_images(dataset, each)[1] for each in (full, short)), key=len)[:most]  # in one order
    stacked = np.concatenate([_widen(each, most) for each in classes])
    return Answers(pd.concat(tables, ignore_index=True), stacked, labels.numpy().astype(np.int16))


def save_table(experiment: str, answers: Answers) -> None:
    """Write what `run` returned, then remove what was kept for an interruption.

    The table goes to data/results/<experiment>/ablations.csv. Like that of a single run, data/runs/<experiment>-ablations/answers.npz
    holds the predicted classes (rows, N) in the order of the table, -1 where an image was not asked about, and the labels (N,).
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, classes=answers.classes, labels=answers.labels)
    paths.write(_answers_file(experiment), buffer.getvalue())
    paths.write_table(paths.results(experiment) / "ablations.csv", answers.table[COLUMNS])
    shutil.rmtree(_kept(experiment).parent, ignore_errors=True)


def _answers_file(experiment: str) -> Path:
    """Beside the runs' folders and not within the experiment's own: what reads its runs does not wait for the ablations."""
    return paths.project() / "data" / "runs" / f"{experiment}-ablations" / "answers.npz"


def _asked(asked: AnswersConfig, config: AblationConfig, planned: list[Variant]) -> tuple[AnswersConfig, AnswersConfig]:
    """What the variants at full length are asked, and what all others are: both without streams, which ablations do not study."""
    full = replace(
        asked, streams=None, statistics={v.network: v.statistics for v in planned if v.ablation == FULL_LENGTH}
    )
    short = replace(
        asked,
        noises=config.noises,
        max_levels=config.max_levels,
        images=config.images,
        prior_noises={},
        prior=0,
        gated=1,
        streams=None,
        # the numbers of single arms belong to the experiment's own networks: here all variants are asked about the same images
        most_images={name: most for name, most in asked.most_images.items() if name not in ARMS},
        statistics={v.network: v.statistics for v in planned if v.ablation != FULL_LENGTH},
    )
    return full, short


def _ask(
    trained: TrainedRun, dataset: Dataset, asked: AnswersConfig, variant: Variant, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    described = f"answers {variant.ablation} {variant.value} s{seed}"
    strengths = choose_strengths(measure_strengths(trained.model, dataset, asked, variant.network))
    answers = answer(trained.model, dataset, asked, variant.network, strengths, described)
    table = answers.table.assign(
        ablation=variant.ablation,
        value=variant.value,
        seed=seed,
        network=variant.network,
        **{column: trained.record[key] for column, key in TRAINED.items()},
    )
    return table[COLUMNS], answers.classes


def _keep(checkpoint: Path, table: pd.DataFrame, classes: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, classes=classes)
    paths.write(checkpoint.with_suffix(".npz"), buffer.getvalue())
    paths.write_table(checkpoint.with_suffix(".csv"), table)  # last: it says that both are there


def _read_table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"value": str})


def _widen(classes: np.ndarray, images: int) -> np.ndarray:
    """(rows, n) classes of the first n images -> (rows, images), -1 for those that were not asked about."""
    return np.pad(classes, ((0, 0), (0, images - classes.shape[1])), constant_values=-1)


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _kept(experiment: str, *given) -> Path:
    """The checkpoint of what depends on `given` alone: the prepared data, the stage's code, its settings and a seed."""
    return paths.checkpoint(f"{experiment}-ablations/{hashlib.sha256(repr(given).encode()).hexdigest()[:16]}")


def _train_batchnorm(dataset: Dataset, train: TrainConfig, seed: int, checkpoint: Path) -> TrainedRun:
    """The plain network of a seed: a variant of its own, and what every length of fine-tuning starts from."""
    return fit(dataset, train, "bn", seed, checkpoint=checkpoint)


def _train(
    dataset: Dataset, variant: Variant, seed: int, batchnorm: Callable[[], TrainedRun], checkpoint: Path
) -> TrainedRun:
    if variant.network == "bn":
        return batchnorm()
    if variant.fine_tuning is None:
        return fit(dataset, variant.train, variant.network, seed, checkpoint=checkpoint)
    plain = batchnorm()
    network = convert_to_localnorm(plain.model, variant.train.num_groups, assignment="contiguous")
    if variant.value == "0":
        return TrainedRun(network, [], plain.record | {"seconds": 0.0})
    return fit(dataset, variant.fine_tuning, "ln", seed, initial=network, checkpoint=checkpoint)
