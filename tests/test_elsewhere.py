"""The layer in other people's tools: optimisers, averages, feature extractors, exporters, other devices."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localnorm import (
    LocalNorm2d,
    convert_to_batchnorm,
    convert_to_localnorm,
    estimate_statistics,
    param_groups,
    predict,
    set_eval_mode,
    use_mode,
)
from localnorm.layers import ASSIGNMENTS, LocalNorm

torch.set_num_threads(1)


def small_net(num_groups=4, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    net = convert_to_localnorm(net.append(nn.Flatten()).append(nn.Linear(64, 5)), num_groups, **options)
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return net


def images_of(n, size=8):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def affines(net):
    return {id(p) for m in net.modules() if isinstance(m, LocalNorm) for p in (m.weight, m.bias)}


# Optimisers


def test_norms_and_biases_are_not_decayed_and_kernels_are():
    net = small_net()
    net[0].bias.requires_grad_(False)
    kernels, others = param_groups(net, weight_decay=0.1)
    assert [tuple(p.shape) for p in kernels["params"]] == [(4, 3, 3, 3), (4, 4, 3, 3), (5, 64)]
    assert affines(net) <= {id(p) for p in others["params"]}
    assert len(kernels["params"]) + len(others["params"]) == len(list(net.parameters())) - 1
    optimizer = torch.optim.SGD(param_groups(net, weight_decay=0.1), lr=1.0)
    before = copy.deepcopy(net.state_dict())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"0.weight", "3.weight", "6.weight"}


def test_what_a_network_exempts_from_decay_is_exempt_wherever_the_network_stands():
    class Exempting(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(2, 3))
            self.last = nn.Linear(3, 2)

        def no_weight_decay(self):  # as timm's networks
            return {"table"}

    net = Exempting()
    for whole in (net, nn.Sequential(net), nn.DataParallel(net), torch.compile(net)):
        kernels, others = param_groups(whole, weight_decay=0.1)
        assert [id(p) for p in kernels["params"]] == [id(net.last.weight)]
        assert {id(p) for p in others["params"]} == {id(net.table), id(net.last.bias)}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon", "nmuon"])
def test_timms_optimisers_decay_and_orthogonalise_no_affine(name):
    factory = pytest.importorskip("timm.optim").create_optimizer_v2
    net = small_net()
    optimizer = factory(param_groups(net, weight_decay=0.1), opt=name, lr=0.01, weight_decay=0.1)
    before = net[1].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net[1].weight.grad[0, 0] = 1.0  # AdamW moves this one alone; an orthogonalised update moves others too
    optimizer.step()
    moved = net[1].weight != before
    assert moved[0, 0]
    assert moved.sum() == 1


# Averages


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_average_begun_before_the_statistics_says_what_to_call_and_then_has_its_own():
    net = small_net()
    average = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)
    estimate_statistics(net, [images_of(8)])
    average.update_parameters(net)
    with pytest.raises(ValueError, match=r"needs stored training statistics.*localnorm.estimate_statistics"):
        predict(average.module, images_of(2), "prior", prior=64)
    with pytest.raises(ValueError, match=r"needs stored training statistics.*localnorm.estimate_statistics"):
        set_eval_mode(average.module, "prior", prior=64)
    estimate_statistics(average.module, [images_of(8)])
    torch.testing.assert_close(
        predict(average.module, images_of(2), "prior", prior=64), predict(net, images_of(2), "prior", prior=64)
    )


@pytest.mark.parametrize("foreach", [False, True])
def test_an_average_of_a_network_that_stores_statistics_has_them_and_keeps_its_mode(foreach):
    averages = pytest.importorskip("timm.utils")
    net = small_net(track_running_stats=True)
    average = averages.ModelEmaV3(net, decay=0.5, foreach=foreach)
    net(images_of(8) + 3)
    average.update(net)
    torch.testing.assert_close(average.module[1].running_mean, net[1].running_mean / 2)
    set_eval_mode(average.module.eval(), "fixed")
    torch.testing.assert_close(average.module(images_of(1)), predict(average.module, images_of(1), "fixed"))


# Symbolic tracing


def test_torch_fx_takes_the_layer_as_a_leaf():
    net, images = small_net().eval(), images_of(7)
    graph = torch.fx.symbolic_trace(net)
    assert sum(node.op == "call_module" and node.target in ("1", "4") for node in graph.graph.nodes) == 2
    for mode in ("batch", "single"):
        with use_mode(mode):
            torch.testing.assert_close(graph(images), net(images))


def test_torchvisions_feature_extractor_gives_the_networks_features():
    models = pytest.importorskip("torchvision.models")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    torch.manual_seed(0)
    net, images = convert_to_localnorm(models.resnet18(num_classes=5), 2).eval(), images_of(4, 32)
    got = extraction.create_feature_extractor(net, {"layer1": "a", "layer2.0.bn1": "b"})(images)
    stem = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    torch.testing.assert_close(got["a"], net.layer1(stem))
    torch.testing.assert_close(got["b"], net.layer2[0].bn1(net.layer2[0].conv1(net.layer1(stem))))


def test_timms_feature_extractor_and_fused_layers_give_the_networks_features():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = convert_to_localnorm(timm.create_model("efficientnet_lite0", num_classes=5), 2).eval()
    graph = torch.fx.symbolic_trace(net.blocks[1])  # with LocalNormAct2d
    x = torch.randn(4, 16, 8, 8)
    torch.testing.assert_close(graph(x), net.blocks[1](x))


@pytest.mark.parametrize("num_groups", [1, 2])
def test_folding_into_convolutions_raises_and_works_after_the_way_back(num_groups):
    timm, fold = pytest.importorskip("timm"), pytest.importorskip("timm.utils.model").reparameterize_model
    torch.manual_seed(0)
    net = convert_to_localnorm(timm.create_model("repvgg_a0", num_classes=5), num_groups, track_running_stats=True)
    with pytest.raises((RuntimeError, AssertionError)):
        fold(net.eval())
    images = torch.randn(4, 3, 32, 32)
    back = convert_to_batchnorm(net, [images]).eval()
    torch.testing.assert_close(fold(back)(images), back(images), rtol=1e-3, atol=1e-3)


# Exporters, at batch sizes other than the example's

SIZES = (8, 4, 12, 10, 3, 1)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_an_export_in_batch_mode_is_right_at_every_batch_size(assignment, affine):
    net = small_net(assignment=assignment).eval()
    if not affine:
        net[4] = LocalNorm2d(4, 4, assignment=assignment, affine=False)
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    exported = torch.export.export(net, (images_of(8),), dynamic_shapes=shapes).module()
    for n in SIZES:
        torch.testing.assert_close(exported(images_of(n)), net(images_of(n)), rtol=1e-4, atol=1e-5)


def test_an_export_answers_nan_where_the_layer_itself_refuses_a_group_of_one_value():
    net = nn.Sequential(nn.Conv2d(3, 4, 8), LocalNorm2d(4, 4)).eval()
    exported = torch.export.export(
        net, (torch.randn(16, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},)
    ).module()
    with torch.no_grad():
        assert exported(torch.randn(1, 3, 8, 8)).isnan().all()
        of_five = exported(torch.randn(5, 3, 8, 8))  # the first group has two images
        assert of_five[[0, 4]].isfinite().all()
        assert of_five[1:4].isnan().all()
        assert exported(torch.randn(8, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_onnx_in_batch_mode_is_right_at_every_batch_size(assignment, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = small_net(assignment=assignment).eval()
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    torch.onnx.export(net, (images_of(8),), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    run_everywhere(runtime, tmp_path / "net.onnx", net)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:ONNX export mode")
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_torch_jit_trace_and_the_older_onnx_exporter_are_right_at_every_batch_size(assignment, tmp_path):
    net = small_net(assignment=assignment).eval()
    traced = torch.jit.trace(net, images_of(8), check_trace=False)
    for n in SIZES:
        torch.testing.assert_close(traced(images_of(n)), net(images_of(n)), rtol=1e-4, atol=1e-5)
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    torch.onnx.export(net, (images_of(8),), tmp_path / "net.onnx", dynamo=False, **names)
    run_everywhere(runtime, tmp_path / "net.onnx", net)


def run_everywhere(runtime, path, net):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in SIZES:
        (got,) = session.run(None, {session.get_inputs()[0].name: images_of(n).numpy()})
        torch.testing.assert_close(torch.from_numpy(got), net(images_of(n)).detach(), rtol=1e-4, atol=1e-5)


# Devices


class Calls(torch.overrides.TorchFunctionMode):
    """Notes what reaches BatchNorm's kernel."""

    def __init__(self):
        self.offsets = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.batch_norm:
            self.offsets.append(args[0].storage_offset())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [8, 9, 5])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_device_but_a_cpu_gets_all_equal_groups_in_one_call_and_no_slice(layout, assignment, batch):
    """The meta device stands for CUDA, MPS and XPU; MPS is known to normalise a slice that starts inside a tensor wrongly."""
    layer = LocalNorm2d(3, 4, assignment=assignment, device="meta")
    x = torch.empty(batch, 3, 5, 5, device="meta").contiguous(memory_format=layout)
    with Calls() as calls:
        assert layer(x).shape == x.shape
    assert len(calls.offsets) == (1 if batch % 4 == 0 else 2)  # the larger groups and the others
    assert not any(calls.offsets)


