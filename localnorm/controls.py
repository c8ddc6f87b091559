"""Ways to answer one image with a BatchNorm network as it is: ours, and those of others, on the same network and images.

Each corrects the stored statistics of every layer by those of the image. They differ in how far. An image (C, H, W) has P = H W positions
in a layer, mean m and biased variance v per channel; the training set's are M and V.

- "positions", ours, the mode "prior": with a = n0 / (n0 + P) the mean is a M + (1 - a) m and the variance
  a V + (1 - a) v + a (1 - a) (M - m)^2. A large map tells more of an image, so it counts for more.
- "images": with a = N / (N + 1) the mean is a M + (1 - a) m and the variance a V + (1 - a) v, in every layer alike.
  Source: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020, with one
  test image; You et al., Test-time batch statistics calibration for covariate shift, 2021 (alpha-BN), have the same formula.
- "chance": the mean moves by what m - M has beyond k standard errors, sqrt(V / P), and the variance by what v - V has beyond k times
  V sqrt(2 / (P - 1)). Source: Gong et al., NOTE: Robust continual test-time adaptation against temporal correlation, NeurIPS 2022,
  whose networks are also trained with it; here a trained network takes it.
- "unusual", ours: as "positions" with P d in the place of P. d says how much farther the image is from the training images than they
  are from one another: the mean over channels of the squared deviations of mean and log variance in units of the training images',
  less one, at least 0. An ordinary image keeps the stored statistics.

All of them take images one by one: what is in the same batch changes nothing.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm import paths, scores
from localnorm.answers import noisy_images, test_images, training_batches, training_range_of
from localnorm.arms import CLEAN
from localnorm.data.dataset import Dataset
from localnorm.layers import LocalNorm
from localnorm.machine import use_cpu
from localnorm.modes import use_mode
from localnorm.settings import AnswersConfig, ControlsConfig, conditions, conditions_of

__all__ = ["COLUMNS", "FORMULAS", "Statistics", "corrected", "learn_ordinary", "measure", "save_table"]

COLUMNS = ["part", "control", "strength", "chosen", "clean", "noisy", "images"]
ORDINARY_IMAGES = 512  # training images that say what is ordinary: their spread is known to a few percent
SMALLEST = 1e-12  # below any variance that matters: the logarithm of 0 does not exist


@dataclass(frozen=True)
class Statistics:
    """Means and biased variances per channel: (N, C) of images, (1, C) of a training set."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Ordinary:
    """How training images differ from one another in a layer: mean and variance over them of their means and log variances, (1, C)."""

    mean: Statistics
    log_var: Statistics

    def distance(self, image: Statistics) -> Tensor:
        """(N, 1): the mean squared deviation, in units of the training images' own; about 1 for one of them."""
        mean = (image.mean - self.mean.mean).square() / self.mean.var.clamp_min(SMALLEST)
        log_var = (_log(image.var) - self.log_var.mean).square() / self.log_var.var.clamp_min(SMALLEST)
        return (mean + log_var).mean(1, keepdim=True) / 2


def _by_positions(image: Statistics, stored: Statistics, positions: float | Tensor, strength: float, _) -> Statistics:
    a = strength / (strength + positions)
    off = image.mean - stored.mean
    return Statistics(stored.mean + (1 - a) * off, a * stored.var + (1 - a) * image.var + a * (1 - a) * off.square())


def _by_images(image: Statistics, stored: Statistics, positions: int, strength: float, _) -> Statistics:
    a = strength / (strength + 1)
    return Statistics(a * stored.mean + (1 - a) * image.mean, a * stored.var + (1 - a) * image.var)


def _beyond_chance(image: Statistics, stored: Statistics, positions: int, strength: float, _) -> Statistics:
    if positions == 1:  # one value has no variance, and nothing is beyond its chance
        return stored
    mean = _beyond(image.mean - stored.mean, strength * (stored.var / positions).sqrt())
    var = _beyond(image.var - stored.var, strength * stored.var * math.sqrt(2 / (positions - 1)))
    return Statistics(stored.mean + mean, stored.var + var)


