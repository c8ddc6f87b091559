"""Trained networks and images to show them: what the notebooks `explore` and `figure-poor-light` begin with.

The networks are a pair that comes with the repository, or those that the pipeline trained on this machine. The images are test images
of the networks' own data set, or photographs whose class nobody knows.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from torch import Tensor, nn

from localnorm import arms, paths
from localnorm.answers import predict_arguments, test_images, training_batches
from localnorm.data.dataset import Dataset, load
from localnorm.data.photographs import photographs
from localnorm.layers import LocalNorm
from localnorm.models import load_model
from localnorm.params import load_params
from localnorm.published_networks import load_published, published
from localnorm.settings import AnswersConfig
from localnorm.training_statistics import estimate_statistics
from localnorm.words import enumerate_words

__all__ = [
    "PAIR",
    "Shown",
    "Trained",
    "are_published",
    "class_title",
    "load_published_networks",
    "load_trained",
    "published_pairs",
    "show",
    "with_statistics",
]

PAIR = ("bn", "ln")
PRIOR = "prior"  # the statistics of a published pair: its files hold stored statistics too, so every mode can be asked of them
STATISTICS_IMAGES = (
    1024  # of the training set, for the stored statistics of LocalNorm: exact to a few percent, and seconds on a CPU
)
PHOTOGRAPHS = 32  # of a folder, at most: each is asked about at every level of a noise


@dataclass(frozen=True)
class Trained:
    """Networks that were trained alike on one data set, with all that one has to know to ask them.

    Attributes:
        experiment: its name in params.yaml.
        models: network -> in evaluation mode, with stored statistics.
        title, classes, shape, mean, std: of the data set.
        origin: where the networks come from, for a caption.
        strengths: label of an arm -> its prior (n0) and fixed_last, for the arms that have them.
        seed: of the training; None for published networks.
        fit: how an oblong image became a square for them.
        dataset: its prepared images, where they are on this machine.
    """

    experiment: str
    models: dict[str, nn.Module]
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str
    strengths: dict[str, dict] = field(default_factory=dict)
    seed: int | None = None
    fit: str = "squash"
    dataset: Dataset | None = None

    def can(self, arm: str) -> bool:
        """Whether an arm is a network of these under statistics that it can be asked under."""
        known = arms.ARMS[arm]
        return known.network in self.models and (not arms.STATISTICS[known.statistics].chosen or arm in self.strengths)

    def arguments(self, arm: str) -> dict:
        """What `localnorm.predict` is called with for an arm."""
        return predict_arguments(arms.ARMS[arm].statistics, **self.strengths.get(arm, {}))


def class_title(name: str) -> str:
    """A class's name without the number that some data sets begin it with: "018 Audi 100 Wagon" -> "Audi 100 Wagon"."""
    return re.sub(r"^\d+ (?=\D)", "", name)


def published_pairs() -> list[str]:
    """The experiments of which a BatchNorm and a LocalNorm network come with the repository; their files end in -bn-prior and -ln-prior."""
    of_bn = [name.removesuffix(f"-bn-{PRIOR}") for name in published() if name.endswith(f"-bn-{PRIOR}")]
    return [experiment for experiment in of_bn if are_published(experiment, PAIR)]


def are_published(experiment: str, networks: Iterable[str]) -> bool:
    """Whether these networks of an experiment come with the repository, all of them."""
    return {f"{experiment}-{network}-{PRIOR}" for network in networks} <= {*published()}


def load_published_networks(experiment: str, networks: Iterable[str] = PAIR) -> Trained:
    """Load networks that come with the repository; neither a training nor images are needed.

    Args:
        experiment: a name in params.yaml, of which `are_published` finds the networks.
        networks: keys of `localnorm.arms.NETWORKS`.

    Raises:
        ValueError: there is no such network; names those that there are.
    """
    loaded = {network: load_published(f"{experiment}-{network}-{PRIOR}") for network in networks}
    *_, one = loaded.values()  # all learned from the same data by the same settings
    data, training = one.about["data"], one.about["training"]
    names = enumerate_words([each.name for each in loaded.values()])
    return Trained(
        experiment=experiment,
        models={network: each.model for network, each in loaded.items()},
        title=one.data,
        classes=one.classes,
        shape=one.shape,
        mean=one.mean,
        std=one.std,
        origin=f"the published networks {names} ({one.about['network']['name']}, {training['epochs']} epochs, "
        f"batches of {training['batch_size']} in {training['num_groups']} groups, seed {training['seed']}; {one.data}, "
        f"{data['counts']['train']:,} training images of {one.shape[2]} x {one.shape[1]} pixels)",
        strengths={each.arm: {"prior": each.about["statistics"]["prior"], "fixed_last": 0} for each in loaded.values()},
        fit=data["provenance"].get("fit") or "squash",
        dataset=_own_images(experiment, data),
    )


