"""The files of a training run: the checkpoint that it continues from, and what is kept of it. Plain tensors, no pickle."""

import csv
import io
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from localnorm import paths
from localnorm.models import save_model
from localnorm.train.record import TrainedRun

__all__ = ["resume", "save_checkpoint", "save_run"]


def save_checkpoint(path: Path, network, optimizer, identity: dict, history: list[dict], parts: list[dict]) -> None:
    """Write everything that training continues from.

    Args:
        path: the file, which is replaced.
        network, optimizer: their state is kept.
        identity: see `localnorm.train.record.identify`.
        history: one row per epoch so far.
        parts: see `localnorm.train.record.part_of`.
    """
    tensors = {f"model.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous()
            for name, value in state.items()
            if value is not None
        }
    metadata = {
        "identity": json.dumps(identity, sort_keys=True),
        "history": json.dumps(history),
        "parts": json.dumps(parts),
    }
    paths.write(path, safetensors_bytes(tensors, metadata))


def resume(path: Path, network, optimizer, identity: dict) -> tuple[list[dict], list[dict]]:
    """Load what a run of the same settings left; returns its history and parts, empty where there is nothing to continue."""
    if not path.is_file():
        return [], []
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != json.dumps(identity, sort_keys=True) or "parts" not in metadata:
                print(f"{path.name} belongs to other settings or data: training starts anew", file=sys.stderr)
                return [], []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        print(f"{path.name} is damaged ({error}): training starts anew", file=sys.stderr)
        return [], []
    network.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return json.loads(metadata["history"]), json.loads(metadata["parts"])


def save_run(run: TrainedRun, model: Path, folder: Path, checkpoint: Path | None = None) -> None:
    """Write the weights to the file `model`, history.csv and record.json to `folder`, then drop the checkpoint.

    Of several processes only the first writes.
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    record = run.record
    save_model(
        run.model,
        model,
        name=record["train"]["model"],
        network=record["network"],
        num_classes=record["data"]["num_classes"],
        in_channels=record["data"]["shape"][0],
        image_size=record["data"]["shape"][-1],
        num_groups=record["train"]["num_groups"],
        eps=record["train"]["eps"],
    )
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, run.history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in run.history)
    paths.write(folder / "history.csv", table.getvalue())
    paths.write(folder / "record.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