def _where_unusual(
    image: Statistics, stored: Statistics, positions: int, strength: float, ordinary: Ordinary
) -> Statistics:
    farther = (ordinary.distance(image) - 1).clamp_min(0)
    return _by_positions(image, stored, positions * farther, strength, ordinary)


def _beyond(difference: Tensor, bound: Tensor) -> Tensor:
    return difference.sign() * (difference.abs() - bound).clamp_min(0)


def _log(var: Tensor) -> Tensor:
    return var.clamp_min(SMALLEST).log()


# (image's, stored, positions, strength, what is ordinary in the layer) -> the statistics that the layer takes
FORMULAS: dict[str, Callable[..., Statistics]] = {
    "positions": _by_positions,
    "images": _by_images,
    "chance": _beyond_chance,
    "unusual": _where_unusual,
}


@contextlib.contextmanager
def corrected(
    model: nn.Module, control: str, strength: float, ordinary: dict[str, Ordinary] | None = None
) -> Iterator[None]:
    """Within the block a BatchNorm network in evaluation mode takes statistics that are corrected for each image.

    Args:
        model: with BatchNorm layers that have stored statistics.
        control: a key of FORMULAS, or "fixed", which corrects nothing.
        strength: how much the stored statistics count; see the module.
        ordinary: of `learn_ordinary`, for "unusual".
    """
    formula = FORMULAS.get(control)

    def hook(name: str) -> Callable:
        def correct(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            (x,) = inputs
            stored = Statistics(layer.running_mean.reshape(1, -1), layer.running_var.reshape(1, -1))
            taken = formula(_moments(x), stored, x[0, 0].numel(), strength, (ordinary or {}).get(name))
            # what the layer does to x by its stored statistics is then what it would do by the corrected ones
            scale = ((stored.var + layer.eps) / (taken.var + layer.eps)).sqrt()
            shift = stored.mean - taken.mean * scale
            ones = (1,) * (x.dim() - 2)
            return (torch.addcmul(shift.reshape(*shift.shape, *ones), x, scale.reshape(*scale.shape, *ones)),)

        return correct

    with use_mode("fixed"), _hooks(model, hook if formula else None):
        yield


@torch.no_grad()
def learn_ordinary(model: nn.Module, batches: Iterator[Tensor], images: int = ORDINARY_IMAGES) -> dict[str, Ordinary]:
    """What is ordinary in each BatchNorm layer: how the statistics of single training images differ.

    Args:
        model: in evaluation mode.
        batches: of standardised training images.
        images: as many are taken, to the end of a batch.

    Returns:
        Name of a layer -> what is ordinary there.
    """
    seen: dict[str, list[Statistics]] = {}

    def hook(name: str) -> Callable:
        def look(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            seen.setdefault(name, []).append(_moments(inputs[0]))

        return look

    with use_mode("fixed"), _hooks(model, hook):
        count = 0
        for batch in batches:
            model(batch)
            count += len(batch)
            if count >= images:
                break
    if count < 2:
        raise ValueError(f"what is ordinary needs at least 2 training images, got {count}")
    learned = {}
    for name, parts in seen.items():
        mean, log_var = torch.cat([each.mean for each in parts]), _log(torch.cat([each.var for each in parts]))
        learned[name] = Ordinary(
            *(Statistics(t.mean(0, keepdim=True), t.var(0, keepdim=True)) for t in (mean, log_var))
        )
    return learned


def measure(model: nn.Module, dataset: Dataset, answers: AnswersConfig, controls: ControlsConfig) -> pd.DataFrame:
    """Every control with every strength on validation images, and with its best strength on test images.

    The best strength has the best mean of clean and noisy accuracy on validation images, under noises that are not scored, as
    `localnorm.strengths` chooses n0. Test images and noises are those of the stage `answers`.

    Args:
        model: a BatchNorm network on the device that is to be used.
        dataset: the parts "train", "validation" and "test" are used.
        answers: noises, number of images, and `prior_noises`.
        controls: the strengths.

    Returns:
        One row per part, control and strength, with COLUMNS; clean and noisy are accuracies, images those of a noisy condition.
    """
    use_cpu(answers.threads)
    model.eval()
    device = next(model.parameters()).device
    training_range = training_range_of(dataset, device)
    ordinary = learn_ordinary(model, training_batches(dataset, answers.batch_size, device))

    def ask(
        images: Tensor, labels: Tensor, asked: list, pairs: list[tuple[str, float]], count: Callable
    ) -> pd.DataFrame:
        rows = []
        for suite, noise, level in asked:
            shown = images[: count(level)]
            pixels = noisy_images(shown, dataset, suite, noise, level, answers, training_range)
            for control, strength in pairs:
                with corrected(model, control, strength, ordinary), torch.no_grad():
                    parts = [model(part).argmax(1) for part in pixels.split(answers.batch_size)]
                right = int((torch.cat(parts) == labels[: len(shown)]).sum())
                rows.append((control, strength, suite, noise, level, len(shown), right))
        columns = ["control", "strength", "suite", "noise", "level", "images", "right"]
        return _accuracies(pd.DataFrame(rows, columns=columns))

    labels = torch.as_tensor(dataset.labels("validation"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(answers.seed))[: answers.images]
    images = torch.as_tensor(dataset.images("validation"))[order].to(device)
    asked = [CLEAN, *conditions_of(answers.prior_noises)]
    tried = ask(images, labels[order].to(device), asked, controls.pairs(), lambda level: len(images))
    best = (tried.clean + tried.noisy).groupby(tried.control, sort=False).idxmax()
    tried["chosen"] = tried.index.isin(best)
    images, labels = (each.to(device) for each in test_images(dataset, answers))
    pairs = list(tried.loc[best, ["control", "strength"]].itertuples(index=False, name=None))
    final = ask(images, labels, conditions(answers), pairs, answers.images_at)
    parts = [tried.assign(part="validation"), final.assign(part="test", chosen=True)]
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def save_table(experiment: str, table: pd.DataFrame) -> None:
    """Write data/results/<experiment>/controls.csv."""
    paths.write_table(paths.results(experiment) / "controls.csv", table)


def _accuracies(answered: pd.DataFrame) -> pd.DataFrame:
    """Clean and noisy accuracy of each control and strength, as `localnorm.scores` weighs conditions."""
    by = ["control", "strength"]
    metrics = {metric: scores.per_seed(answered, metric, by=by) for metric in ("clean", "noisy")}
    images = answered[answered.level > 0].groupby(by, sort=False).images.max()
    return pd.DataFrame(metrics | {"images": images}).reset_index()


def _moments(x: Tensor) -> Statistics:
    """Of each image, over its positions."""
    positions = tuple(range(2, x.dim()))
    if not positions:
        return Statistics(x, torch.zeros_like(x))
    mean = x.mean(positions, keepdim=True)
    return Statistics(mean.flatten(1), (x - mean).square_().mean(positions))


@contextlib.contextmanager
def _hooks(model: nn.Module, hook: Callable[[str], Callable] | None) -> Iterator[None]:
    """Run a hook before each BatchNorm layer; LocalNorm with one group, which published networks have, is another."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (_BatchNorm, LocalNorm))}
    groups = {getattr(layer, "num_groups", 1) for layer in layers.values()}
    if groups != {1}:
        found = f"LocalNorm of {max(groups)} groups" if groups else "no BatchNorm layer"
        raise ValueError(
            f"the controls correct BatchNorm's stored statistics, or LocalNorm's of one group; this network has {found}"
        )
    placed = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()] if hook else []
    try:
        yield
    finally:
        for each in placed:
            each.remove()
