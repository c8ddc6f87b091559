"""Model cards: what each published network was trained on, what it scored, and what it must not be used for."""

from pathlib import Path

from localnorm import paths
from localnorm.arms import LAYERS, NETWORKS, STATISTICS, arm_of
from localnorm.published_networks import PLACE, read_about
from localnorm.words import percent

__all__ = ["card", "write"]

CLASSES_SHOWN = 20
DRAWN = {  # training -> what each step draws
    "drawn": "; the images per group are drawn for each step",
    "shrunk": "; each image's own statistics, shrunk towards its group's by a strength that is drawn for each step",
}


def card(name: str, about: dict) -> str:
    """The model card of a published network, in Markdown.

    Args:
        name: of its file.
        about: what `localnorm.published_networks.read_about` gives.
    """
    data, training, network = about["data"], about["training"], about["network"]
    arm = next(arm for arm in _arms(network["network"]) if arm.label == about["arm"])
    statistics = STATISTICS[arm.statistics]
    provenance, (channels, height, width) = data["provenance"], data["shape"]
    layer = LAYERS[NETWORKS[arm.network].layer]
    groups = f" in {training['num_groups']} groups" if NETWORKS[arm.network].has_groups else ""
    drawn = DRAWN.get(NETWORKS[arm.network].training, "")
    lossy = f" ({provenance['note']})" if provenance["lossy"] else ""
    rows = {
        "network": f"{network['name']} with {layer}, {training['parameters']:,} parameters",
        "statistics when it predicts": f"{statistics.text}{_strength(about['statistics'])}",
        "trained on": f"{data['title']}{lossy}: {data['counts']['train']:,} images of {width} x {height} pixels, {_channels(channels)}",
        "training": f"{training['epochs']} epochs, batches of {training['batch_size']}{groups}{drawn}; seed {training['seed']}; "
        f"{'from ImageNet weights' if training['pretrained'] else 'from fresh weights'}",
        "made on": f"{training['device']}, {training['precision']}, torch {training['versions']['torch']}",
        "made by": f"localnorm {training['versions']['localnorm']}, revision {training['revision'] or 'unknown'}",
        "pixels": f"(x - mean) / std, x from 0 to 255; mean {_numbers(about['mean'])}; std {_numbers(about['std'])}",
        "classes": _classes(about["classes"]),
        "licence": about["licence"],
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return "\n\n".join(
        [
            f"<!-- written by `python -m localnorm.render model-cards` -->\n# {name}",
            f"{about['arm']}: a classifier of {data['title']}, published with the results of this package.",
            f"| | |\n|---|---|\n{table}",
            f"## What it scored\n\n{_scores(about)}",
            f"## What it must not be used for\n\n{_limits(about, statistics.one_image)}",
            f'## Use\n\n```python\nfrom localnorm import load_published\n\nnetwork = load_published("{name}")\n'
            f"pixels = network.standardise(images)  # uint8 (N, {channels}, {height}, {width})\n"
            f"logits = network.model(pixels)  # (N, {len(about['classes'])})\n```\n",
        ]
    )


def write() -> list[Path]:
    """Write data/networks/<name>.md for each published network of the project."""
    files = sorted((paths.project() / PLACE).glob("*.safetensors"))
    return [paths.write(file.with_suffix(".md"), card(file.stem, read_about(file))) for file in files]


def _arms(network: str):
    for key in STATISTICS:
        try:
            yield arm_of(network, key)
        except ValueError:
            continue


def _strength(statistics: dict) -> str:
    words = []
    if statistics.get("prior") is not None:
        words.append(f"n0 = {statistics['prior']:g} positions")
    if statistics.get("fixed_last"):
        words.append(f"last layers: {statistics['fixed_last']}")
    return f" ({'; '.join(words)})" if words else ""


def _channels(count: int) -> str:
    return "grey" if count == 1 else f"{count} channels"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _classes(names: list[str]) -> str:
    shown = ", ".join(names[:CLASSES_SHOWN])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > CLASSES_SHOWN else "")


def _scores(about: dict) -> str:
    checked = about["checked"]
    lines = ["| test images | accuracy in percent | images |", "|---|--:|--:|"]
    lines += [
        f"| {metric} | {percent(found['share'])} | {found['images']:,} |" for metric, found in about["accuracy"].items()
    ]
    noises = (
        f" Noisy is the mean over {len(about['noises'])} noises: {', '.join(about['noises'])}."
        if about["noises"]
        else ""
    )
    return "\n".join(lines) + (
        f"\n\nThese are of the network before its weights were rounded to half precision.{noises} The file itself answers "
        f"{checked['right']:,} of {checked['images']:,} clean test images rightly, in batches of {checked['batch_size']}."
    )


def _limits(about: dict, one_image: bool) -> str:
    limits = [
        "Any decision about people, their property or their safety. It was made to study normalisation layers; nobody examined "
        "it for such a use.",
        f"Images of other things than its {len(about['classes'])} classes. It names one of them whatever it is shown.",
        f"Images unlike {about['data']['title']}: another size, crop, camera or preparation. Its accuracy there is unknown.",
        "Evidence on the original paper's networks: these were trained anew, with other settings.",
    ]
    if not one_image:
        limits.append(
            "Images that come one at a time or in mixed company. Its statistics are those of the test batch, so an answer depends "
            "on the images beside it."
        )
    return "\n".join(f"- {limit}" for limit in limits)
