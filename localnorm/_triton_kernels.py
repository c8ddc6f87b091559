"""The Triton kernels of LocalNorm. Loaded by the first call that needs them: importing localnorm does not import triton.

A tensor is read as (images, channels, positions) by three strides, so contiguous, channels_last, sliced and expanded tensors
take the same kernels and nothing is copied. One program serves one group, one block of channels and one chunk of the group's
tiles. A tile is a block of positions of one image in a block of channels.

Forward: one pass over the input for the moments of each chunk, a second one that merges the chunks' moments and writes.
Backward: one pass for the two sums of each chunk, a second one that merges them and writes. Where one chunk is enough, both
passes are one kernel. No atomics: results do not vary from run to run.
"""

import math
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # values per tile: 16 per thread
WARPS = 4
PROGRAMS = 1024  # wanted at least, several for each multiprocessor of a large GPU
MAX_CHUNKS = 64
UNSPECIALIZED = ["groups", "size", "larger", "rows"]  # another batch or group size is not another kernel


@triton.jit
def _place(
    channels, groups, size, larger, steps, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """What this program works on: its group and chunk, its channels, and the group's images first, first + apart, ..."""
    blocks = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    c = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk = (program // blocks) % CHUNKS
    group = program // (blocks * CHUNKS)
    tiles = (size + tl.where(group < larger, 1, 0)) * steps  # tiles in the group
    if INTERLEAVED:
        first = group
        apart = groups
    else:
        first = group * size + tl.minimum(group, larger)
        apart = 1
    return group, chunk, c, first, apart, tiles


@triton.jit
def _bounds(chunk, tiles, CHUNKS: tl.constexpr):
    """First tile and end of a chunk."""
    share = tl.cdiv(tiles, CHUNKS)
    return tl.minimum(chunk * share, tiles), tl.minimum((chunk + 1) * share, tiles)


@triton.jit
def _values(tile, steps, positions, BLOCK_P: tl.constexpr):
    """Values per channel in the tiles before `tile`."""
    return (tile // steps) * positions + (tile % steps) * BLOCK_P


@triton.jit
def _at(tile, c, first, apart, steps, positions, channels, BLOCK_P: tl.constexpr):
    """Image, positions and mask of a tile, (BLOCK_P, BLOCK_C)."""
    image = (first + (tile // steps) * apart).to(tl.int64)  # times its stride this may pass 2^31
    p = (tile % steps) * BLOCK_P + tl.arange(0, BLOCK_P)
    return image, p, (p < positions)[:, None] & (c < channels)[None, :]


@triton.jit
def _load(x, image, p, c, mask, stride_n, stride_c, stride_p):
    return tl.load(x + image * stride_n + p[:, None] * stride_p + c[None, :] * stride_c, mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def _moments(
    x, start, stop, c, first, apart, steps, positions, channels, stride_n, stride_c, stride_p,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, as shift + offset, and sum of squared deviations over tiles start ... stop - 1, in one pass.

    Sums of x - shift, where shift is the mean of the first tile. With f that tile's share of the values, the variance is at
    least f (mean - shift)^2, so the subtraction below loses at most a factor 1 / f, the number of tiles, whatever the data.
    """
    one, q, known = _at(start, c, first, apart, steps, positions, channels, BLOCK_P)
    sample = _load(x, one, q, c, known & (start < stop), stride_n, stride_c, stride_p)
    shift = tl.sum(sample, 0) / tl.minimum(positions - (start % steps) * BLOCK_P, BLOCK_P).to(tl.float32)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in range(start, stop):
        image, p, mask = _at(t, c, first, apart, steps, positions, channels, BLOCK_P)
        tile = _load(x, image, p, c, mask, stride_n, stride_c, stride_p)
        difference = tl.where(mask, tile - shift[None, :], 0.0)
        total += difference
        squares += difference * difference
    count = _values(stop, steps, positions, BLOCK_P) - _values(start, steps, positions, BLOCK_P)
    offset = tl.sum(total, 0) / tl.maximum(count, 1).to(tl.float32)
    return shift, offset, tl.sum(squares, 0) - offset * offset * count.to(tl.float32)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def reduce_kernel(
    x, partial, groups, size, larger, steps, positions, channels, stride_n, stride_c, stride_p,
    CHUNKS: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Moments of each chunk: partial (3, groups, CHUNKS, channels)."""
    group, chunk, c, first, apart, tiles = _place(channels, groups, size, larger, steps, CHUNKS, BLOCK_C, INTERLEAVED)
    start, stop = _bounds(chunk, tiles, CHUNKS)
    shift, offset, squares = _moments(
        x, start, stop, c, first, apart, steps, positions, channels, stride_n, stride_c, stride_p, BLOCK_P, BLOCK_C
    )
    place = partial + (group * CHUNKS + chunk) * channels + c
    row = groups * CHUNKS * channels
    tl.store(place, shift, mask=c < channels)
    tl.store(place + row, offset, mask=c < channels)
    tl.store(place + 2 * row, squares, mask=c < channels)


@triton.jit
def _merged_moments(
    partial, group, groups, tiles, c, steps, positions, channels,
    CHUNKS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """`_moments` of a group from those of its chunks (Chan, Golub and LeVeque, 1983)."""
    chunks = tl.arange(0, CHUNKS)
    starts, stops = _bounds(chunks, tiles, CHUNKS)
    counts = (_values(stops, steps, positions, BLOCK_P) - _values(starts, steps, positions, BLOCK_P)).to(tl.float32)
    place = partial + (group * CHUNKS + chunks[:, None]) * channels + c[None, :]
    mask = (chunks >= 0)[:, None] & (c < channels)[None, :]
    row = groups * CHUNKS * channels
    shifts = tl.load(place, mask=mask, other=0.0)
    offsets = tl.load(place + row, mask=mask, other=0.0)
    squares = tl.load(place + 2 * row, mask=mask, other=0.0)
    # Relative to the shift of the first chunk, which has values: a sum of means of 1e4 rounds away a deviation of 1e-3.
    shift = tl.load(partial + group * CHUNKS * channels + c, mask=c < channels, other=0.0)
    means = tl.where((counts > 0)[:, None], shifts - shift[None, :] + offsets, 0.0)
    offset = tl.sum(counts[:, None] * means, 0) / tl.sum(counts, 0)
    deviations = means - offset[None, :]
    return shift, offset, tl.sum(squares + counts[:, None] * deviations * deviations, 0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def normalize_kernel(
    x, y, partial, weight, bias, stored_mean, stored_var, means, variances, share, eps,
    groups, size, larger, rows, steps, positions, channels,
    stride_n, stride_c, stride_p, out_n, out_c, out_p,
    AFFINE: tl.constexpr, SHRINK: tl.constexpr, RELU: tl.constexpr,
    CHUNKS: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    group, chunk, c, first, apart, tiles = _place(channels, groups, size, larger, steps, CHUNKS, BLOCK_C, INTERLEAVED)
    start, stop = _bounds(chunk, tiles, CHUNKS)
    known = c < channels
    if CHUNKS == 1:
        shift, offset, squares = _moments(
            x, start, stop, c, first, apart, steps, positions, channels, stride_n, stride_c, stride_p, BLOCK_P, BLOCK_C
        )
    else:
        shift, offset, squares = _merged_moments(
            partial, group, groups, tiles, c, steps, positions, channels, CHUNKS, BLOCK_P
        )
    var = tl.maximum(squares, 0.0) / (tiles // steps * positions).to(tl.float32)
    row = (group % rows) * channels + c
    if SHRINK:
        stored = tl.load(stored_mean + row, mask=known, other=0.0).to(tl.float32)
        spread = tl.load(stored_var + row, mask=known, other=0.0).to(tl.float32)
        between = stored - shift - offset
        var = share * spread + (1 - share) * var + share * (1 - share) * between * between
        offset += share * between
    elif chunk == 0:
        tl.store(means + group * channels + c, shift + offset, mask=known)
        tl.store(variances + group * channels + c, var, mask=known)
    scale = tl.rsqrt(var + eps)
    if AFFINE:
        scale *= tl.load(weight + row, mask=known, other=0.0).to(tl.float32)
        b = tl.load(bias + row, mask=known, other=0.0).to(tl.float32)
    else:
        b = tl.zeros([BLOCK_C], tl.float32)
    for t in range(start, stop):
        image, p, mask = _at(t, c, first, apart, steps, positions, channels, BLOCK_P)
        tile = _load(x, image, p, c, mask, stride_n, stride_c, stride_p)
        normalized = (tile - shift[None, :] - offset[None, :]) * scale[None, :] + b[None, :]
        if RELU:
            normalized = tl.where(normalized < 0, 0.0, normalized)  # a NaN stays one
        place = y + image * out_n + p[:, None] * out_p + c[None, :] * out_c
        tl.store(place, normalized.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _coefficients(
    weight, bias, means, variances, eps, group, rows, c, channels, AFFINE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    known = c < channels
    mean = tl.load(means + group * channels + c, mask=known, other=0.0)
    inverse = tl.rsqrt(tl.load(variances + group * channels + c, mask=known, other=1.0) + eps)
    if AFFINE:
        w = tl.load(weight + (group % rows) * channels + c, mask=known, other=0.0).to(tl.float32)
        b = tl.load(bias + (group % rows) * channels + c, mask=known, other=0.0).to(tl.float32)
    else:
        w = tl.full([BLOCK_C], 1.0, tl.float32)
        b = tl.zeros([BLOCK_C], tl.float32)
    return mean, inverse, w, b


@triton.jit
def _gradient(
    x, grad, t, c, first, apart, steps, positions, channels, stride_n, stride_c, stride_p, grad_n, grad_c, grad_p,
    mean, inverse, w, b, RELU: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A tile's normalised values and gradient (that of the activation passed), with where they are."""
    image, p, mask = _at(t, c, first, apart, steps, positions, channels, BLOCK_P)
    centred = _load(x, image, p, c, mask, stride_n, stride_c, stride_p) - mean[None, :]
    upstream = _load(grad, image, p, c, mask, grad_n, grad_c, grad_p)
    if RELU:
        activated = centred * (inverse * w)[None, :] + b[None, :]
        upstream = tl.where(activated <= 0, 0.0, upstream)  # a NaN lets it pass, as in torch
    return tl.where(mask, centred * inverse[None, :], 0.0), upstream, image, p, mask


@triton.jit
def _sums(
    x, grad, start, stop, c, first, apart, steps, positions, channels,
    stride_n, stride_c, stride_p, grad_n, grad_c, grad_p, mean, inverse, w, b,
    RELU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Over tiles start ... stop - 1: the sum of the gradient, and of the gradient times the normalised values."""
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in range(start, stop):
        normalized, upstream, _, _, _ = _gradient(
            x, grad, t, c, first, apart, steps, positions, channels, stride_n, stride_c, stride_p, grad_n, grad_c, grad_p,
            mean, inverse, w, b, RELU, BLOCK_P,
        )  # fmt: skip
        total += upstream
        product += upstream * normalized
    return tl.sum(total, 0), tl.sum(product, 0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def reduce_backward_kernel(
    x, grad, weight, bias, means, variances, partial, eps,
    groups, size, larger, rows, steps, positions, channels,
    stride_n, stride_c, stride_p, grad_n, grad_c, grad_p,
    AFFINE: tl.constexpr, RELU: tl.constexpr,
    CHUNKS: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The two sums of each chunk: partial (2, groups, CHUNKS, channels)."""
    group, chunk, c, first, apart, tiles = _place(channels, groups, size, larger, steps, CHUNKS, BLOCK_C, INTERLEAVED)
    start, stop = _bounds(chunk, tiles, CHUNKS)
    mean, inverse, w, b = _coefficients(weight, bias, means, variances, eps, group, rows, c, channels, AFFINE, BLOCK_C)
    total, product = _sums(
        x, grad, start, stop, c, first, apart, steps, positions, channels,
        stride_n, stride_c, stride_p, grad_n, grad_c, grad_p, mean, inverse, w, b, RELU, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    place = partial + (group * CHUNKS + chunk) * channels + c
    tl.store(place, total, mask=c < channels)
    tl.store(place + groups * CHUNKS * channels, product, mask=c < channels)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    x, grad, weight, bias, means, variances, partial, grad_x, grad_weight, grad_bias, eps,
    groups, size, larger, rows, steps, positions, channels,
    stride_n, stride_c, stride_p, grad_n, grad_c, grad_p, out_n, out_c, out_p,
    AFFINE: tl.constexpr, RELU: tl.constexpr,
    CHUNKS: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    group, chunk, c, first, apart, tiles = _place(channels, groups, size, larger, steps, CHUNKS, BLOCK_C, INTERLEAVED)
    start, stop = _bounds(chunk, tiles, CHUNKS)
    known = c < channels
    mean, inverse, w, b = _coefficients(weight, bias, means, variances, eps, group, rows, c, channels, AFFINE, BLOCK_C)
    if CHUNKS == 1:
        total, product = _sums(
            x, grad, start, stop, c, first, apart, steps, positions, channels,
            stride_n, stride_c, stride_p, grad_n, grad_c, grad_p, mean, inverse, w, b, RELU, BLOCK_P, BLOCK_C,
        )  # fmt: skip
    else:
        chunks = tl.arange(0, CHUNKS)
        sums = partial + (group * CHUNKS + chunks[:, None]) * channels + c[None, :]
        inside = (chunks >= 0)[:, None] & known[None, :]
        total = tl.sum(tl.load(sums, mask=inside, other=0.0), 0)
        product = tl.sum(tl.load(sums + groups * CHUNKS * channels, mask=inside, other=0.0), 0)
    if chunk == 0:
        tl.store(grad_bias + group * channels + c, total, mask=known)
        tl.store(grad_weight + group * channels + c, product, mask=known)
    count = (tiles // steps * positions).to(tl.float32)
    scale = w * inverse
    for t in range(start, stop):
        normalized, upstream, image, p, mask = _gradient(
            x, grad, t, c, first, apart, steps, positions, channels, stride_n, stride_c, stride_p, grad_n, grad_c, grad_p,
            mean, inverse, w, b, RELU, BLOCK_P,
        )  # fmt: skip
        value = scale[None, :] * (upstream - (total / count)[None, :] - normalized * (product / count)[None, :])
        place = grad_x + image * out_n + p[:, None] * out_p + c[None, :] * out_c
        tl.store(place, value.to(grad_x.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------------------------------------------------------- launches


def _strides(t: Tensor) -> tuple[int, int, int] | None:
    """Strides of (N, C, ...) for images, channels and positions; None where the positions have no common stride."""
    inner = [(n, stride) for n, stride in zip(t.shape[2:], t.stride()[2:], strict=True) if n > 1]
    if any(outer != n * stride for (_, outer), (n, stride) in pairwise(inner)):
        return None
    return t.stride(0), t.stride(1), inner[-1][1] if inner else 0


def _readable(t: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    strides = _strides(t)
    if strides is None:
        t = t.contiguous()
        strides = _strides(t)
    return t, strides


def _power_of_two(n: int) -> int:
    """The largest up to n."""
    return 1 << (n.bit_length() - 1)


def _launch(x: Tensor, channel_stride: int, groups: int, interleaved: bool) -> tuple[tuple[int], dict, dict]:
    """Grid, sizes and compile-time options for (N, C, ...)."""
    batch, channels = x.shape[:2]
    positions = math.prod(x.shape[2:])
    most_p, most_c = triton.next_power_of_2(positions), triton.next_power_of_2(channels)
    if channel_stride == 1 and positions > 1:  # neighbours in memory are channels: 64 of them fill whole cache lines
        block_c = min(most_c, 64)
        block_p = min(most_p, max(1, TILE // block_c))
    else:
        block_p = min(most_p, TILE)
        block_c = min(most_c, TILE // block_p)
    steps = triton.cdiv(positions, block_p)
    programs = groups * triton.cdiv(channels, block_c)
    tiles = triton.cdiv(batch, groups) * steps
    chunks = _power_of_two(min(MAX_CHUNKS, tiles, triton.cdiv(PROGRAMS, programs)))
    sizes = {
        "groups": groups, "size": batch // groups, "larger": batch % groups,
        "steps": steps, "positions": positions, "channels": channels,
    }  # fmt: skip
    options = {
        "CHUNKS": chunks, "INTERLEAVED": interleaved, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": WARPS,
    }  # fmt: skip
    return (programs * chunks,), sizes, options


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    interleaved: bool,
    eps: float,
    relu: bool,
    stored: tuple[Tensor, Tensor] | None = None,
    share: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, means and biased variances (groups, C); with `stored` (R, C) rows, y alone is of statistics that are shrunk to them by `share`."""
    x, strides = _readable(x)
    y = torch.empty_like(x)
    grid, sizes, options = _launch(x, strides[1], groups, interleaved)
    means, variances = (x.new_empty(groups, x.shape[1], dtype=torch.float32) for _ in range(2))
    partial = x.new_empty(3, groups, options["CHUNKS"], x.shape[1], dtype=torch.float32)
    weight, bias, *stored = (None if t is None else t.contiguous() for t in (weight, bias, *(stored or (None, None))))
    rows = next((len(t) for t in (weight, stored[0]) if t is not None), 1)
    with torch.cuda.device_of(x):
        if options["CHUNKS"] > 1:
            reduce_kernel[grid](x, partial, **sizes, **_named(strides), **options)
        normalize_kernel[grid](
            x, y, partial, weight, bias, *stored, means, variances, share, eps, rows=rows,
            **sizes, **_named(strides), **_named(_strides(y), "out"),
            AFFINE=weight is not None, SHRINK=stored[0] is not None, RELU=relu, **options,
        )  # fmt: skip
    return y, means, variances


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    means: Tensor,
    variances: Tensor,
    groups: int,
    interleaved: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and, for each group, of its weight and bias, (groups, C)."""
    (x, strides), (grad, grad_strides) = _readable(x), _readable(grad)
    grad_x = torch.empty_like(x)
    grid, sizes, options = _launch(x, strides[1], groups, interleaved)
    partial = x.new_empty(2, groups, options["CHUNKS"], x.shape[1], dtype=torch.float32)
    grad_weight, grad_bias = torch.empty_like(means), torch.empty_like(means)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    sizes["rows"] = 1 if weight is None else len(weight)
    given = {**sizes, **_named(strides), **_named(grad_strides, "grad"), **options}
    given |= {"AFFINE": weight is not None, "RELU": relu}
    with torch.cuda.device_of(x):
        if options["CHUNKS"] > 1:
            reduce_backward_kernel[grid](x, grad, weight, bias, means, variances, partial, eps, **given)
        backward_kernel[grid](
            x, grad, weight, bias, means, variances, partial, grad_x, grad_weight, grad_bias, eps,
            **given, **_named(_strides(grad_x), "out"),
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _named(strides: tuple[int, int, int], tensor: str = "stride") -> dict[str, int]:
    return {f"{tensor}_{axis}": stride for axis, stride in zip("ncp", strides, strict=True)}
