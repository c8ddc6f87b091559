"""One training step, run from Python or replayed as a CUDA graph."""

import contextlib
import warnings

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from localnorm.layers import use_mode
from localnorm.settings import TrainConfig

__all__ = ["Step", "replays_steps"]


def replays_steps(asked: bool | None, config: TrainConfig, fabric: Fabric) -> bool:
    """Whether steps are replayed: where it was asked for, and by default on one GPU unless the network is compiled.

    Raises:
        ValueError: it was asked for without a GPU.
    """
    on_gpu = fabric.device.type == "cuda"
    if asked and not on_gpu:
        raise ValueError(f"cuda_graphs=True needs a GPU, the device is {fabric.device}; leave it out")
    return on_gpu and fabric.world_size == 1 and not config.compile if asked is None else asked


class Step:
    """A training step: forward, loss, backward and update.

    With `replays` the first step of each number of images per group runs as usual, which allocates what kernels and optimizer
    keep. The second is recorded as a CUDA graph, which it and all later ones replay: their kernels start without Python.
    """

    def __init__(self, model, optimizer, config: TrainConfig, fabric: Fabric, replays: bool):
        self.model, self.optimizer, self.config, self.fabric, self.replays = model, optimizer, config, fabric, replays
        if replays:
            self.rate = torch.zeros((), device=fabric.device)
            self.given = None  # images and labels of the current step, at the address that the graphs read
            self.graphs = {}
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream()  # the default one cannot be recorded

    def __call__(
        self, batch: torch.Tensor, labels: torch.Tensor, rate: float, size: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on one batch.

        Args:
            batch: (B, C, H, W).
            labels: (B,).
            rate: the learning rate.
            size: images per group; None where LocalNorm layers group the batch as they are built.

        Returns:
            The loss, and how many images were classified right; the next step overwrites both.
        """
        if not self.replays:
            self._set_rate(rate)
            return self._run(batch, labels, size)
        if self.given is None:
            self._set_rate(self.rate)
            self.given = batch.clone(), labels.clone()
        self.rate.fill_(rate)
        for kept, new in zip(self.given, (batch, labels), strict=True):
            kept.copy_(new)
        if size not in self.graphs:
            self.graphs[size] = None
            return self._run_apart(size)
        if self.graphs[size] is None:
            self.graphs[size] = self._record(size)
        graph, result = self.graphs[size]
        graph.replay()
        return result

    def _run_apart(self, size: int | None):
        caller = torch.cuda.current_stream()
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            result = self._run(*self.given, size)
        caller.wait_stream(self.stream)
        return result

    def _record(self, size: int | None):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = self._run(*self.given, size)
        return graph, result

    def _set_rate(self, rate: float | torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _run(self, batch: torch.Tensor, labels: torch.Tensor, size: int | None):
        with use_mode("batch", group_size=size) if size else contextlib.nullcontext():
            logits = self.model(batch)  # (B, num_classes)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), (logits.argmax(1) == labels).sum()
