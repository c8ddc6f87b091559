"""The Triton kernels compute the layer's formula, in every layout, number format and grouping.

Without a GPU they run in Triton's interpreter, on a CPU; on a GPU the same tests run what Triton compiles.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
if not CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton loads, which no module does before a kernel is called

from localnorm import LocalNorm2d, LocalNormAct2d, _kernels, _triton, use_mode  # noqa: E402
from localnorm._triton import local_norm, prior_norm, use_triton  # noqa: E402

triton = pytest.importorskip("triton", reason="the kernels need triton, which comes with torch's CUDA builds")
EPS = 1e-5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# relative; the interpreter cuts bfloat16 off where a GPU rounds it
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8 if CARD else 2**-7}
needs_card = pytest.mark.skipif(
    not CARD, reason="Triton compiles for GPUs, and there is none; the interpreter has no graphs"
)


@pytest.fixture(autouse=True)
def many_small_tiles(monkeypatch):
    """Small inputs take several tiles and chunks, as large ones do."""
    from localnorm import _triton_kernels

    if not CARD:
        monkeypatch.setattr(_triton_kernels, "TILE", 16)
        monkeypatch.setattr(_triton_kernels, "MAX_CHUNKS", 2)  # the interpreter takes 50 ms for a program
    return _triton_kernels


def members(batch, groups, assignment):
    """The images of each group, the first groups being the larger."""
    groups = min(groups, batch)
    if assignment == "interleaved":
        return [torch.arange(g, batch, groups) for g in range(groups)]
    return list(torch.arange(batch).tensor_split(groups))


def formula(x, groups, weight, bias, assignment="interleaved", relu=False):
    """The layer's formula in float64, group by group; group g takes row g mod R."""
    parts = members(len(x), groups, assignment)
    ones = (1,) * (x.dim() - 2)
    out = []
    for g, images in enumerate(parts):
        part = x[images.to(x.device)]
        axes = (0, *range(2, x.dim()))
        y = (part - part.mean(axes, keepdim=True)) / (part.var(axes, correction=0, keepdim=True) + EPS).sqrt()
        if weight is not None:
            y = y * weight[g % len(weight)].view(1, -1, *ones) + bias[g % len(bias)].view(1, -1, *ones)
        out.append(y.relu() if relu else y)
    return torch.cat(out)[torch.cat(parts).argsort().to(x.device)]


def draw(shape, layout="contiguous", dtype=torch.float32, rows=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 2 + torch.arange(shape[1]).view(1, -1, *(1,) * (len(shape) - 2))
    x = x.to(DEVICE, dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=LAYOUTS[layout])
    weight, bias = torch.randn(2, rows, shape[1], generator=generator).to(DEVICE).unbind()
    return x, weight, bias


def assert_equals_formula(x, groups, weight, bias, *, assignment="interleaved", relu=False, grad=None):
    """Values and all gradients, to the rounding of x's number format."""
    given = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = local_norm(given[0], groups, *given[1:], assignment=assignment, relu=relu)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = formula(exact[0], groups, *exact[1:], assignment, relu)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    rounding = ROUNDING[x.dtype]
    assert torch.allclose(y.double(), expected, rtol=rounding, atol=max(rounding / 8, 1e-5))
    grad = (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, x.dtype) if grad is None else grad
    )
    leaves = [(a, b) for a, b in zip(given, exact, strict=True) if a is not None]
    got = torch.autograd.grad(y, [a for a, _ in leaves], grad)
    wanted = torch.autograd.grad(expected, [b for _, b in leaves], grad.double())
    for name, a, b in zip(("x", "weight", "bias"), got, wanted, strict=False):
        scale = rounding if name == "x" else 1e-5
        assert torch.allclose(a.double(), b, rtol=scale, atol=max(scale / 8, 1e-5) * max(1, b.abs().max())), name
    return y