# All together


def test_a_timm_network_is_trained_stored_loaded_elsewhere_and_served_by_onnx_runtime(tmp_path):
    """With an average, mixed precision and parameter groups; the file's answer for one image is predict's."""
    timm, averages = pytest.importorskip("timm"), pytest.importorskip("timm.utils")
    safetensors, runtime = pytest.importorskip("safetensors.torch"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def build():
        torch.manual_seed(0)
        return convert_to_localnorm(timm.create_model("test_efficientnet", num_classes=5), 2, track_running_stats=True)

    net, images, labels = build(), images_of(8, 64), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(param_groups(net, weight_decay=0.05), lr=1e-3)
    average = averages.ModelEmaV3(net, decay=0.5)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(net)
    trained = set_eval_mode(average.module, "prior", prior=64)
    safetensors.save_file(trained.state_dict(), tmp_path / "net.safetensors")

    loaded = build()
    loaded.load_state_dict(safetensors.load_file(tmp_path / "net.safetensors"))
    image = images_of(1, 64)
    want = predict(trained, image, "prior", prior=64)
    torch.testing.assert_close(loaded.eval()(image), want, rtol=0, atol=1e-5)
    torch.onnx.export(loaded, (image,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5)
    assert not torch.allclose(want, predict(trained, image, "fixed"), atol=1e-3)
