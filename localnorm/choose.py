"""Choose by validation images how much the training statistics count when a network answers one image."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from localnorm.modes import MIXING
from localnorm.prediction import Predictor

__all__ = ["choose_prior"]

CANDIDATES = tuple(4.0**power for power in range(1, 9))  # 4 to 65,536 positions


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
) -> float:
    """The n0 with which a network is most accurate on validation images, for `predict(model, image, mode, prior=n0)`.

    Most accurate means the highest sum of the accuracy on clean images and of the mean accuracy on their noisy copies. Of equally good
    candidates the first is taken. It costs as many forwards as there are candidates times 1 + the number of noisy copies.

    Choose by noises like those that you expect, at levels where the network still gets some images right, and report accuracy on other
    images: what was chosen on some images looks better on them than it is.

    Args:
        model: with stored statistics (:func:`localnorm.estimate_statistics`) and, for ``gated``, what :func:`localnorm.learn_spread`
            stored; it is not changed.
        images: (N, C, H, W), validation images, which the network was not trained on.
        labels: (N,), their classes.
        noisy: copies of `images` with noise, poor light or what else is to be met, each (N, C, H, W); at least one, since clean images
            alone would always ask for the training statistics.
        mode: ``prior`` or ``gated``, whose scale of n0 is smaller.
        candidates: numbers of positions to choose from.
        batch_size, group: as of :func:`localnorm.predict`.

    Raises:
        ValueError: another mode, no candidate, no noisy copy, labels or copies that do not belong to the images; and as
            :func:`localnorm.predict`.

    Example:
        >>> from localnorm import estimate_statistics
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
        >>> estimate_statistics(net, [images])
        >>> n0 = choose_prior(net, images, labels, [images + torch.randn_like(images), images / 4])
        >>> n0 in CANDIDATES
        True
    """
    if mode not in MIXING:
        raise ValueError(f"mode must be one of {', '.join(MIXING)}, which take a prior; got {mode!r}")
    candidates, noisy = list(candidates), list(noisy)
    if not candidates:
        raise ValueError("candidates must hold at least one number of positions, got none")
    if not noisy:
        raise ValueError(
            "noisy must hold at least one copy of the images with noise; clean images alone ask for no prior"
        )
    if labels.shape != (len(images),) or not len(images):
        raise ValueError(
            f"labels must be (N,), one for each of {len(images)} images, at least 1; got {tuple(labels.shape)}"
        )
    for copy in noisy:
        if copy.shape != images.shape:
            raise ValueError(
                f"each noisy copy must be of the images' shape {tuple(images.shape)}, got {tuple(copy.shape)}"
            )
    first = Predictor(model, mode, prior=candidates[0], batch_size=batch_size, group=group)
    ask = [
        first.using(mode, prior=prior, batch_size=batch_size, group=group) for prior in candidates
    ]  # refuses a bad one before work

    def accuracy(each: Predictor, pixels: Tensor) -> float:
        return (each(pixels).argmax(1).cpu() == labels.cpu()).double().mean().item()

    score = [
        accuracy(each, images) + sum(accuracy(each, copy) for copy in noisy) / len(noisy) for each in ask
    ]  # of clean and noisy
    return candidates[max(range(len(score)), key=score.__getitem__)]