@pytest.mark.parametrize("assignment", ["interleaved", "contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [4, 5, 1], ids=["divisible", "ragged", "fewer images than groups"])
def test_values_and_gradients_are_the_formulas(layout, assignment, batch):
    x, weight, bias = draw((batch, 3, 3, 2), layout)
    y = assert_equals_formula(x, 2, weight, bias, assignment=assignment)
    assert y.stride() == x.stride(), "the result has the layout of the input"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(layout, dtype):
    assert_equals_formula(*draw((5, 3, 3, 2), layout, dtype)[:1], 2, *draw((5, 3, 3, 2))[1:])


@pytest.mark.parametrize("shape", [(9, 12), (4, 3, 5), (4, 2, 2, 1, 3), (4, 1, 3, 3)], ids=str)
def test_inputs_of_every_rank(shape):
    x, weight, bias = draw(shape)
    assert_equals_formula(x, 2, weight, bias)


def test_a_group_that_one_program_serves_and_one_that_many_share(many_small_tiles, monkeypatch):
    monkeypatch.setattr(many_small_tiles, "MAX_CHUNKS", 8)
    x, weight, bias = draw((6, 3, 3, 5), "channels_last")
    shared = assert_equals_formula(x, 2, weight, bias)
    monkeypatch.setattr(many_small_tiles, "MAX_CHUNKS", 1)
    assert torch.allclose(shared, assert_equals_formula(x, 2, weight, bias), atol=1e-5)


def test_a_chunk_without_images_changes_nothing(many_small_tiles, monkeypatch):
    monkeypatch.setattr(many_small_tiles, "MAX_CHUNKS", 4)
    x, weight, bias = draw((5, 3, 1, 2))  # groups of 3 and 2 images, one tile each: chunks of 1, 1, 1, 0 and 1, 1, 0, 0
    assert_equals_formula(x, 2, weight, bias, relu=True)


def test_slices_and_expanded_gradients_are_read_where_they_are():
    x, weight, bias = draw((6, 3, 4, 4))
    assert_equals_formula(x[::2, 1:], 2, weight[:, 1:], bias[:, 1:])
    expanded = torch.randn(3, 3, 1, 1, generator=torch.Generator().manual_seed(2)).to(DEVICE).expand(3, 3, 4, 4)
    assert_equals_formula(x[:3], 2, weight, bias, grad=expanded)
    assert_equals_formula(x[:3, :, ::2, ::2].transpose(2, 3), 2, weight, bias)  # no common stride: copied


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_activation_in_the_same_kernels(layout):
    x, weight, bias = draw((5, 3, 3, 2), layout)
    y = assert_equals_formula(x, 2, weight, bias, relu=True)
    assert (y == 0).any()


@pytest.mark.parametrize(
    "mode", [("batch", {}), ("batch", {"group_size": 1}), ("single", {}), ("prior", {"prior": 3.0})]
)
def test_a_layer_that_ends_in_relu_has_it_in_the_same_kernels(mode, monkeypatch):
    name, options = mode
    x, weight, bias = draw((3, 3, 3, 2), "channels_last", rows=2)
    norm = LocalNorm2d(3, 2, track_running_stats=True, device=DEVICE)
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    fused = LocalNormAct2d(3, 2, track_running_stats=True, act=nn.ReLU(), device=DEVICE)
    fused.load_state_dict(norm.state_dict())
    found = []
    monkeypatch.setattr(_kernels, "rectify", None)  # no ReLU of its own
    for kernels, net in (("triton", fused), ("torch", nn.Sequential(norm, nn.ReLU()))):
        monkeypatch.setattr(_triton, "KERNELS", kernels)
        leaf = x.clone().requires_grad_(name != "prior")  # its kernels have no gradient
        with use_mode(name, **options), torch.set_grad_enabled(leaf.requires_grad):
            y = net(leaf)
        found.append([y, *(torch.autograd.grad(y.cos().sum(), [leaf, *net.parameters()]) if y.requires_grad else ())])
    assert (found[0][0] == 0).any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's NumPy
def test_a_nan_stays_one_and_lets_its_gradient_pass():
    x, weight, bias = draw((4, 2, 2, 2), rows=2)
    x[0, 0, 0, 0] = torch.nan
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = local_norm(leaves[0], 2, *leaves[1:], relu=True)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = formula(exact[0], 2, *exact[1:], relu=True)
    grads = [torch.autograd.grad(out.sum(), of) for out, of in ((y, leaves), (expected, exact))]
    for ours, theirs in zip((y, *grads[0]), (expected, *grads[1]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_one_image_per_group_and_rows_in_turn():
    x, weight, bias = draw((3, 3, 2, 3))
    assert_equals_formula(x, 3, weight[1:2], bias[1:2])  # mode single: one row serves every image
    assert_equals_formula(x, 3, weight[:2], bias[:2], assignment="contiguous")  # drawn sizes: three groups, two affines
    assert_equals_formula(x, 2, None, None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_mean_leaves_the_variance_as_precise(layout, many_small_tiles, monkeypatch):
    monkeypatch.setattr(many_small_tiles, "TILE", 128)
    x = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0)) + 1e4
    x = x.contiguous(memory_format=LAYOUTS[layout]).to(DEVICE)
    y = local_norm(x, 2, None, None)
    expected = formula(x.double(), 2, None, None)
    usual = F.batch_norm(x.reshape(2, 4, 16, 16), None, None, training=True).reshape(x.shape)
    assert (y - expected).abs().max() <= max((usual - expected).abs().max(), 1e-3)
    assert torch.allclose(y.double().std((2, 3)), expected.std((2, 3)), rtol=1e-5)
    dark = x[:2].clone()
    dark[:, :, :8] = 0  # the tile that the sums are shifted by is like no other
    assert torch.allclose(local_norm(dark, 1, None, None).double(), formula(dark.double(), 1, None, None), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shrunken_statistics(layout, share):
    x, weight, bias = draw((2, 3, 3, 2), layout)
    stored_mean, stored_var = torch.randn_like(weight[:1]), torch.rand_like(weight[:1]) + 0.5
    prior = share / (1 - share) * 6
    exact = x.double()
    mean, var = exact.mean((2, 3)), exact.var((2, 3), correction=0)
    shrunk = share * stored_var + (1 - share) * var + share * (1 - share) * (stored_mean - mean) ** 2
    centre = share * stored_mean + (1 - share) * mean
    expected = (exact - centre[..., None, None]) / (shrunk + EPS).sqrt()[..., None, None]
    expected = expected * weight[:1, :, None, None] + bias[:1, :, None, None]
    y = prior_norm(x, weight[:1], bias[:1], stored_mean, stored_var, prior)
    assert torch.allclose(y.double(), expected, atol=5e-6)
    relu = prior_norm(x, weight[:1], bias[:1], stored_mean, stored_var, prior, relu=True)
    assert torch.equal(relu, y.relu())
    assert y.stride() == x.stride()


@pytest.mark.parametrize("batch", [5, 1])
def test_stored_statistics_move_as_batchnorms(batch):
    x, weight, bias = draw((batch, 3, 3, 2), rows=2)
    kept = [torch.zeros(2, 3, device=DEVICE), torch.ones(2, 3, device=DEVICE)]
    local_norm(x, 2, weight, bias, *kept, momentum=0.3)
    for g, images in enumerate(members(batch, 2, "interleaved")):
        own = [torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)]
        F.batch_norm(x[images.to(DEVICE)], *own, training=True, momentum=0.3)
        assert torch.allclose(kept[0][g], own[0], atol=1e-6)
        assert torch.allclose(kept[1][g], own[1], atol=1e-5)
    assert (kept[1][batch:] == 1).all(), "a group without images keeps what it has"


@pytest.mark.parametrize("assignment", ["interleaved", "contiguous"])
def test_gradients_can_be_differentiated(assignment):
    x, weight, bias = draw((5, 3, 3, 2), rows=2)
    found = []
    for function, dtype in ((local_norm, torch.float32), (formula, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = function(leaves[0], 2, *leaves[1:], assignment=assignment)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        penalty = sum(t.square().sum() for t in first)
        found.append([t.double() for t in (*first, *torch.autograd.grad(penalty, leaves))])
    for ours, exact in zip(*found, strict=True):
        assert torch.allclose(ours, exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())


def test_autocast_gives_half_precision_and_float32_gradients_of_the_affine():
    x, weight, bias = draw((4, 3, 2, 2), rows=2)
    weight.requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = local_norm(F.conv2d(x, torch.ones(3, 3, 1, 1, device=DEVICE)), 2, weight, bias)
    (grad,) = torch.autograd.grad(y.float().square().sum(), weight)
    assert (y.dtype, grad.dtype) == (torch.bfloat16, torch.float32)


def test_the_operators_keep_what_torch_asks_of_operators():
    x, weight, bias = draw((2, 3, 2, 2), "channels_last", rows=2)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for t in (x, weight, bias):
        t.requires_grad_()
    torch.library.opcheck(_triton.normalize_groups, (x, weight, bias, 2, True, EPS, True), test_utils=checks)
    stored = torch.ones(1, 3, device=DEVICE)
    arguments = (x.detach(), weight.detach(), bias.detach(), stored, stored, 0.5, EPS, False)
    torch.library.opcheck(_triton.normalize_images, arguments, test_utils=checks)


class Layer(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        assert use_triton(x * 2)  # torch.compile follows the choice without a break
        return local_norm(x * 2, len(self.weight), self.weight, self.bias, relu=True).square().mean()


def test_torch_compile_takes_the_kernels_as_one_operator(monkeypatch):
    monkeypatch.setattr(_triton, "KERNELS", "triton")
    x, weight, bias = draw((4, 3, 2, 2), "channels_last", rows=2)
    layer = Layer(weight, bias)
    layer(x).backward()
    eager = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    compiled = torch.compile(layer, backend="inductor" if CARD else "aot_eager", fullgraph=True)
    for batch in (x, x[:3]):  # another batch size: the sizes become symbols
        assert torch.allclose(compiled(batch), layer(batch))
    layer.zero_grad()
    compiled(x).backward()
    for parameter, expected in zip(layer.parameters(), eager, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-6)


@needs_card
def test_cuda_graphs_replay_the_kernels():
    x, weight, bias = draw((16, 8, 16, 16), "channels_last")
    local_norm(x, 4, weight, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = local_norm(x, 4, weight, bias)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, local_norm(x, 4, weight, bias))


# ----------------------------------------------------------------------------------------------------------------- dispatch


def test_the_kernels_are_off_until_they_are_asked_for(monkeypatch):
    x = torch.ones(2, 3, 4, 4, device=DEVICE)
    assert not use_triton(x)
    monkeypatch.setattr(_triton, "KERNELS", "triton")
    assert use_triton(x)
    monkeypatch.setattr(_triton, "KERNELS", "torch")
    assert not use_triton(x)


def test_a_measured_device_takes_them_in_the_settings_that_were_faster(monkeypatch):
    monkeypatch.setattr(_triton, "MEASURED", {"Some GPU": frozenset({("channels_last", "contiguous")})})
    monkeypatch.setattr(_triton, "INSTALLED", True)
    monkeypatch.setattr(_triton, "_device_name", lambda index: "Some GPU")

    class OnGpu(torch.Tensor):
        is_cuda = True

    x = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).as_subclass(OnGpu)
    assert use_triton(x, "contiguous")
    assert not use_triton(x, "interleaved")
    assert not use_triton(x.contiguous(), "contiguous")
    monkeypatch.setattr(_triton, "_device_name", lambda index: "Another GPU")
    assert not use_triton(x, "contiguous")


def test_what_the_kernels_do_not_compute_stays_with_torch(monkeypatch):
    monkeypatch.setattr(_triton, "KERNELS", "triton")
    x = torch.ones(2, 3, 4, 4, device=DEVICE)
    assert not use_triton(x.double())
    assert not use_triton(x[:0])
    assert not use_triton(x, differentiable=False)
    with torch.no_grad():
        assert use_triton(x, differentiable=False)
    seen = []
    torch.vmap(lambda row: seen.append(use_triton(row)) or row)(x)
    assert seen == [False]
    with torch.autograd.forward_ad.dual_level():
        assert not use_triton(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not use_triton(x), "an exported program runs without this package"
    monkeypatch.undo()
    monkeypatch.setattr(_triton, "KERNELS", "triton")
    if not CARD:
        monkeypatch.setattr(_triton, "INTERPRETED", False)
        assert not use_triton(x), "Triton does not compile for CPUs"


def test_asking_for_the_kernels_without_triton_names_the_remedy(monkeypatch):
    monkeypatch.setattr(_triton, "KERNELS", "triton")
    monkeypatch.setattr(_triton, "INSTALLED", False)
    with pytest.raises(ModuleNotFoundError, match="pip install triton"):
        use_triton(torch.ones(2, 3, 4, 4, device=DEVICE))


def test_a_wrong_choice_is_refused_with_those_there_are():
    done = subprocess.run(
        [sys.executable, "-c", "import localnorm._triton"],
        env={**os.environ, "LOCALNORM_KERNELS": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "LOCALNORM_KERNELS must be one of measured, triton, torch; got 'cuda'" in done.stderr


def test_importing_the_layers_does_not_import_triton():
    code = "import sys, localnorm._triton, localnorm.layers; print('triton' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "False"


def test_the_kernels_compile_for_a_gpu_without_spilling():
    """The interpreter accepts what the compiler refuses: a variable that changes its shape in a loop, say."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert all(line.endswith("0 bytes spilled, loads of 16 bytes") for line in lines), done.stdout
