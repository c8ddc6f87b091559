"""Collect the runs of an experiment from the files that training and answers wrote, and check that they can be compared."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from localnorm import paths, scores
from localnorm.arms import NETWORKS, arm_of
from localnorm.params import load_params
from localnorm.scores import Answers, read_answers

__all__ = ["Runs", "collect", "lender", "write_results"]

OF_ONE_TRAINING = ("shrunk",)  # settings that only the kind of training of this name reads
OTHER_RATE = ("learning_rate",)  # what sets a network that another experiment lends apart
PAIR = ("bn", "ln")  # what every experiment compares: a seed counts once both have it


@dataclass(frozen=True)
class Runs:
    """All runs of an experiment that can be compared.

    Args:
        experiment: its name in params.yaml.
        answers: (network, seed) -> what the network answered.
        table: one row per training run: how it was trained, how long, where, and its last accuracies.
        streams: one row per network, seed, statistics, composition, batch size and condition.
        strengths: one row per network, seed and strength that it was offered, with accuracies on validation images.
        about: what the experiment's captions say of data and training.
    """

    experiment: str
    answers: dict[tuple[str, int], Answers]
    table: pd.DataFrame
    streams: pd.DataFrame
    strengths: pd.DataFrame
    about: dict


def lender(experiment: str) -> str | None:
    """The published experiment whose data and training are this one's but for the learning rate: it lends the networks that this one
    does not train. None if there is none."""

    def alike(name: str) -> tuple[dict, dict]:
        block = load_params(name)
        return block["prepare"], {
            key: value for key, value in block["train"].items() if key not in (*OTHER_RATE, *OF_ONE_TRAINING)
        }

    others = [name for name in load_params()["published"] if name != experiment]
    return next((name for name in others if alike(name) == alike(experiment)), None)


def collect(
    experiment: str, networks: list[str], seeds: list[int], lent: Mapping[str, str] = MappingProxyType({})
) -> Runs:
    """Read the runs of an experiment: the seeds that both BatchNorm and LocalNorm have been trained and asked with.

    Any other network takes part with those of these seeds that it has, so that adding one never removes seeds from the pair.

    Args:
        lent: network -> the experiment that it is taken from, where `experiment` does not train it: one with another learning rate.

    Raises:
        FileNotFoundError: no seed has all its runs yet.
        ValueError: the runs were not trained alike on the same images, or not asked under the same conditions.
    """
    homes = dict.fromkeys(networks, experiment) | lent
    networks = list(homes)
    folders = {
        (network, seed): paths.run(home, paths.run_name(home, network, seed))
        for network, home in homes.items()
        for seed in seeds
    }
    done = {key for key, folder in folders.items() if (folder / "answers.csv").is_file()}
    needed = [network for network in networks if network in PAIR] or networks
    complete = [seed for seed in seeds if all((network, seed) in done for network in needed)]
    if not complete:
        raise FileNotFoundError(
            f"no seed of {experiment} has been trained and asked with each of {', '.join(needed)}; run: dvc repro "
            f"scores@{experiment}"
        )
    if len(complete) < len(seeds):
        print(f"{len(complete)} of {len(seeds)} seeds are there: {', '.join(map(str, complete))}")
    for network in networks:
        if lacking := [seed for seed in complete if (network, seed) not in done]:
            print(f"{network} has not been asked with seed {', '.join(map(str, lacking))}")
    folders = {key: folder for key, folder in folders.items() if key in done and key[1] in complete}
    answers = {key: read_answers(folder, *key) for key, folder in folders.items()}
    records = {key: json.loads((folder / "record.json").read_text(encoding="utf-8")) for key, folder in folders.items()}
    names = {key: folder.name for key, folder in folders.items()}
    _check_trained_alike(experiment, records, names, OTHER_RATE if lent else ())
    _check_asked_alike(experiment, answers, names)
    histories = {key: pd.read_csv(folder / "history.csv") for key, folder in folders.items()}
    table = pd.DataFrame([_run_row(names[key], key, records[key], histories[key]) for key in folders])
    tables = {
        name: _stacked({key: pd.read_csv(folder / f"{name}.csv") for key, folder in folders.items()})
        for name in ("streams", "strengths")
    }
    strengths = tables["strengths"]
    if len(strengths):  # runs that were asked before there was "gated" say by fixed_last whose strengths they are
        kinds = strengths.fixed_last.map(lambda count: "last_fixed" if count else "prior")
        given = strengths.pop("statistics") if "statistics" in strengths else kinds
        strengths.insert(2, "statistics", given.fillna(kinds))
    return Runs(experiment, answers, table, about=_about(records, table, answers), **tables)


def _run_row(name: str, key: tuple[str, int], record: dict, history: pd.DataFrame) -> dict:
    network, seed = key
    train, last = record["train"], history.iloc[-1]
    return {
        "run": name,
        "model": train["model"],
        "network": network,
        "seed": seed,
        "epochs": train["epochs"],
        "num_groups": train["num_groups"],
        "batch_size": train["batch_size"],
        "precision": record.get("precision", train["precision"]),  # older records have only the one that was asked for
        "parameters": record["parameters"],
        "train_accuracy": last.train_accuracy,
        "validation_accuracy": last.validation_accuracy,
        "seconds": record["seconds"],
        "images_per_second": record["images_per_second"],
        "device": record["device"],
        "torch": record["versions"]["torch"],
        "revision": record["revision"],
    }


def _stacked(tables: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """The tables of all runs under each other, with two columns in front that say whose a row is."""
    tables = {key: table for key, table in tables.items() if len(table)}
    if not tables:
        return pd.DataFrame()
    parts = [
        pd.concat([pd.DataFrame({"network": key[0], "seed": key[1]}, table.index), table], axis=1)
        for key, table in tables.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _about(records: dict, table: pd.DataFrame, answers: dict[tuple[str, int], Answers]) -> dict:
    """What captions and tables say of an experiment: numbers and names, no sentences."""
    data = next(iter(records.values()))["data"]
    images: dict[str, int] = {}
    for (network, _), each in answers.items():
        for statistics, rows in each.table[each.table.level > 0].groupby("statistics", sort=False):
            images[arm_of(network, statistics).label] = int(rows.images.max())
    every = pd.concat(each.table for each in answers.values())
    noisy = every[every.level > 0]
    trained = {NETWORKS[network].label: rows for network, rows in table.groupby("network", sort=False)}
    return {
        **{key: data[key] for key in ("title", "provenance", "num_classes", "shape", "counts")},
        "model": table.model[0],
        "epochs": int(table.epochs[0]),
        "batch_size": int(table.batch_size[0]),
        "num_groups": int(table.num_groups[0]),
        "seeds": int(table.seed.nunique()),
        "devices": sorted(set(table.device)),
        "torch": sorted(set(table.torch)),
        "precision": sorted(set(table.precision)),
        "minutes": round(float(table.seconds.sum()) / 60, 1),
        "train_accuracy": {label: round(float(rows.train_accuracy.mean()), 6) for label, rows in trained.items()},
        "validation_accuracy": {
            label: round(float(rows.validation_accuracy.mean()), 6) for label, rows in trained.items()
        },
        "clean_images": int(every[every.level == 0].images.max()),
        "noisy_images": max(images.values(), default=0),
        "images_of_arm": images,
        "conditions": len(noisy.drop_duplicates(["suite", "noise", "level"])),
        "noises": {suite: int(rows.noise.nunique()) for suite, rows in noisy.groupby("suite", sort=False)},
        "levels": {
            suite: int(rows.groupby("noise")["level"].nunique().max())
            for suite, rows in noisy.groupby("suite", sort=False)
        },
        "one_class": sorted(label for label, share in _commonest(answers).items() if share >= ONE_CLASS),
    }


ONE_CLASS = 0.9  # of an arm's answers: from there on its accuracy is little but that class's share of the images


def _commonest(answers: dict[tuple[str, int], Answers]) -> dict[str, float]:
    """arm -> the share of the commonest class among its answers, in the seed where that is smallest."""
    least: dict[str, float] = {}
    for (network, _), each in answers.items():
        for statistics in each.table.statistics.unique():
            label = arm_of(network, statistics).label
            least[label] = min(least.get(label, 1.0), scores.commonest(each, statistics))
    return least


def _check_trained_alike(
    experiment: str, records: dict[tuple[str, int], dict], names: dict[tuple[str, int], str], free: Collection[str]
) -> None:
    """Runs made at different times, or on different machines, are one experiment only with the same settings and images.

    Args:
        free: settings in which two networks may differ.
    """
    first, of_network = next(iter(records)), {}
    for key in records:
        unread = [part for part in OF_ONE_TRAINING if part != NETWORKS[key[0]].training]
        _check_pair(experiment, records, names, (of_network.setdefault(key[0], key), key), left_out=unread)
        _check_pair(experiment, records, names, (first, key), left_out=(*OF_ONE_TRAINING, *free))


def _check_pair(experiment: str, records: dict, names: dict, pair: tuple, left_out: Collection[str]) -> None:
    for part in ("train", "data"):
        a, b = (_without_date(records[key][part]) for key in pair)
        if changed := sorted(key for key in (a.keys() | b.keys()) - {*left_out} if a.get(key) != b.get(key)):
            raise ValueError(
                f"the runs of {experiment} must be trained with the same settings on the same images, but "
                f"{' and '.join(names[key] for key in pair)} differ in {', '.join(f'{part}.{key}' for key in changed)}; run: dvc repro "
                f"scores@{experiment}"
            )


def _without_date(part: dict) -> dict:
    provenance = {key: value for key, value in part.get("provenance", {}).items() if key != "date"}
    return part | {"provenance": provenance}


def _check_asked_alike(
    experiment: str, answers: dict[tuple[str, int], Answers], names: dict[tuple[str, int], str]
) -> None:
    """The same test images in the same order, and for each arm the same conditions on as many images in every seed."""
    first, one = next(iter(answers.items()))
    expected: dict[tuple[str, str], tuple[tuple[str, int], list]] = {}
    for key, each in answers.items():
        if not np.array_equal(one.labels, each.labels):
            raise ValueError(
                f"the runs of {experiment} must be asked about the same test images in the same order, but the true "
                f"classes of {names[first]} and {names[key]} differ; run: "
                f"dvc repro scores@{experiment}"
            )
        for statistics, rows in each.table.groupby("statistics", sort=False):
            asked = sorted(rows[["suite", "noise", "level", "images"]].itertuples(index=False, name=None))
            other, known = expected.setdefault((key[0], statistics), (key, asked))
            if changed := sorted(set(known) ^ set(asked)):
                suite, noise, level, images = changed[0]
                raise ValueError(
                    f"the runs of {experiment} must be asked under the same conditions, but of "
                    f"{names[other]} and {names[key]} only one has "
                    f"{noise} ({suite}) at level {level:g} on {images} images with {statistics} statistics; run: dvc "
                    f"repro scores@{experiment}"
                )


def write_results(runs: Runs) -> None:
    """Write the tidy tables of an experiment to data/results/<experiment>."""
    folder = paths.results(runs.experiment)
    table = scores.score(runs.answers.values())
    tables = {
        "scores": table,
        "summary": scores.summarise(table, runs.answers),
        "runs": runs.table,
        "streams": runs.streams,
        "strengths": runs.strengths,
    }
    for name, rows in tables.items():
        paths.write_table(folder / f"{name}.csv", rows)
    paths.write(folder / "about.json", json.dumps(runs.about, indent=1, sort_keys=True) + "\n")
