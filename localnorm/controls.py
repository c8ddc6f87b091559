"""Ways to answer one image with a trained network as it is: ours, and those of others, on the same networks and images.

Each corrects the stored statistics of every layer by those of the image. They differ in how far. An image (C, H, W) has P = H W positions
in a layer, mean m and biased variance v per channel; the training set's are M and V.

- "prior" and "gated" are ours, modes of `localnorm.predict`; `localnorm.use_mode` has their formulas. A prior by positions lets a large
  map count for more, since it tells more of an image; a gated one moves an ordinary image less.
- "images": with a = N / (N + 1) the mean is a M + (1 - a) m and the variance a V + (1 - a) v, in every layer alike.
  Source: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020, with one
  test image; You et al., Test-time batch statistics calibration for covariate shift, 2021 (alpha-BN), have the same formula.
- "chance": the mean moves by what m - M has beyond k standard errors, sqrt(V / P), and the variance by what v - V has beyond k times
  V sqrt(2 / (P - 1)). Source: Gong et al., NOTE: Robust continual test-time adaptation against temporal correlation, NeurIPS 2022,
  whose networks are also trained with it; here a trained network takes it.

All of them take images one by one: what is in the same batch changes nothing. Those of others were made for BatchNorm, and are asked of
it alone.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm import paths, scores
from localnorm._kernels import moments_of_each_image
from localnorm.answers import noisy_images, store_statistics, test_images, training_range_of
from localnorm.arms import CLEAN
from localnorm.data.dataset import Dataset
from localnorm.layers import LocalNorm
from localnorm.machine import use_cpu
from localnorm.modes import use_mode
from localnorm.prediction import Predictor
from localnorm.settings import AnswersConfig, ControlsConfig, conditions, conditions_of

__all__ = ["COLUMNS", "FORMULAS", "Statistics", "corrected", "measure", "save_table"]

COLUMNS = ["network", "part", "control", "strength", "chosen", "clean", "noisy", "images"]


@dataclass(frozen=True)
class Statistics:
    """Means and biased variances per channel: (N, C) of images, (1, C) of a training set."""

    mean: Tensor
    var: Tensor


def _by_images(image: Statistics, stored: Statistics, positions: int, strength: float) -> Statistics:
    a = strength / (strength + 1)
    return Statistics(a * stored.mean + (1 - a) * image.mean, a * stored.var + (1 - a) * image.var)


def _beyond_chance(image: Statistics, stored: Statistics, positions: int, strength: float) -> Statistics:
    if positions == 1:  # one value has no variance, and nothing is beyond its chance
        return stored
    mean = _beyond(image.mean - stored.mean, strength * (stored.var / positions).sqrt())
    var = _beyond(image.var - stored.var, strength * stored.var * math.sqrt(2 / (positions - 1)))
    return Statistics(stored.mean + mean, stored.var + var)


def _beyond(difference: Tensor, bound: Tensor) -> Tensor:
    return difference.sign() * (difference.abs() - bound).clamp_min(0)


# of others: (image's, stored, positions, strength) -> the statistics that the layer takes
FORMULAS: dict[str, Callable[..., Statistics]] = {"images": _by_images, "chance": _beyond_chance}


@contextlib.contextmanager
def corrected(model: nn.Module, control: str, strength: float) -> Iterator[None]:
    """Within the block a BatchNorm network in evaluation mode takes statistics that are corrected for each image.

    Args:
        model: with BatchNorm layers, or LocalNorm layers of one group, that have stored statistics.
        control: a key of FORMULAS.
        strength: how much the stored statistics count; see the module.
    """
    formula = FORMULAS[control]

    def correct(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        stored = Statistics(layer.running_mean.reshape(1, -1), layer.running_var.reshape(1, -1))
        taken = formula(Statistics(*moments_of_each_image(x)), stored, x[0, 0].numel(), strength)
        # what the layer does to x by its stored statistics is then what it would do by the corrected ones
        scale = ((stored.var + layer.eps) / (taken.var + layer.eps)).sqrt()
        shift = stored.mean - taken.mean * scale
        ones = (1,) * (x.dim() - 2)
        return (torch.addcmul(shift.reshape(*shift.shape, *ones), x, scale.reshape(*scale.shape, *ones)),)

    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm | LocalNorm)]
    groups = {getattr(layer, "num_groups", 1) for layer in layers}
    if groups != {1}:
        found = f"LocalNorm of {max(groups)} groups" if groups else "no BatchNorm layer"
        raise ValueError(
            f"{control!r} corrects BatchNorm's stored statistics, or LocalNorm's of one group; this network has {found}"
        )
    placed = [layer.register_forward_pre_hook(correct) for layer in layers]
    try:
        with use_mode("fixed"):
            yield
    finally:
        for each in placed:
            each.remove()


def measure(
    models: dict[str, nn.Module], dataset: Dataset, answers: AnswersConfig, controls: ControlsConfig
) -> pd.DataFrame:
    """Every control with every strength on validation images, and with its best strength on test images.

    The best strength has the best mean of clean and noisy accuracy on validation images, under noises that are not scored, as
    `localnorm.strengths` chooses n0. Test images and noises are those of the stage `answers`.

    Args:
        models: network -> a trained one, on the device that is to be used; group 0 of a LocalNorm answers.
        dataset: the parts "train", "validation" and "test" are used.
        answers: noises, number of images, and `prior_noises`.
        controls: the strengths.

    Returns:
        One row per network, part, control and strength, with COLUMNS; clean and noisy are accuracies, images those of a noisy condition.
    """
    use_cpu(answers.threads)
    labels = torch.as_tensor(dataset.labels("validation"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(answers.seed))[: answers.images]
    validation = torch.as_tensor(dataset.images("validation"))[order], labels[order]
    tables = []
    for network, model in models.items():
        ways = _Ways(network, model, dataset, answers)
        asked = [CLEAN, *conditions_of(answers.prior_noises)]
        tried = ways.ask(*validation, asked, controls.pairs(network), lambda level: len(order))
        best = (tried.clean + tried.noisy).groupby(tried.control, sort=False).idxmax()
        tried["chosen"] = tried.index.isin(best)
        pairs = list(tried.loc[best, ["control", "strength"]].itertuples(index=False, name=None))
        final = ways.ask(*test_images(dataset, answers), conditions(answers), pairs, answers.images_at)
        tables += [
            table.assign(network=network)
            for table in (tried.assign(part="validation"), final.assign(part="test", chosen=True))
        ]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


class _Ways:
    """A network that can be asked in every way."""

    def __init__(self, network: str, model: nn.Module, dataset: Dataset, answers: AnswersConfig):
        asked = replace(answers, statistics={network: ["gated"]})
        self.model, self.dataset, self.answers = (
            store_statistics(model, dataset, asked, network).eval(),
            dataset,
            answers,
        )
        self.device = next(model.parameters()).device
        self.predictor = Predictor(self.model, "fixed", batch_size=answers.batch_size)
        self.training_range = training_range_of(dataset, self.device)

    def ask(
        self, images: Tensor, labels: Tensor, asked: list, pairs: list[tuple[str, float]], count: Callable[[float], int]
    ) -> pd.DataFrame:
        """Clean and noisy accuracy of each way, as `localnorm.scores` weighs conditions."""
        images, labels = images.to(self.device), labels.to(self.device)
        rows = []
        for suite, noise, level in asked:
            shown = images[: count(level)]
            pixels = noisy_images(shown, self.dataset, suite, noise, level, self.answers, self.training_range)
            for control, strength in pairs:
                right = int((self._logits(pixels, control, strength).argmax(1) == labels[: len(shown)]).sum())
                rows.append((control, strength, suite, noise, level, len(shown), right))
        by = ["control", "strength"]
        answered = pd.DataFrame(rows, columns=[*by, "suite", "noise", "level", "images", "right"])
        metrics = {metric: scores.per_seed(answered, metric, by=by) for metric in ("clean", "noisy")}
        images = answered[answered.level > 0].groupby(by, sort=False).images.max()
        return pd.DataFrame(metrics | {"images": images}).reset_index()

    def _logits(self, pixels: Tensor, control: str, strength: float) -> Tensor:
        if control not in FORMULAS:
            prior = None if control == "fixed" else strength
            return self.predictor.using(control, prior=prior, batch_size=self.answers.batch_size)(pixels)
        with corrected(self.model, control, strength), torch.no_grad():
            return torch.cat([self.model(part) for part in pixels.split(self.answers.batch_size)])


def save_table(experiment: str, table: pd.DataFrame) -> None:
    """Write data/results/<experiment>/controls.csv."""
    paths.write_table(paths.results(experiment) / "controls.csv", table)
