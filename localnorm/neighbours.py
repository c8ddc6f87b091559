"""Two layers of others that are trained with statistics of single images, as BatchNorm's neighbours in the study.

Written from the papers' formulas in plain operators, for comparison and not for speed. Each takes a batch of any size in training; in
evaluation mode an image is answered alone, since what a batch shared is then what training stored. For an image (C, H, W), m and v are
mean and biased variance of a channel over its positions; M and V are those of the training batch, or the stored ones.
"""

import torch
from torch import Tensor, nn

from localnorm._kernels import moments_of_each_image

__all__ = ["BatchInstanceNorm2d", "TaskNorm2d"]


class _BesideTheBatch(nn.Module):
    """Weight and bias per channel, and moving averages of the batch's statistics."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, var = moments_of_each_image(work)  # (B, C) each
        if self.training:
            shared_mean = mean.mean(0)
            shared_var = (var + (mean - shared_mean).square()).mean(0)
            values = x.numel() // x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(shared_mean, self.momentum)
                self.running_var.lerp_(shared_var * (values / (values - 1)), self.momentum)
        else:
            shared_mean, shared_var = self.running_mean, self.running_var
        scale, shift = self.scale_and_shift(mean, var, shared_mean, shared_var)
        scale, shift = scale * self.weight, shift * self.weight + self.bias
        return torch.addcmul(shift[..., None, None], work, scale[..., None, None]).to(x.dtype)

    def scale_and_shift(
        self, mean: Tensor, var: Tensor, shared_mean: Tensor, shared_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What x is multiplied by and what is added, (B, C) each, of the images' statistics and the shared ones, (C,)."""
        raise NotImplementedError


class TaskNorm2d(_BesideTheBatch):
    """TaskNorm: each image's statistics are pooled with its batch's, by one weight per layer that is learned.

    With a = sigmoid(offset), 0.5 at first:

        mean = a M + (1 - a) m
        var  = a (V + (M - mean)^2) + (1 - a) (v + (m - mean)^2)

    which is the mixture of mode "prior" with a learned in the place of n0 / (n0 + H W). The original's a also depends on the number of
    images that share statistics, which is the same at every step here.

    Args:
        num_features: C.
        eps: added to variances.
        momentum: of the stored statistics.

    Source: Bronskill et al., TaskNorm: Rethinking batch normalization for meta-learning, ICML 2020, TaskNorm-I. There a test task has a
    context set of its own; here the training set is the context.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(num_features, eps, momentum)
        self.offset = nn.Parameter(torch.zeros(()))

    def scale_and_shift(self, mean, var, shared_mean, shared_var):
        a = self.offset.sigmoid()
        pooled = a * shared_mean + (1 - a) * mean
        pooled_var = a * (shared_var + (shared_mean - pooled).square()) + (1 - a) * (var + (mean - pooled).square())
        scale = (pooled_var + self.eps).rsqrt()
        return scale, -pooled * scale


class BatchInstanceNorm2d(_BesideTheBatch):
    """Batch-Instance Normalization: BatchNorm's result and InstanceNorm's, mixed by one weight per channel that is learned.

        y = (r (x - M) / sqrt(V + eps) + (1 - r) (x - m) / sqrt(v + eps)) weight + bias

    r is 1 at first and kept between 0 and 1.

    Args:
        num_features: C.
        eps: added to variances.
        momentum: of the stored statistics.

    Source: Nam and Kim, Batch-Instance Normalization for adaptively style-invariant neural networks, NeurIPS 2018. The authors give r a
    learning rate of its own; here it has that of the other parameters.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(num_features, eps, momentum)
        self.share = nn.Parameter(torch.ones(num_features))

    def scale_and_shift(self, mean, var, shared_mean, shared_var):
        self.share.data.clamp_(0, 1)  # after the optimizer's last step
        of_batch, of_image = ((each + self.eps).rsqrt() for each in (shared_var, var))
        scale = self.share * of_batch + (1 - self.share) * of_image
        return scale, -(self.share * shared_mean * of_batch + (1 - self.share) * mean * of_image)