def load_trained(experiment: str, strengths: dict[str, dict], networks: Iterable[str] = PAIR, seed: int = 0) -> Trained:
    """Load networks that the pipeline trained on this machine.

    Args:
        experiment: a name in params.yaml.
        strengths: label of an arm -> prior and fixed_last.
        networks: keys of `localnorm.arms.NETWORKS`.
        seed: of their training.

    Raises:
        FileNotFoundError: images or networks are not there; names the command that makes them.
    """
    dataset = load(paths.prepared(experiment))
    files = {network: paths.model(experiment, paths.run_name(experiment, network, seed)) for network in networks}
    return with_statistics(experiment, dataset, {key: load_model(file) for key, file in files.items()}, strengths, seed)


def with_statistics(
    experiment: str, dataset: Dataset, models: dict[str, nn.Module], strengths: dict[str, dict], seed: int
) -> Trained:
    """Trained networks of a data set, with stored statistics where a LocalNorm has none yet."""
    batch_size = load_params(experiment)["answers"]["batch_size"]
    for model in models.values():
        layers = [layer for layer in model.eval().modules() if isinstance(layer, LocalNorm)]
        if not all(layer.track_running_stats for layer in layers):
            count = max(1, STATISTICS_IMAGES // batch_size)
            estimate_statistics(model, islice(training_batches(dataset, batch_size), count))
    return Trained(
        experiment=experiment,
        models=models,
        title=dataset.title,
        classes=dataset.classes,
        shape=dataset.shape,
        mean=dataset.mean,
        std=dataset.std,
        origin=f"networks of seed {seed}",
        strengths=strengths,
        seed=seed,
        fit=dataset.provenance.get("fit") or "squash",
        dataset=dataset,
    )


def _own_images(experiment: str, trained: dict) -> Dataset | None:
    """The prepared images of an experiment, if they are here and are split as those that its networks were trained on."""
    try:
        dataset = load(paths.prepared(experiment))
        load_params(experiment)  # says which of them are asked about
    except (FileNotFoundError, ValueError):
        return None
    keys = ("checksum", "split")
    same = all(dataset.provenance[key] == trained["provenance"][key] for key in keys)
    return dataset if same and list(dataset.shape) == trained["shape"] else None


@dataclass(frozen=True)
class Shown:
    """Images to show to networks.

    Attributes:
        images: uint8 (N, C, H, W).
        names: one title per image.
        labels: (N,) the true classes; None for photographs, whose class nobody knows.
        config: how noise is drawn on them, and how many make a test batch.
    """

    images: Tensor
    names: list[str]
    labels: Tensor | None
    config: AnswersConfig

    def take(self, chosen: slice | list[int]) -> "Shown":
        """Some of them."""
        names = np.array(self.names)[chosen].tolist()
        return replace(
            self,
            images=self.images[chosen],
            names=names,
            labels=None if self.labels is None else self.labels[chosen],
        )


def show(trained: Trained, folder: str = "") -> Shown:
    """Images for these networks: photographs of a folder; without one the test images of their data set, in the order of the stage
    `answers`; and scikit-learn's two photographs where these images are not on this machine.

    Args:
        trained: the networks.
        folder: of photographs, or an archive; the first PHOTOGRAPHS by name are taken.

    Raises:
        ValueError: there is no image in the folder.
    """
    if folder or trained.dataset is None:
        names, images = photographs(folder, trained.shape, trained.fit, PHOTOGRAPHS)
        return Shown(images, names, None, AnswersConfig(noises={}, statistics={}, batch_size=16, rescale="none"))
    config = AnswersConfig.from_params(load_params(trained.experiment)["answers"])
    images, labels = test_images(trained.dataset, config)
    return Shown(images, [f"test image {number}" for number in range(len(images))], labels, config)
