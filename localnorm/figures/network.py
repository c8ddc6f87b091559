"""A network with its normalisation layers, drawn from the graph that runs, not from a picture of it."""

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from localnorm.figures.style import arrow, new_figure
from localnorm.layers import LocalNorm

__all__ = ["Step", "caption", "plot_network", "trace_network"]


# what a drawing shows of an operation: its colour, edge, hatch and height as a share of the feature map's
LOOKS = {
    "conv": ("0.75", ""),
    "norm": ("#0072B2", ""),
    "relu": ("white", ""),
    "fc": ("0.35", ""),
    "pool": ("white", "...."),
    "add": ("white", ""),
}
MODULES = ((LocalNorm, "norm"), (nn.Conv2d, "conv"), (nn.Linear, "fc"), (nn.ReLU, "relu"))
FUNCTIONS = {"relu": "relu", "add": "add", "iadd": "add", "mean": "pool"}


@dataclass(frozen=True)
class Step:
    """One operation of a network.

    Args:
        name: of the operation in the graph.
        kind: a key of LOOKS.
        text: what a label says of it.
        block: the residual block that it belongs to ("blocks.3"), "" outside of one.
        shape: of its result.
        sources: names of the operations whose results it takes.
    """

    name: str
    kind: str
    text: str
    block: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]


class _Tracer(fx.Tracer):
    """Follows a network into its blocks and takes a norm layer as one operation."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, LocalNorm) or super().is_leaf_module(module, qualified_name)


def trace_network(network: nn.Module, images: torch.Tensor, blocks: str = "blocks") -> list[Step]:
    """The operations of a network in the order in which they run.

    Args:
        network: of LocalNorm, convolutions, ReLU, additions, pooling and linear layers, which torch.fx can trace.
        images: (B, C, H, W), sent through it once for the shapes; at least as many as there are groups.
        blocks: the name of the network's list of residual blocks.

    Raises:
        ValueError: an operation that this module does not know how to draw.
    """
    graph = fx.GraphModule(network, _Tracer().trace(network))
    with torch.no_grad():
        ShapeProp(graph).propagate(images)
    steps = []
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        inside = [path for path in node.meta.get("nn_module_stack", {}) if path.rpartition(".")[0] == blocks]
        sources = tuple(str(source) for source in node.all_input_nodes)
        shape = tuple(node.meta["tensor_meta"].shape)
        steps.append(Step(node.name, *_look(network, node), (inside or [""])[0], shape, sources))
    return steps


def _look(network: nn.Module, node: fx.Node) -> tuple[str, str]:
    """(kind, label) of an operation."""
    if node.op != "call_module":
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if name in FUNCTIONS:
            return FUNCTIONS[name], {"relu": "ReLU", "add": "+", "iadd": "+", "mean": "average pool"}[name]
        raise ValueError(f"no look for the operation {name!r} ({node.name}); a drawing knows {', '.join(FUNCTIONS)}")
    module = network.get_submodule(node.target)
    for kind, name in MODULES:
        if isinstance(module, kind):
            return name, _label(module)
    known = ", ".join(kind.__name__ for kind, _ in MODULES)
    raise ValueError(f"no look for the layer {node.target!r}, a {type(module).__name__}; a drawing knows {known}")


def _label(module: nn.Module) -> str:
    if isinstance(module, LocalNorm):
        return f"LocalNorm\n$K={module.num_groups}$\n$\\gamma,\\beta$: {module.num_groups} × {module.num_features}"
    if isinstance(module, nn.Conv2d):
        stride = f"\nstride {module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]}×{module.kernel_size[1]}\n{module.out_channels} channels{stride}"
    return f"FC {module.out_features}" if isinstance(module, nn.Linear) else "ReLU"


def plot_network(steps: list[Step], block: str) -> Figure:
    """Draw a whole network as a strip of bars, one per operation and as high as its feature map, and one block with every operation named.

    Args:
        steps: what `trace_network` gives; the last two are pooling and a linear layer.
        block: the block that is shown large; one that changes the size shows the most.

    Raises:
        ValueError: the network has no such block.
    """
    inside = [step for step in steps if step.block == block]
    if not inside:
        known = ", ".join(dict.fromkeys(step.block for step in steps if step.block))
        raise ValueError(f"unknown block {block!r}; the network has {known}")
    figure, axes = new_figure(2, 1, 3.0, gridspec_kw={"height_ratios": [1, 1.15]})
    _draw_strip(axes[0, 0], steps, block)
    _draw_block(axes[1, 0], inside)
    return figure


WIDTHS = {"conv": 1.5, "norm": 1.0, "relu": 0.4, "add": 0.6, "pool": 1.5, "fc": 1.5}


def _draw_strip(axis: Axes, steps: list[Step], chosen: str) -> None:
    """Operations on the way through, left to right; a shortcut's own convolution stands below, a shortcut is an arc."""
    widest = max(step.shape[-1] for step in steps if len(step.shape) == 4)
    x, spans = 0.0, {}
    for step in steps:
        height = 7 * (step.shape[-1] / widest) ** 0.6 if len(step.shape) == 4 else 1.6
        aside = _is_aside(step, steps)
        width = WIDTHS[step.kind]
        left = x - WIDTHS["relu"] - 0.15 if aside else x
        bottom = -6.4 if aside else -height / 2
        colour, hatch = LOOKS[step.kind]
        bar = Rectangle((left, bottom), width, 1.8 if aside else height, facecolor=colour, edgecolor="0.3", hatch=hatch)
        bar.set(linewidth=0.4)
        axis.add_patch(bar)
        spans[step.name] = (left, left + width, height)
        if not aside:
            x += width + 0.15
        if step.block and step is not steps[-1] and step.kind == "add":
            x += 0.5
    blocks: dict[str, list[Step]] = {}
    for step in steps:
        if step.block:
            blocks.setdefault(step.block, []).append(step)
    stages: dict[tuple, list[list[Step]]] = {}  # blocks with a result of the same size
    for inside in blocks.values():
        stages.setdefault(inside[-1].shape[1:], []).append(inside)
    for (channels, *side), stage in stages.items():
        left, right = spans[stage[0][0].name][0], spans[stage[-1][-1].name][1]
        text = f"{len(stage)} blocks: {channels} channels, {'×'.join(map(str, side))}"
        axis.text((left + right) / 2, 4.6, text, ha="center", va="bottom", fontsize=7)
        axis.plot([left + 0.5, right - 0.5], [4.3, 4.3], color="0.4", linewidth=0.8)
    large = [step for step in steps if step.block == chosen]
    left, right = (spans[large[0].name][0] - 0.25, spans[large[-1].name][1] + 0.25)
    axis.add_patch(Rectangle((left, -6.8), right - left, 10.7, fill=False, edgecolor="#D55E00", linewidth=1.2))
    for step, side in ((steps[0], -1), *((step, {"pool": -1, "fc": 1}[step.kind]) for step in steps[-2:])):
        left, right, _ = spans[step.name]
        at = steps.index(step)  # the text is wider than its box, and clear of the boxes before it
        height = max(spans[near.name][2] for near in steps[max(0, at - 4) : at + 1])
        text, va = step.text.replace(" ", "\n"), "top" if side < 0 else "bottom"
        axis.text((left + right) / 2, side * (height / 2 + 0.4), text, ha="center", va=va, fontsize=6)
    axis.set(xlim=(-1.5, x + 1.5), ylim=(-7, 6))
    axis.axis("off")


