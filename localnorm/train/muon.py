"""Muon for GPUs: the weights that are updated alike are updated together."""

import torch
from timm.optim import Muon
from timm.optim.muon import _COEFFICIENTS as COEFFICIENTS
from timm.optim.muon import _is_suitable_for_muon as suits_muon
from timm.optim.muon import get_lr_scale, resolve_ns_coefficients, zeropower_via_newtonschulz

__all__ = ["BatchedMuon"]


class BatchedMuon(Muon):
    """timm's Muon in fewer calls of GPU kernels; its updates are timm's up to rounding.

    The update of a convolution's weights is the orthogonal matrix next to their momentum. timm iterates to each of these matrices alone,
    in more than twenty small calls, and the number of calls bounds a training step of a small network on a GPU. Here the matrices of one
    shape are one stack (layers, out, height * width * in) with one iteration: 8 in a ResNet-32 instead of 33. What else there is, such as
    gammas, betas and the last layer, takes timm's NAdamW steps, with one correction of the biases for all weights instead of one each.

    Source: https://kellerjordan.github.io/posts/muon/
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One update. A weight of a hidden layer that is no convolution's, or that does not suit Muon, is left to timm."""
        groups = self.param_groups
        ours = [[p for p in group["params"] if p.grad is not None and _is_ours(p, group)] for group in groups]
        taken = {id(weight) for weights in ours for weight in weights}
        self.param_groups = [group | {"params": [p for p in group["params"] if id(p) not in taken]} for group in groups]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group, weights in zip(groups, ours, strict=True):
            if weights:
                (self._update_by_nadamw if group.get("use_fallback") else self._update_by_muon)(weights, group)
        return loss

    def _update_by_nadamw(self, weights: list[torch.Tensor], group: dict) -> None:
        for weight in weights:
            if "step" not in self.state[weight]:
                self.state[weight] |= {
                    "step": torch.zeros((), device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        gradients = [weight.grad for weight in weights]
        steps, means, squares = (
            [self.state[weight][key] for weight in weights] for key in ("step", "exp_avg", "exp_avg_sq")
        )
        beta1, beta2 = group["betas"]
        rate = group["lr"] * group["fallback_lr_scale"]
        torch._foreach_add_(steps, 1)
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        step = steps[0]  # all have taken the same number
        updates = torch._foreach_lerp(means, gradients, 1 - beta1)  # Nesterov
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - beta2**step).sqrt())
        torch._foreach_add_(scales, group["eps"])
        torch._foreach_mul_(scales, (beta1**step - 1) / rate)
        torch._foreach_addcdiv_(weights, updates, scales)

    def _update_by_muon(self, weights: list[torch.Tensor], group: dict) -> None:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            momenta = torch._foreach_lerp(gradients, momenta, group["momentum"])
        coefficients = resolve_ns_coefficients(group["ns_coefficients"], COEFFICIENTS)
        updates = [None] * len(weights)
        of_shape: dict[torch.Size, list[int]] = {}
        for index, weight in enumerate(weights):
            of_shape.setdefault(weight.shape, []).append(index)
        for indices in of_shape.values():
            # The order of the columns does not matter; in this one, (out, in, height, width) in channels_last is read as it lies.
            rows = [momenta[index].movedim(1, -1) for index in indices]
            stack = torch.stack([row.flatten(1) for row in rows])  # (layers, out, height * width * in)
            stack = zeropower_via_newtonschulz(stack, group["ns_steps"], coefficients, eps=group["eps"])
            stack = stack.float() * (-group["lr"] * get_lr_scale(stack.shape, group["adjust_lr_fn"]))
            for index, update in zip(indices, stack.unflatten(-1, rows[0].shape[1:]).movedim(-1, 2), strict=True):
                updates[index] = update
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates)


def _is_ours(weight: torch.Tensor, group: dict) -> bool:
    """Whether a weight is updated here: what Muon leaves, by NAdamW alone (timm's is AdamW without Nesterov), or a convolution's."""
    if group.get("use_fallback"):
        return group["nesterov"]
    return weight.ndim == 4 and suits_muon(weight)
