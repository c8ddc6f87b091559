"""Every number that the paper prints, in one file: paper/numbers.json. Numbers, not text; the manuscript formats them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

import pandas as pd

from localnorm import paths, scores, stats
from localnorm.arms import ARMS, in_order
from localnorm.comparisons import CLAIMS, PRIMARY, lacks_training, verdict
from localnorm.evaluators import at_best_mean, at_equal_clean, cost_summary, with_fixed_statistics
from localnorm.gather import lender
from localnorm.networks import NETWORKS
from localnorm.params import load_params
from localnorm.settings import CONTROLS, Shrinkage, TrainConfig
from localnorm.tables import read_about, read_history_end, read_lengths, read_table
from localnorm.words import title

__all__ = ["collect", "of_params", "write"]

DIGITS = 6


def collect(
    lengths: Sequence[str] = (),
    studied: Sequence[str] = (),
    controlled: Sequence[str] = (),
    ablated: Mapping[str, int | None] = MappingProxyType({}),
    tuned: Mapping[str, str] = MappingProxyType({}),
) -> dict:
    """The results as one dictionary.

    Args:
        lengths: experiments that differ in how long they train; those that are not published are told of beside the published.
        studied: those with a study of trainings for one image at a time.
        controlled: those with controls of one image at a time, and with fine-tuning for it.
        ablated: those with ablations, and the epochs of these; None: as many as the experiment's.
        tuned: those whose networks have another learning rate than a published experiment's, and that experiment.

    Returns:
        published: names of the experiments that the paper tells of.
        experiments: these, then the other lengths: name -> {title, about, arms: {arm: {metric: {estimate, low, high, seeds, images,
            change: from BN fixed, on the seeds that both have}}}, mixed: the same of a mixed stream, comparisons: a list of rows with
            their verdict and whether the first arm was not trained to the end, streams and ablations: lists of rows {arm, metric,
            estimate, low, high, seeds} with what they vary, strengths: rows {prior, difference: LN prior minus BN prior at that n0,
            noisy, on validation images}, ratio, mcnemar, shifts}; see
            `localnorm.comparisons`. What has too few seeds for an interval has by_seed, a list.
        ablation_epochs: as `ablated`.
        claims: key -> {statement, ours}.
        primary: the primary comparisons, in the order in which they were written down.
        lengths: {experiment, epochs, seeds, train_accuracy: {layer: share}, arms, streams} for each length of training.
        studies: experiment -> {epochs, images, seeds, fixed: {clean, noisy} of BatchNorm with fixed statistics, and two lists of rows
            {variant, statistics, network, prior, clean, noisy}: chosen, with the n0 of the best mean of clean and noisy, and
            equal_clean, with that of the best noisy within a point of fixed's clean, null where none is}. Validation images.
        pilots: the same of the studies that vary the learning rate, each row of chosen with learning_rate, train_accuracy (of the
            last epoch, as trained) and validation_accuracy (BatchNorm with fixed statistics, LocalNorm in batches).
        tuned: experiment -> {learning_rate, seeds, train_accuracy: {layer: share}, against: the published experiment, shared_rate: its
            learning rate, rows: {arm, metric, estimate, shared: with that rate, of the same seeds}, comparisons: the primary ones,
            against BN at the shared rate}; BN's have no other rate.
        controls: experiment -> rows {network, network_label, control, label, strength, clean, noisy, images}, on test images.
        fine_tuned: experiment -> the same of the first of these networks, BatchNorm's, trained on for `epochs` as it is and as others.
        costs: what `localnorm.evaluators.cost_summary` gives.
        figures: path below paper/figures without its ending -> caption.
    """
    summary, compared = read_table("summary", "published"), read_table("comparisons", "published")
    published = list(dict.fromkeys(summary.experiment))
    abouts = {name: read_about(name) for name in dict.fromkeys([*published, *lengths])}
    folder = paths.paper() / "figures"
    pilots = [name for name in studied if _varies_rate(name)]
    return {
        "published": published,
        "experiments": {
            name: _experiment(
                name,
                abouts,
                *(
                    table[table.experiment == name].drop(columns=["experiment", "title"])
                    if name in published
                    else read_table(kind, name)
                    for kind, table in (("summary", summary), ("comparisons", compared))
                ),
            )
            for name in abouts
        },
        "ablation_epochs": dict(ablated),
        "claims": {claim.key: {"statement": claim.statement, "ours": claim.ours} for claim in CLAIMS.values()},
        "primary": [
            {key: getattr(row, key) for key in ("primary", "claim", "first", "second", "metric", "source", "statement")}
            for row in PRIMARY
        ],
        "lengths": _lengths(lengths),
        "studies": {name: _study(name) for name in studied if name not in pilots},
        "pilots": {name: _pilot(name) for name in pilots},
        "tuned": {name: _tuned(name, against) for name, against in tuned.items()},
        "controls": {name: _ways("controls", name) for name in controlled},
        "fine_tuned": {name: _ways("fine_tuning", name) for name in controlled},
        "costs": _rows(cost_summary(read_table("cost"))),
        "figures": {
            file.relative_to(folder).with_suffix("").as_posix(): file.read_text(encoding="utf-8").strip()
            for file in sorted(folder.rglob("*.txt"))
            if (file.parent == folder or file.parent.name in abouts)
            and file.stem != "poor-light"  # of the reports alone
        },
    }


def _experiment(name: str, abouts: dict[str, dict], summary: pd.DataFrame, compared: pd.DataFrame) -> dict:
    return {
        "title": title(abouts[name], abouts.values()),
        "about": abouts[name],
        "arms": _arms(summary),
        "comparisons": _compared(compared),
        "streams": _varied(name, "streams", ["composition", "batch_size"]),
        "mixed": _mixed(name),
        "ablations": _varied(name, "ablations", ["ablation", "value"]),
        "strengths": _at_each_strength(name),
        "ratio": _ratio(name),
        "mcnemar": _mcnemar(name),
        "shifts": _shifts(name),
    }


def _compared(table: pd.DataFrame) -> list[dict]:
    return [
        made | {"verdict": verdict(row), "untrained": bool(row.primary) and lacks_training(row)}
        for made, row in zip(_rows(table), table.itertuples(), strict=True)
    ]


def _arms(summary: pd.DataFrame) -> dict:
    """arm -> metric -> the rest of the row."""
    return {
        arm: {row.pop("metric"): row for row in _rows(table.drop(columns="arm"))}
        for arm, table in summary.groupby("arm", sort=False)
    }


def _at_each_strength(name: str) -> list[dict]:
    """How far LN prior lies ahead of BN prior under noise at one and the same n0, on validation images: means over paired seeds."""
    table = read_table("strengths", name)
    table = table[table.statistics == "prior"]
    ln, bn = (table[table.network == network].set_index(["prior", "seed"]).noisy for network in ("ln", "bn"))
    ahead = (ln - bn).dropna().groupby("prior").mean()  # of the seeds that have both
    return _rows(ahead.rename("difference").reset_index())


def _lengths(experiments: Sequence[str]) -> list[dict]:
    """What the same networks have after more and more epochs."""
    if not experiments:
        return []
    table, abouts = read_lengths(experiments)
    table = table[table.metric.isin(("clean", "noisy"))]
    names = {read_about(name)["epochs"]: name for name in experiments}
    return [
        {
            "experiment": names[epochs],
            "epochs": epochs,
            "seeds": about["seeds"],
            "train_accuracy": about["train_accuracy"],
        }
        | {"arms": _arms(table[table.epochs == epochs].drop(columns="epochs"))}
        | {"streams": _varied(names[epochs], "streams", ["composition", "batch_size"])}
        for epochs, about in abouts.items()
    ]


def _study(name: str) -> dict:
    """What each training gives for one image at a time."""
    table, study = read_table("study", name), load_params(name)["study"]
    return {
        "epochs": study.get("train", {}).get("epochs"),  # null: as many as the main networks
        "images": int(table.images.max()),
        "seeds": int(table.seed.nunique()),
        "fixed": with_fixed_statistics(table).round(6).to_dict(),
        "chosen": _rows(at_best_mean(table).reset_index()),
        "equal_clean": _rows(at_equal_clean(table).reset_index()),
    }


def _varies_rate(name: str) -> bool:
    return any("learning_rate" in variant for variant in load_params(name)["study"]["variants"].values())


def _pilot(name: str) -> dict:
    """What each learning rate gives each network, with how its training ended."""
    about, block = _study(name), load_params(name)
    variants = block["study"]["variants"]
    for row in about["chosen"]:
        ends = [read_history_end(name, row["variant"], seed) for seed in block["study"]["seeds"]]
        row["learning_rate"] = variants[row["variant"]].get("learning_rate", block["train"]["learning_rate"])
        for key in ("train_accuracy", "validation_accuracy"):
            row[key] = _plain(sum(end[key] for end in ends) / len(ends))
    return about


def _tuned(name: str, against: str) -> dict:
    """What another learning rate gives, beside the same seeds with the rate that all networks of an experiment share."""
    about = read_about(name)
    rows = []
    for metric in ("clean", "noisy"):
        own, shared = (scores.per_seed(read_table("scores", each), metric).unstack() for each in (name, against))
        shared = shared[own.columns].dropna()
        for arm in in_order({*own.index, *(arm for arm in shared.index if ARMS[arm].network == "bn")}):
            found = (table.mean(axis=1).get(arm, math.nan) for table in (own, shared))
            rows.append({"arm": arm, "metric": metric} | dict(zip(("estimate", "shared"), found, strict=True)))
    rates = {
        key: load_params(each)["train"]["learning_rate"]
        for key, each in (("learning_rate", name), ("shared_rate", against))
    }
    kept = {key: about[key] for key in ("seeds", "train_accuracy")}
    return {
        "against": against,
        **rates,
        **kept,
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        "comparisons": [row for row in _compared(read_table("own_rate", name)) if row["primary"]],
    }


def _ways(kind: str, name: str) -> list[dict]:
    table = read_table(kind, name)
    rows = table[table.part == "test"].drop(columns=["part", "chosen"])
    labels = {"label": rows.control.map(CONTROLS), "network_label": rows.network.map(lambda key: NETWORKS[key].label)}
    return _rows(rows.assign(**labels))


def _varied(name: str, kind: str, by: list[str]) -> list[dict]:
    """Clean and noisy accuracy of each arm for each combination of what a table varies; empty where it was not measured."""
    if not (paths.results(name) / f"{kind}.csv").is_file():
        return []
    return _rows(scores.estimates(read_table(kind, name), by).rename(columns={"accuracy": "estimate"}))


def _mixed(name: str) -> dict:
    """arm -> metric -> where it stands on a mixed stream; empty where that was not measured."""
    if not (paths.results(name) / "streams.csv").is_file():
        return {}
    return _arms(scores.mixed_stream(read_table("streams", name)).rename(columns={"accuracy": "estimate"}))


def _ratio(name: str) -> dict | None:
    file = paths.results(name) / "ratio.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _mcnemar(name: str) -> dict | None:
    """Of all conditions and seeds, how many set LN batch and BN batch apart on single images, after Holm's correction."""
    if not (paths.results(name) / "mcnemar.csv").read_text(encoding="utf-8").count("\n") > 1:
        return None  # an experiment without both arms
    table = read_table("mcnemar", name)
    apart = table[table.p_holm < 0.05]
    return {
        "tests": len(table),
        "first": int((apart.only_first > apart.only_second).sum()),
        "second": int((apart.only_first < apart.only_second).sum()),
    }


def _shifts(name: str) -> dict | None:
    """Claim C1: how many noises and levels move the statistics of a test batch beyond those of clean batches."""
    if not (paths.results(name) / "shifts.csv").is_file():
        return None
    table = read_table("shifts", name)
    beyond, clean = stats.beyond_clean(table), table[table.level == 0].iloc[0]
    return {
        "conditions": len(beyond),
        "beyond": int(beyond.sum()),
        "batch_size": int(clean.batch_size),
        "clean": round(float(clean.distance), DIGITS),
        "noisy": round(float(table[table.level > 0].distance.median()), DIGITS),
    }


def _rows(table: pd.DataFrame) -> list[dict]:
    """Rows as JSON takes them: numbers of six digits, null where there is none, and the seeds where they are too few for an interval."""
    rows = []
    for row in table.to_dict("records"):
        seeds = [float(value) for value in row.pop("by_seed", "").split()]
        plain = {key: _plain(value) for key, value in row.items()}
        rows.append(plain | ({"by_seed": seeds} if len(seeds) > 1 and plain["low"] is None else {}))
    return rows


def _plain(value):
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
    return value.item() if hasattr(value, "item") else value


def of_params() -> dict:
    """What `collect` gives of the experiments that params.yaml lists for the paper, and how their shrunk networks are trained."""
    params = load_params()
    lengths, told = params.get("lengths", []), {*params["published"], *params.get("lengths", [])}
    studied, ablated = ([name for name in params.get(key, []) if name in told] for key in ("studied", "ablated"))
    tuned = {name: lender(name) for name in params.get("tuned", [])}
    if alone := [name for name, of in tuned.items() if of is None]:
        raise ValueError(
            f"params.yaml: {alone[0]} is in the list tuned, and no published experiment ({', '.join(params['published'])}) has its data "
            "and training but for the learning rate; make its other settings those of one, or take it off the list"
        )
    epochs = {name: params[name]["ablations"].get("train", {}).get("epochs") for name in ablated}
    made = collect(lengths, studied, params.get("controlled", []), epochs, tuned)
    trainings = {name: TrainConfig.from_params(params[name]["train"]) for name in params["published"]}
    return made | {"shrunk": {name: asdict(Shrinkage(**each.shrunk)) for name, each in trainings.items()}}


def write() -> None:
    """Write paper/numbers.json."""
    text = json.dumps(of_params(), indent=1, ensure_ascii=False)
    paths.write(paths.paper() / "numbers.json", text + "\n")