def _is_aside(step: Step, steps: list[Step]) -> bool:
    """Whether an operation lies on a shortcut: a convolution that goes straight into an addition, and not as its last one."""
    later = next((other for other in steps if step.name in other.sources), None)
    return step.kind == "conv" and later is not None and later.kind == "add" and step.name != later.sources[-1]


def _draw_block(axis: Axes, steps: list[Step]) -> None:
    """A block with every operation named; what goes into it comes from the left, a shortcut runs below."""
    widths = {"relu": 1.0, "add": 0.7}
    places, x = {}, 0.9
    for step in steps:
        width = widths.get(step.kind, 1.75)
        if _is_aside(step, steps):
            places[step.name] = (x + width, -2.1, width)
        else:
            places[step.name] = (x + width / 2, 0.0, width)
            x += width + 0.4
    main = [step for step in steps if not _is_aside(step, steps)]
    for step in steps:
        centre, middle, width = places[step.name]
        colour, hatch = LOOKS[step.kind]
        box = Rectangle((centre - width / 2, middle - 0.75), width, 1.5, facecolor=colour, edgecolor="0.3", hatch=hatch)
        box.set(linewidth=0.8)
        axis.add_patch(box)
        ink = "white" if step.kind in ("norm", "fc") else "black"
        axis.text(centre, middle, step.text, ha="center", va="center", fontsize=7, color=ink)
        for source in step.sources:
            _connect(axis, places.get(source), places[step.name])
    end = places[main[-1].name]
    _line(axis, [(end[0] + end[2] / 2, 0), (x + 0.3, 0)])
    axis.text(0.05, 0.35, "in", ha="left", va="center", fontsize=7)
    axis.text(x + 0.35, 0, "out", ha="left", va="center", fontsize=7)
    axis.set(xlim=(0, x + 1), ylim=(-3.0, 1.0), aspect="equal")
    axis.axis("off")


def _connect(axis: Axes, start: tuple[float, float, float] | None, end: tuple[float, float, float]) -> None:
    """An arrow from the right side of one box to the left of another, or along below where another row is concerned."""
    x, y, width = end
    if start is None and x < 2:
        _line(axis, [(0.0, 0), (x - width / 2, 0)])
    elif start is None or (start[1] == y and x - start[0] > (start[2] + width) / 2 + 0.5):  # past other boxes
        left = 0.4 if start is None else start[0] + start[2] / 2 + 0.2
        _line(axis, [(left, 0), (left, -2.1), (x, -2.1), (x, -0.75)])
    elif start[1] == y:
        _line(axis, [(start[0] + start[2] / 2, y), (x - width / 2, y)])
    elif y < start[1]:  # down to the shortcut
        left = start[0] + start[2] / 2 + 0.2
        _line(axis, [(left, 0), (left, y), (x - width / 2, y)])
    else:
        _line(axis, [(start[0] + start[2] / 2, start[1]), (x, start[1]), (x, y - 0.75)])


def _line(axis: Axes, points: list[tuple[float, float]]) -> None:
    axis.plot(*zip(*points[:-1], strict=True), color="0.3", linewidth=0.9, solid_joinstyle="miter")
    axis.add_patch(arrow(points[-2], points[-1]))


def caption(steps: list[Step], num_groups: int, side: int) -> str:
    norms, convolutions = (sum(step.kind == kind for step in steps) for kind in ("norm", "conv"))
    return (
        f"ResNet-32 for {side} by {side} pixels with its {norms} LocalNorm layers (blue), {convolutions} convolutions "
        "(grey), ReLU and additions (white). Above, the whole network, each operation as high as its feature map is "
        "wide; below, the framed block. Each LocalNorm holds one gamma and one beta per channel for each of its K = "
        f"{num_groups} groups; everything else is shared. Recorded from the network that is trained."
    )
