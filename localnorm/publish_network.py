"""Publishes a trained network: one file in data/networks with its weights, where its statistics come from, and what it scored.

`localnorm.published_networks` reads such files.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from localnorm import paths, scores
from localnorm.answers import predict_arguments, store_statistics
from localnorm.arms import STATISTICS, arm_of
from localnorm.data.dataset import Dataset, load
from localnorm.models import load_model
from localnorm.params import load_params
from localnorm.published_networks import PLACE, count_right, load_published
from localnorm.settings import AnswersConfig

__all__ = ["checked_images", "publish_network"]

LIMIT = 60_000_000  # bytes of all published networks together: every clone has them
CHECKED = 512  # test images at most that the published file itself is asked about, seconds on a CPU
SEVERAL_FORWARDS = ("vote", "companions")


def publish_network(experiment: str, network: str, statistics: str, seed: int) -> Path:
    """Write data/networks/<experiment>-<network>-<statistics>.safetensors of one trained and asked run.

    Weights are rounded to half precision; stored statistics stay in float32. Accuracies come from the run's answers. Beside them the
    file keeps how many of a few hundred clean test images it answers rightly itself, so that a test can ask it again.

    Args:
        experiment: a name in params.yaml.
        network: a key of `localnorm.arms.NETWORKS`.
        statistics: a key of `localnorm.arms.STATISTICS` under which the run was asked.
        seed: of the run.

    Raises:
        FileNotFoundError: the run was not trained or not asked, or its images are not prepared.
        ValueError: statistics that the run was not asked under or that need several forwards; images prepared anew since the
            training; weights that half precision cannot hold; more than LIMIT bytes of published networks.
    """
    arm = arm_of(network, statistics)
    if statistics in SEVERAL_FORWARDS:
        raise ValueError(
            f"statistics {statistics!r} need several forwards per image, which a network cannot keep as its mode; publish it with others"
        )
    run = paths.run_name(experiment, network, seed)
    folder = paths.run(experiment, run)
    if not (folder / "answers.csv").is_file():
        raise FileNotFoundError(
            f"{run} has no answers yet; ask it first: dvc repro answers@{experiment}-{network}-{seed}"
        )
    answers = scores.read_answers(folder, network, seed)
    rows = answers.table[answers.table.statistics == statistics]
    if rows.empty:
        asked = ", ".join(answers.table.statistics.unique())
        raise ValueError(f"{run} was not asked under statistics {statistics!r}; it was under {asked}")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    dataset = load(paths.prepared(experiment))
    _check_same_images(run, record["data"], dataset)
    config = AnswersConfig.from_params(load_params(experiment)["answers"])
    weights = paths.model(experiment, run)
    model = load_model(weights)
    if STATISTICS[statistics].stored:
        model = store_statistics(model, dataset, replace(config, statistics={network: [statistics]}), network)
    strength = {key: rows[key].iloc[0].item() for key in ("prior", "fixed_last") if rows[key].notna().all()}
    if "fixed_last" in strength:
        strength["fixed_last"] = int(strength["fixed_last"])

    accuracy = {}
    for metric in ("clean", "noisy"):
        share = scores.per_seed(rows.assign(arm=arm.label, seed=seed), metric)
        if len(share):
            of_metric = rows[rows.level > 0] if metric == "noisy" else rows[rows.level == 0]
            accuracy[metric] = {"share": round(share.item(), 6), "images": int(of_metric.images.max())}
    noises = rows.loc[rows.level > 0, ["suite", "noise"]].drop_duplicates()
    provenance = record["data"]["provenance"]
    with safe_open(weights, "pt") as file:
        built_by = json.loads(file.metadata()["network"])  # the arguments of make_model
    about = {
        "run": run,
        "network": built_by,
        "arm": arm.label,
        "statistics": predict_arguments(statistics, **strength),
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "data": record["data"],
        "training": {
            "seed": seed,
            **{key: record["train"][key] for key in ("epochs", "batch_size", "num_groups", "pretrained")},
            **{key: record[key] for key in ("parameters", "device", "precision", "versions", "revision")},
        },
        "accuracy": accuracy,
        "noises": [f"{noise} ({suite})" for suite, noise in noises.itertuples(index=False, name=None)],
        "licence": f"weights: MIT, as this package; the images they were trained on: {provenance['licence']}",
    }
    tensors = _rounded(model)
    file = paths.project() / PLACE / f"{experiment}-{network}-{statistics}.safetensors"
    about["checked"] = _check(tensors, about, dataset, config.batch_size)
    content = _bytes(tensors, about)
    others = sum(each.stat().st_size for each in file.parent.glob("*.safetensors") if each != file)
    if others + len(content) > LIMIT:
        raise ValueError(
            f"published networks have at most {LIMIT / 1e6:.0f} MB together, since every clone holds them; the others have "
            f"{others / 1e6:.1f} MB and {file.stem} {len(content) / 1e6:.1f} MB; remove one of {file.parent}, or publish a smaller network"
        )
    return paths.write(file, content)


def checked_images(dataset: Dataset, count: int = CHECKED) -> tuple[Tensor, Tensor]:
    """The test images that a published file is asked about, uint8 (N, C, H, W), and their labels: always the same ones."""
    labels = torch.as_tensor(dataset.labels("test"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return torch.as_tensor(dataset.images("test"))[order], labels[order]


def _check_same_images(run: str, trained: dict, dataset: Dataset) -> None:
    keys = ("checksum", "split")
    now = {"shape": list(dataset.shape), **{key: dataset.provenance[key] for key in keys}}
    then = {"shape": trained["shape"], **{key: trained["provenance"][key] for key in keys}}
    if changed := [key for key in now if now[key] != then[key]]:
        raise ValueError(
            f"{run} was trained on other images than are prepared now (other {', '.join(changed)}); train it again, or prepare "
            "those images"
        )


def _rounded(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with weights in half precision, and buffers (stored statistics) as they are."""
    weights = {name for name, _ in model.named_parameters()}
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.cpu().contiguous()
        tensors[name] = value.half() if name in weights else value
        if value.is_floating_point() and not tensors[name].isfinite().all():
            raise ValueError(
                f"{name} has values that half precision cannot hold, up to {value.abs().max().item():.3g}, and it ends at 65504"
            )
    return tensors


def _bytes(tensors: dict[str, Tensor], about: dict) -> bytes:
    return safetensors_bytes(tensors, {"published": json.dumps(about, sort_keys=True)})


def _check(tensors: dict[str, Tensor], about: dict, dataset: Dataset, batch_size: int) -> dict:
    """What the file that is about to be published answers to clean test images, read back as a user reads it."""
    images, labels = checked_images(dataset)
    count = len(labels) - len(labels) % batch_size or len(labels)
    with tempfile.TemporaryDirectory() as folder:
        file = paths.write(Path(folder) / "unpublished.safetensors", _bytes(tensors, about | {"checked": {}}))
        network = load_published(file)
        size = min(batch_size, count)
        right = count_right(network, images[:count], labels[:count], size)
    return {"images": count, "right": right, "batch_size": size}
