"""Choose by validation images how much the training statistics count when a network answers one image."""

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from localnorm.modes import MIXING
from localnorm.prediction import Predictor

__all__ = ["choose_prior"]

# 4 to 65,536 positions, and the training statistics alone
CANDIDATES = (*(4.0**power for power in range(1, 9)), math.inf)


def choose_prior(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noisy: Iterable[Tensor],
    mode: str = "prior",
    *,
    candidates: Sequence[float] = CANDIDATES,
    batch_size: int | None = None,
    group: int | None = None,
    fixed_last: int = 0,
    one_value: str = "refuse",
) -> float:
    """The n0 with which a network is most accurate on validation images, for ``predict(model, image, mode, prior=n0)``.

    Most accurate means the best mean of the accuracy on clean images and of that on their noisy copies, all copies together. Of equally
    good candidates the largest is taken, which changes an answer of the training statistics least. It costs a pass over all images and
    copies for each candidate.

    Choose by noises like those that you expect, at levels where the network still gets some images right, and report accuracy on other
    images: what was chosen on some images looks better on them than it is.

    Args:
        model: with stored statistics (:func:`localnorm.estimate_statistics`) and, for ``gated``, what :func:`localnorm.learn_spread`
            stored; it is not changed.
        images: (N, C, H, W), validation images, which the network was not trained on.
        labels: (N,), their classes.
        noisy: copies of ``images`` with noise, poor light or what else is to be met, each (N, C, H, W); at least one, since clean images
            alone say little about noise. A generator is read one copy at a time.
        mode: ``prior`` or ``gated``; the n0 of one do not serve the other, and those of ``gated`` are smaller.
        candidates: the n0 to choose from, in positions of a feature map; the default is 4, 16, ..., 65,536 and infinity.
        batch_size, group, fixed_last, one_value: as of :func:`localnorm.predict`; give it the same.

    Raises:
        ValueError: another mode, no candidate, no noisy copy, labels or copies that do not belong to the images, a network whose output is
            not logits (N, num_classes) of two classes or more; and as :func:`localnorm.predict`.

    Warns:
        UserWarning: all candidates are equally good, so that nothing was learned.

    Example:
        >>> import torch
        >>> from localnorm import estimate_statistics, predict
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> estimate_statistics(net, [torch.randn(64, 3, 8, 8)])
        >>> images = torch.randn(64, 3, 8, 8)
        >>> labels = predict(net, images, "fixed").argmax(1)  # in the place of true ones
        >>> n0 = choose_prior(net, images, labels, [images + torch.randn_like(images), images / 4])
        >>> n0 in CANDIDATES
        True
    """
    if mode not in MIXING:
        raise ValueError(f"mode must be one of {', '.join(MIXING)}, which take a prior; got {mode!r}")
    candidates, noisy = sorted(map(float, candidates)), iter(noisy)
    if not candidates:
        raise ValueError("candidates must hold at least one number of positions, got none")
    labels = torch.as_tensor(labels)
    if labels.shape != (len(images),) or not len(images):
        raise ValueError(
            f"labels must be (N,), one for each of {len(images)} images, at least 1; got {tuple(labels.shape)}"
        )
    first = next(noisy, None)
    if first is None:
        raise ValueError(
            "noisy must hold at least one copy of the images with noise, got none; clean images say little about it"
        )
    _check_copy(first, images)
    options = {"batch_size": batch_size, "group": group, "fixed_last": fixed_last, "one_value": one_value}
    network = Predictor(model, mode, prior=candidates[0], **options)
    ask = [
        network.using(mode, prior=prior, **options) for prior in candidates
    ]  # a wrong candidate is refused before any work
    of_clean = [_count_right(each, images, labels) for each in ask]
    of_noisy, copies = [0] * len(ask), 0
    for pixels in itertools.chain([first], noisy):
        copies += 1
        _check_copy(pixels, images)
        of_noisy = [right + _count_right(each, pixels, labels) for right, each in zip(of_noisy, ask, strict=True)]
    score = [
        clean * copies + noise for clean, noise in zip(of_clean, of_noisy, strict=True)
    ]  # whole numbers, so ties are exact
    if len(ask) > 1 and len(set(score)) == 1:
        warnings.warn(
            f"all {len(ask)} candidates are right equally often ({of_clean[0]} of {len(images)} clean images), so nothing speaks for one "
            "of them; use more images, or noise at a level where some answers change",
            stacklevel=2,
        )
    return max(zip(score, candidates, strict=True))[1]


def _check_copy(pixels: Tensor, images: Tensor) -> None:
    if pixels.shape != images.shape:
        raise ValueError(
            f"each noisy copy must be of the images' shape {tuple(images.shape)}, got {tuple(pixels.shape)}"
        )


def _count_right(ask: Predictor, pixels: Tensor, labels: Tensor) -> int:
    logits = ask(pixels)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the network must give logits (N, num_classes) of at least 2 classes, got {tuple(logits.shape)}"
        )
    return int((logits.argmax(1).cpu() == labels.cpu()).sum())
