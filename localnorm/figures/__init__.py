"""Tables, networks and images to figures, in one style; a module a figure, so that a stage depends on its own figure alone."""

from localnorm.figures.ablations import plot_ablations, plot_batches
from localnorm.figures.accuracy import plot_accuracy
from localnorm.figures.calibration import plot_calibration
from localnorm.figures.captions import (
    describe,
    experiments_with_results,
    intervals,
    scored_images,
    seed_count,
    seeds_by_ablation,
    title,
    trained_on,
)
from localnorm.figures.cost import plot_cost
from localnorm.figures.fixed_against_batch import plot_fixed_against_batch
from localnorm.figures.groups import group_of_each_image, plot_groups
from localnorm.figures.network import plot_network, trace_network
from localnorm.figures.one_image import plot_one_image
from localnorm.figures.photographs import noise_wall, noisy_photographs, photograph, plot_noises, rgb_histograms
from localnorm.figures.poor_light import chosen_strengths, darken, folder_images, plot_poor_light, top_classes
from localnorm.figures.shifts import plot_shifts
from localnorm.figures.strengths import plot_strengths
from localnorm.figures.style import ARM_STYLES, save
from localnorm.figures.summary import plot_summary
from localnorm.figures.teaser import plot_teaser

__all__ = [
    "ARM_STYLES",
    "chosen_strengths",
    "darken",
    "describe",
    "experiments_with_results",
    "folder_images",
    "group_of_each_image",
    "intervals",
    "noise_wall",
    "noisy_photographs",
    "photograph",
    "plot_ablations",
    "plot_accuracy",
    "plot_batches",
    "plot_calibration",
    "plot_cost",
    "plot_fixed_against_batch",
    "plot_groups",
    "plot_network",
    "plot_noises",
    "plot_one_image",
    "plot_poor_light",
    "plot_shifts",
    "plot_strengths",
    "plot_summary",
    "plot_teaser",
    "rgb_histograms",
    "save",
    "scored_images",
    "seed_count",
    "seeds_by_ablation",
    "title",
    "top_classes",
    "trace_network",
    "trained_on",
]
