"""One training step, run from Python or replayed as a CUDA graph."""

import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from localnorm.settings import Shrinkage, TrainConfig
from localnorm.train.draws import Draw

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
        self.distil = Shrinkage(**config.shrunk).distil
        if replays:
            self.rate = torch.zeros((), device=fabric.device)
            self.given = None  # images, labels and n0 of the current step, at the address that the graphs read
            self.graphs = {}
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream()  # the default one cannot be recorded

    def __call__(
        self, batch: torch.Tensor, labels: torch.Tensor, rate: float, drawn: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on one batch.

        Args:
            batch: (B, C, H, W).
            labels: (B,).
            rate: the learning rate.
            drawn: which statistics LocalNorm layers take.

        Returns:
            The loss, and how many images were classified right; the next step overwrites both.
        """
        if not self.replays:
            self._set_rate(rate)
            return self._run(batch, labels, drawn)
        new = [batch, labels, *([] if drawn.prior is None else [drawn.prior])]
        if self.given is None:
            self._set_rate(self.rate)
            self.given = [torch.empty_like(each, device=self.fabric.device) for each in new]
        self.rate.fill_(rate)
        for kept, each in zip(self.given, new, strict=True):
            kept.copy_(each)
        if drawn.prior is not None:
            drawn = replace(drawn, prior=self.given[2])
        if drawn.size not in self.graphs:
            self.graphs[drawn.size] = None
            return self._run_apart(drawn)
        if self.graphs[drawn.size] is None:
            self.graphs[drawn.size] = self._record(drawn)
        graph, result = self.graphs[drawn.size]
        graph.replay()
        return result

    def _run_apart(self, drawn: Draw):
        caller = torch.cuda.current_stream()
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            result = self._run(*self.given[:2], drawn)
        caller.wait_stream(self.stream)
        return result

    def _record(self, drawn: Draw):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = self._run(*self.given[:2], drawn)
        return graph, result

    def _set_rate(self, rate: float | torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _run(self, batch: torch.Tensor, labels: torch.Tensor, drawn: Draw):
        with drawn.statistics():
            logits = self.model(batch)  # (B, num_classes)
        loss = self._loss(logits, labels)
        if drawn.prior is not None and self.distil:
            plain = self.model(batch)
            told = F.kl_div(
                logits.float().log_softmax(1),
                plain.detach().float().log_softmax(1),
                log_target=True,
                reduction="batchmean",
            )
            loss = (loss + self._loss(plain, labels)) / 2 + self.distil * told
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), (logits.argmax(1) == labels).sum()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
