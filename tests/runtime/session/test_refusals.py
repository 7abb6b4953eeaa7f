"""A provider that was asked for and not obtained: the cause, and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ortkit import BundleError, InputError, OrtkitError, OutOfMemoryError, Provider, ProviderError
from ortkit.runtime.bundle.manifest import Layout
from ortkit.runtime.session.config import Bucket, SessionConfig
from ortkit.runtime.session.cuda import cuda_problem, find_driver
from ortkit.runtime.session.packages import is_from_index
from ortkit.runtime.session.placement import check_placement
from ortkit.runtime.session.problem import Problem
from ortkit.runtime.session.providers import PROVIDERS, PluginProvider
from ortkit.runtime.session.request import Request
from ortkit.runtime.session.session import Session, gpu_failure
from tests.fake_providers import COREML, CPU, CUDA, Fail, FakeDriver, FakeGpu, FakeOnnxruntime, RuntimeException, use
from tests.tiny_bundles import write_embedder

INSTALL_CUDA = (
    "pip install 'onnxruntime-gpu>=1.30' 'nvidia-cublas~=13.0' 'nvidia-cuda-runtime~=13.0' 'nvidia-cudnn-cu13~=9.0' "
    "'nvidia-curand~=10.0'"
)
CONFIG = SessionConfig(Provider.CUDA, ("x",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """y = x @ w, symbolic (batch, tokens)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def refused(path: Path, config: SessionConfig = CONFIG) -> tuple[str, str | None]:
    with pytest.raises(ProviderError) as caught:
        Session(path, config)
    assert caught.value.exit_code == 8
    return caught.value.message, caught.value.hint


def test_what_is_asked_for_is_obtained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeOnnxruntime()
    use(monkeypatch, module)

    session = Session(path, replace(CONFIG, max_memory=1 << 30))

    assert (session.provider, session.device) == (Provider.CUDA, "cuda")
    assert session.run({"x": np.ones((1, 4), np.float32)}).tolist() == [[1, 1, 1]]
    (opened,) = module.opened
    assert opened.providers == [
        (
            CUDA,
            {
                "arena_extend_strategy": "kSameAsRequested",
                "gpu_mem_limit": str(1 << 30),
                "use_tf32": "0",
                "do_copy_in_default_stream": "1",
            },
        )
    ]
    assert opened.enable_fallback == 0
    assert module.severities == [4]
    assert list(opened.disabled_optimizers) == []
    assert opened.options.entries["session.disable_cpu_ep_fallback"] == "1"


def test_an_onnxruntime_without_cuda(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeOnnxruntime(available=[CPU], cuda_version="")
    use(monkeypatch, module, packages={"onnxruntime": "1.31.1"})

    assert refused(path) == (
        "`cuda` is not available: `onnxruntime` 1.31.1 is built without CUDA",
        f"run `pip uninstall -y onnxruntime`, then `{INSTALL_CUDA}`",
    )
    assert module.opened == []


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_cuda_where_it_cannot_be_installed(
    path: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    use(monkeypatch, FakeOnnxruntime(available=[CPU], cuda_version=""), packages={"onnxruntime": "1.31.1"})
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)

    assert refused(path)[1] == (
        "CUDA needs Linux on x86_64 or aarch64; export the model for this machine: `ortkit export MODEL --provider cpu`"
    )


@pytest.mark.parametrize("provider", [Provider.CUDA, Provider.COREML])
def test_two_packages_over_each_other(path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    use(
        monkeypatch,
        FakeOnnxruntime(available=[CUDA, COREML, CPU]),
        packages={"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"},
    )
    if provider is Provider.COREML:
        monkeypatch.setattr("sys.platform", "darwin")
    install = INSTALL_CUDA if provider is Provider.CUDA else "pip install 'onnxruntime>=1.31'"

    assert refused(path, replace(CONFIG, provider=provider)) == (
        (
            "`onnxruntime` 1.31.1 and `onnxruntime-gpu` 1.30.0 are installed over each other: all have the module "
            "`onnxruntime`"
        ),
        f"run `pip uninstall -y onnxruntime onnxruntime-gpu`, then `{install}`",
    )


MACHINES: list[tuple[FakeDriver, str, str]] = [
    (
        FakeDriver(missing=["libcuda.so.1"]),
        "there is no NVIDIA driver: libcuda.so.1: cannot open shared object file: No such file or directory",
        (
            "install NVIDIA's driver, 580 or newer; in a container, start it with access to the GPUs, as with `docker "
            "run --gpus all`"
        ),
    ),
    (
        FakeDriver(starts=100),
        "NVIDIA's driver finds no GPU (CUDA error 100)",
        (
            "`nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them, and a container needs access to them, as "
            "with `docker run --gpus all`"
        ),
    ),
    (
        FakeDriver(gpus=[]),
        "NVIDIA's driver lists no GPU",
        "`nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them",
    ),
    (
        FakeDriver(starts=803),
        "the kernel's part of NVIDIA's driver and its libraries are of different versions (CUDA error 803)",
        "restart the machine (`sudo reboot`), as after each update of the driver; in a container, start it again",
    ),
    (
        FakeDriver(starts=46, errors={46: b"CUDA_ERROR_DEVICE_UNAVAILABLE"}),
        "NVIDIA's driver cannot start (CUDA_ERROR_DEVICE_UNAVAILABLE, 46)",
        "`nvidia-smi` must work on this machine first; after an update of the driver, restart it",
    ),
    (
        FakeDriver(runtime=804),
        (
            "this GPU does not support CUDA's forward compatibility, and the libraries of a newer driver are found "
            "first (CUDA error 804)"
        ),
        (
            "`ldconfig -p | grep libcuda.so.1` shows them: remove the package `cuda-compat`, and its folder from "
            "LD_LIBRARY_PATH, or install NVIDIA's driver, 580 or newer"
        ),
    ),
    (
        FakeDriver(runtime=999),
        "NVIDIA's driver cannot start CUDA, for an unknown reason (CUDA error 999)",
        "load its kernel module for CUDA: `sudo modprobe nvidia_uvm` (after a suspend, `sudo rmmod nvidia_uvm` first)",
    ),
    (
        FakeDriver(starts=7777),
        "NVIDIA's driver cannot start (error 7777)",
        "`nvidia-smi` must work on this machine first; after an update of the driver, restart it",
    ),
    (
        FakeDriver(version=12040),
        "NVIDIA's driver supports CUDA 12.4, and onnxruntime 1.31.1 needs CUDA 13",
        "install a newer driver, 580 or newer: `nvidia-smi` shows the version that is installed",
    ),
    (
        FakeDriver(gpus=[FakeGpu("Tesla V100", (7, 0))]),
        (
            "onnxruntime-gpu 1.31.1 has no code for the GPU Tesla V100, of compute capability 7.0; it has code for "
            "7.5, 8.0, 8.6, 8.9, 9.0, 12.0"
        ),
        (
            "use a GPU of one of these, NVIDIA's own build of onnxruntime for this board, or a bundle for the CPU: "
            "`ortkit export MODEL --provider cpu`"
        ),
    ),
    (
        FakeDriver(gpus=[FakeGpu("Quadro P400", (6, 1)), FakeGpu()]),
        (
            "onnxruntime-gpu 1.31.1 has no code for the GPU Quadro P400, of compute capability 6.1; it has code for "
            "7.5, 8.0, 8.6, 8.9, 9.0, 12.0"
        ),
        "set CUDA_VISIBLE_DEVICES=1, a GPU that it has code for",
    ),
    (
        FakeDriver(missing=["libcublasLt.so.13", "libcublas.so.13"]),
        (
            "the library `libcublasLt.so.13` cannot be loaded: libcublasLt.so.13: cannot open shared object file: "
            "No such file or directory"
        ),
        "run `pip install 'nvidia-cublas~=13.0'`",
    ),
    (
        FakeDriver(missing=["libcudart.so.13", "libcurand.so.10"]),
        (
            "the library `libcudart.so.13` cannot be loaded: libcudart.so.13: cannot open shared object file: "
            "No such file or directory"
        ),
        "run `pip install 'nvidia-cuda-runtime~=13.0' 'nvidia-curand~=10.0'`",
    ),
]


@pytest.mark.parametrize(("driver", "message", "hint"), MACHINES)
def test_what_is_missing_on_this_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, message: str, hint: str
) -> None:
    module = FakeOnnxruntime()
    use(monkeypatch, module, driver)

    assert refused(path) == (f"`cuda` is not available: {message}", hint)
    assert module.opened == []


def attention_graph(path: Path) -> Path:
    """com.microsoft.MultiHeadAttention alone."""
    shape = ["batch", "tokens", 8]
    graph = helper.make_graph(
        [helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=2)],
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_a_library_that_some_graphs_need(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime asks for cuDNN at the first MultiHeadAttention, after it has opened the session."""
    module = FakeOnnxruntime()
    use(monkeypatch, module, FakeDriver(missing=["libcudnn.so.9"]))
    attention = attention_graph(tmp_path / "attention.onnx")

    assert refused(attention) == (
        (
            "`cuda` is not available: the library `libcudnn.so.9`, which `MultiHeadAttention` needs, cannot be loaded: "
            "libcudnn.so.9: cannot open shared object file: No such file or directory"
        ),
        "run `pip install 'nvidia-cudnn-cu13~=9.0'`",
    )
    assert module.opened == []
    assert Session(path, CONFIG).provider is Provider.CUDA
    use(monkeypatch, module)
    assert Session(attention, CONFIG).provider is Provider.CUDA


@pytest.mark.parametrize(
    ("machine", "capability", "runs"),
    [
        ("x86_64", (7, 5), True),
        ("x86_64", (8, 7), True),
        ("x86_64", (10, 0), False),
        ("x86_64", (12, 1), True),
        ("aarch64", (8, 7), False),
        ("aarch64", (9, 0), True),
        ("aarch64", (11, 0), False),
        ("aarch64", (12, 1), True),
    ],
)
def test_gpus_that_the_wheel_has_code_for(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    capability: tuple[int, int],
    runs: bool,  # noqa: FBT001
) -> None:
    """Orin (8.7) and Thor (11.0) on aarch64 need NVIDIA's own builds."""
    use(monkeypatch, FakeOnnxruntime())
    monkeypatch.setattr("platform.machine", lambda: machine)
    driver = FakeDriver(gpus=[FakeGpu("GPU", capability)])

    assert (cuda_problem(FakeOnnxruntime(), driver.load) is None) is runs


@pytest.mark.parametrize(
    ("packages", "from_index", "known"),
    [
        ({"onnxruntime-gpu": "1.30.0"}, True, True),
        ({"onnxruntime-gpu": "1.31.1"}, True, True),
        ({"onnxruntime-gpu": "1.32.0"}, True, False),
        ({"onnxruntime-gpu": "1.310.0"}, True, False),
        ({"ort-nightly-gpu": "1.31.1"}, True, False),
        # NVIDIA's own build, for a board.
        ({"onnxruntime-gpu": "1.31.1"}, False, False),
    ],
)
def test_a_gpu_that_another_wheel_may_have_code_for_is_tried(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packages: dict[str, str],
    from_index: bool,  # noqa: FBT001
    known: bool,  # noqa: FBT001
) -> None:
    """And what the session says is reported: `no kernel image`."""
    module = FakeOnnxruntime(refusal=Fail("CUDA failure 209: no kernel image is available ; GPU=0"))
    use(monkeypatch, module, FakeDriver(gpus=[FakeGpu("GPU", (10, 0))]), packages=packages)
    monkeypatch.setattr("ortkit.runtime.session.cuda.is_from_index", lambda _: from_index)

    message, _ = refused(path)

    assert ("it has code for 7.5" in message) is known
    assert ("has no code for this GPU (CUDA error 209)" in message) is not known
    assert (module.opened == []) is known


@pytest.mark.parametrize(
    ("tag", "published"), [("manylinux_2_28_x86_64", True), ("linux_aarch64", False), (None, False)]
)
def test_a_wheel_of_the_package_index(
    monkeypatch: pytest.MonkeyPatch,
    tag: str | None,
    published: bool,  # noqa: FBT001
) -> None:
    from importlib import metadata

    def distribution(name: str) -> Any:
        if tag is None:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(read_text=lambda _: f"Wheel-Version: 1.0\nTag: cp312-cp312-{tag}\n")

    monkeypatch.setattr(metadata, "distribution", distribution)

    assert is_from_index("onnxruntime-gpu") is published


def test_a_newer_driver_and_the_gpus_it_lists() -> None:
    driver = find_driver(FakeDriver(version=13020, gpus=[FakeGpu(), FakeGpu("NVIDIA T4", (7, 5), 1 << 34)]).load)

    assert not isinstance(driver, Problem)
    assert driver.cuda == (13, 2)
    assert [(gpu.name, gpu.capability, gpu.memory) for gpu in driver.gpus] == [
        ("NVIDIA L4", (8, 9), 23 << 30),
        ("NVIDIA T4", (7, 5), 1 << 34),
    ]


def test_a_session_that_is_on_the_cpu_although_nothing_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime(obtained=[CPU], subgraphs=[]))

    assert refused(path) == (
        f"`{CUDA}` was requested for `{path}`, and onnxruntime used `{CPU}` instead",
        "`ortkit providers` shows what this machine has",
    )


def test_a_gpu_is_named_as_cuda_visible_devices_names_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 2")
    use(monkeypatch, FakeOnnxruntime(), FakeDriver(gpus=[FakeGpu("Quadro P400", (6, 1)), FakeGpu()]))

    assert refused(path)[1] == "set CUDA_VISIBLE_DEVICES=2, a GPU that it has code for"


def test_a_library_of_the_drivers_name_that_is_not_the_driver() -> None:
    problem = find_driver(lambda _: SimpleNamespace())

    assert isinstance(problem, Problem)
    assert problem.message == (
        "`libcuda.so.1` is not NVIDIA's driver: 'types.SimpleNamespace' object has no attribute 'cuInit'"
    )


def test_a_placement_that_onnxruntime_did_not_record_proves_nothing(path: Path) -> None:
    class Silent:
        def get_providers(self) -> list[str]:
            return [COREML, CPU]

        def get_provider_graph_assignment_info(self) -> list[object]:
            raise RuntimeError("not recorded")

    with pytest.raises(ProviderError) as caught:
        check_placement(Silent(), COREML, path, one_program=True)
    assert caught.value.message == (
        f"onnxruntime does not say which provider runs the nodes of `{path}`, so that `{COREML}` cannot be proved"
    )
    check_placement(Silent(), COREML, path, one_program=True, recorded=False)


def test_a_limit_beyond_what_onnxruntime_reads(tmp_path: Path) -> None:
    bundle = write_embedder(tmp_path / "embedder")
    assert SessionConfig.of(bundle, max_memory=1 << 70).max_memory == (1 << 63) - 1


OTHER_GRAPH = "the graph was not made for this provider, or for another version of it: export the model again"


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [(CUDA, "MatMul"), (CPU, "Gather")],
            f"1 of the 2 nodes of `{{path}}` would run on `{CPU}` instead of `{CUDA}`: 1 Gather",
        ),
        (
            [
                *([(CPU, "com.microsoft.MatMulIntegerToFloat")] * 24),
                (CUDA, "Add"),
                *([(CPU, "Gather")] * 2),
                (CPU, "Concat"),
                (CPU, "Slice"),
            ],
            (
                f"28 of the 29 nodes of `{{path}}` would run on `{CPU}` instead of `{CUDA}`: 24 "
                "com.microsoft.MatMulIntegerToFloat, 2 Gather, 1 Concat and 1 other operator"
            ),
        ),
    ],
)
def test_nodes_that_are_left_to_the_cpu(
    path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[str, str]], message: str
) -> None:
    """As where a graph for the CPU is to run on CUDA: onnxruntime says only that there are some."""
    module = FakeOnnxruntime(subgraphs=[[node] for node in nodes])
    use(monkeypatch, module)

    assert refused(path) == (message.format(path=path), OTHER_GRAPH)
    asked = [opened.options.entries.get("session.disable_cpu_ep_fallback") for opened in module.opened]
    assert asked == ["1", None]


def test_a_copy_between_providers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeOnnxruntime(subgraphs=[[(CUDA, "MatMul")], [(CUDA, "MemcpyToHost")]])
    use(monkeypatch, module)

    assert refused(path)[0] == (
        f"1 of the 2 nodes of `{path}` would run between two providers instead of `{CUDA}`: 1 MemcpyToHost"
    )


def test_an_error_of_opening_that_is_not_about_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime())
    (tmp_path / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(BundleError, match="onnxruntime cannot open"):
        Session(tmp_path / "model.onnx", CONFIG)


@pytest.mark.parametrize(
    ("subgraphs", "message"),
    [
        ([[(COREML, "Gemm"), (COREML, "Gather")]], None),
        (
            [[(COREML, "Gemm")], [(COREML, "Gather")]],
            f"`{COREML}` would run `{{path}}` as 2 programs with copies between them, not as one",
        ),
        (
            [[(COREML, "Gemm")], [(CPU, "Cast")]],
            f"1 of the 2 nodes of `{{path}}` would run on `{CPU}` instead of `{COREML}`: 1 Cast",
        ),
    ],
)
def test_coreml_runs_a_graph_as_one_program(
    path: Path, monkeypatch: pytest.MonkeyPatch, subgraphs: Any, message: str | None
) -> None:
    module = FakeOnnxruntime(available=[COREML, CPU], obtained=[COREML, CPU], subgraphs=subgraphs)
    use(monkeypatch, module, packages={"onnxruntime": "1.31.1"})
    monkeypatch.setattr("sys.platform", "darwin")
    config = replace(CONFIG, provider=Provider.COREML, bucket=Bucket(2, 4))

    if message is None:
        Session(path, config)
        assert [name for name, _ in module.opened[0].providers[:1]] == [COREML]
        assert module.opened[0].providers[1] == CPU
        return
    assert refused(path, config) == (message.format(path=path), OTHER_GRAPH)


def test_coreml_on_linux(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime())
    monkeypatch.setattr("platform.system", lambda: "Linux")

    assert refused(path, replace(CONFIG, provider=Provider.COREML)) == (
        "`coreml` is not available: CoreML is a part of macOS, and this machine runs Linux",
        "use a bundle for this machine: `ortkit export MODEL --provider cpu`",
    )


def test_a_build_for_macos_without_coreml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime(available=[CPU]), packages={"onnxruntime": "1.31.1"})
    monkeypatch.setattr("sys.platform", "darwin")

    assert refused(path, replace(CONFIG, provider=Provider.COREML)) == (
        "`coreml` is not available: onnxruntime 1.31.1 is built without CoreML",
        "run `pip install 'onnxruntime>=1.31'`",
    )


def plugin(library: Callable[[], str]) -> PluginProvider:
    return PluginProvider(
        "PluginExecutionProvider",
        lambda _ort, _config: Request(options={"power": "low"}),
        library=library,
        package="onnxruntime-ep-plugin",
    )


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.session.providers._REGISTERED", set())


@pytest.mark.usefixtures("no_plugins")
def test_a_plugin_is_one_more_entry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library is registered once, and its device is an option of the session."""
    name = "PluginExecutionProvider"
    module = FakeOnnxruntime(available=[CPU], obtained=[name, CPU], devices=[name])
    use(monkeypatch, module)
    monkeypatch.setitem(PROVIDERS, Provider.CUDA, plugin(lambda: "/opt/plugin.so"))

    for _ in range(2):
        Session(path, CONFIG)

    assert module.registered == {name: "/opt/plugin.so"}
    assert [opened.providers for opened in module.opened] == [None, None]
    assert module.opened[0].options.devices == [([name], {"power": "low"})]


def _not_installed() -> str:
    raise ImportError("No module named 'onnxruntime_ep_plugin'")


def _another_version() -> str:
    raise RuntimeError("it needs ORT API 29")


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(
    ("library", "message", "hint"),
    [
        (
            _not_installed,
            "`PluginExecutionProvider` is not installed: No module named 'onnxruntime_ep_plugin'",
            "run `pip install onnxruntime-ep-plugin`",
        ),
        (
            _another_version,
            "the library of `PluginExecutionProvider` cannot be registered: it needs ORT API 29",
            "run `pip install --upgrade onnxruntime-ep-plugin`",
        ),
        (
            lambda: "/opt/plugin.so",
            "`PluginExecutionProvider` finds no device that it can run on",
            "install the driver of this machine's GPU",
        ),
    ],
)
def test_a_plugin_that_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch, library: Callable[[], str], message: str, hint: str
) -> None:
    use(monkeypatch, FakeOnnxruntime(available=[CPU]))
    monkeypatch.setitem(PROVIDERS, Provider.CUDA, plugin(library))

    assert refused(path) == (message, hint)


def test_values_on_the_device_and_what_is_left_of_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime())
    session = Session(path, replace(CONFIG, max_memory=1 << 20))
    array = np.arange(6, dtype=np.float16).reshape(2, 3)

    value = session.value(array)
    empty = session.empty((100, 1000), np.float32)

    array[:] = 0
    assert value.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert value.numpy().dtype == np.float16
    assert list(empty.shape()) == [100, 1000]
    assert session.available_memory() == (1 << 20) - path.stat().st_size - 12 - 400_000
    del empty
    assert session.available_memory() == (1 << 20) - path.stat().st_size - 12


def test_without_a_limit_what_is_free_on_the_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime(), FakeDriver(free=123 << 20))

    assert Session(path, CONFIG).available_memory() == 123 << 20


def memory_error(run: Callable[[], object]) -> OrtkitError:
    with pytest.raises(OutOfMemoryError) as caught:
        run()
    assert caught.value.exit_code == 9
    return caught.value


ARENA = (
    "Non-zero status code returned while running MatMul node. Name:'' Status Message: /onnxruntime/core/framework/"
    "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Available memory of 1 is smaller "
    "than requested bytes of 2"
)
GPU_HINT = "raise `max_memory` (`--max-memory`), or take smaller `batch_tokens`, shorter texts, or fewer bits"


def test_an_allocation_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeOnnxruntime()
    use(monkeypatch, module)
    session = Session(path, replace(CONFIG, max_memory=64 << 20))
    module.failure = RuntimeException("Available memory of 1 is smaller than requested bytes of 2\n")

    error = memory_error(lambda: session.empty((1 << 20, 32), np.float32))

    assert error.message == (
        "there is no memory for 128 MiB more on the device `cuda` within `max_memory`, 64 MiB: Available memory of 1 "
        "is smaller than requested bytes of 2"
    )
    assert error.hint == GPU_HINT


@pytest.mark.parametrize(
    ("error", "max_memory", "free", "expected"),
    [
        (RuntimeException(ARENA), 64 << 20, 20 << 30, OutOfMemoryError),
        (Fail(ARENA), 64 << 20, 20 << 30, OutOfMemoryError),
        (Fail(ARENA), None, 20 << 30, OutOfMemoryError),
        (Fail("CUDA failure 2: out of memory ; GPU=0"), None, 20 << 30, OutOfMemoryError),
        (Fail("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"), None, 20 << 30, OutOfMemoryError),
        (Fail("cuDNN failure: no workspace"), None, 30 << 20, OutOfMemoryError),
        # Only allocations fail for want of memory, within a limit too.
        (Fail("a kernel"), 64 << 20, 20 << 30, BundleError),
        (RuntimeException("a shape"), 64 << 20, 20 << 30, BundleError),
        (Fail("CUDA failure 700: an illegal memory access was encountered ; GPU=0"), 64 << 20, 30 << 20, BundleError),
        (Fail("CUBLAS failure 2: of cuBLAS ; GPU=0"), 64 << 20, 20 << 30, BundleError),
        (ValueError(ARENA), 64 << 20, 20 << 30, BundleError),
        (ValueError("Required inputs are missing"), 64 << 20, 20 << 30, BundleError),
        (ValueError("Required inputs are missing"), None, 30 << 20, BundleError),
    ],
)
def test_a_run_that_fails_for_want_of_gpu_memory(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    max_memory: int | None,
    free: int,
    expected: type[OrtkitError],
) -> None:
    """By the class of the exception, and the code of CUDA or the arena that its text names (`cuda_errors.py`)."""
    module, driver = FakeOnnxruntime(), FakeDriver()
    use(monkeypatch, module, driver)
    session = Session(path, replace(CONFIG, max_memory=max_memory))
    module.failure, driver.free = error, free

    with pytest.raises(expected) as caught:
        session.run({"x": np.ones((1, 4), np.float32)})

    assert type(caught.value) is expected
    assert str(error) in caught.value.message
    if expected is OutOfMemoryError:
        limit = "`max_memory` is 64 MiB, " if max_memory is not None else ""
        left = f"{free >> 20:,} MiB are free on the GPU"
        assert caught.value.message == f"there is too little GPU memory to run `{path}` ({limit}{left}): {error}"
        assert (caught.value.hint, caught.value.exit_code) == (GPU_HINT, 9)


@pytest.mark.parametrize(
    ("needed", "expected"), [(60 << 20, BundleError), (70 << 20, BundleError), (21 << 30, OutOfMemoryError)]
)
def test_a_graph_that_cannot_be_opened_within_a_limit(
    monkeypatch: pytest.MonkeyPatch, needed: int, expected: type[OrtkitError]
) -> None:
    """A general failure of opening is one of memory only where the GPU has no room for the weights."""
    use(monkeypatch, FakeOnnxruntime())

    found = gpu_failure(Path("model.onnx"), "open", Fail("no such operator"), needed=needed, max_memory=64 << 20)

    assert type(found) is expected


@pytest.mark.parametrize(
    ("max_memory", "free", "message"),
    [
        (4, 20 << 30, "take at least 0 MiB, and `max_memory` is 0 MiB"),
        (None, 4, "take at least 0 MiB, and 0 MiB are free on the GPU"),
    ],
)
def test_weights_that_do_not_fit_are_not_loaded(
    path: Path, monkeypatch: pytest.MonkeyPatch, max_memory: int | None, free: int, message: str
) -> None:
    module = FakeOnnxruntime()
    use(monkeypatch, module, FakeDriver(free=free))

    error = memory_error(lambda: Session(path, replace(CONFIG, max_memory=max_memory)))

    assert error.message == f"the weights of `{path}` {message}"
    assert module.opened == []


STATES = {
    35: "NVIDIA's driver is too old for the CUDA that onnxruntime is built for",
    100: "NVIDIA's driver finds no GPU",
    209: "onnxruntime has no code for this GPU",
    803: "the kernel's part of NVIDIA's driver and its libraries are of different versions",
    804: "this GPU does not support CUDA's forward compatibility, and the libraries of a newer driver are found first",
    999: "NVIDIA's driver cannot start CUDA, for an unknown reason",
}


@pytest.mark.parametrize("code", STATES)
def test_what_onnxruntime_says_of_the_machine(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Where nothing was found to be missing: in opening, in a run, and in an allocation, within a limit too."""
    module, error = FakeOnnxruntime(), Fail(f"CUDA failure {code}: what CUDA says ; GPU=0 ; hostname=box ; line=9")
    use(monkeypatch, module)
    session = Session(path, replace(CONFIG, max_memory=64 << 20))
    module.failure = module.refusal = error

    for fails in (
        lambda: Session(path, CONFIG),
        lambda: session.run({"x": np.ones((1, 4), np.float32)}),
        lambda: session.empty((1, 4), np.float32),
    ):
        with pytest.raises(ProviderError) as caught:
            fails()
        assert caught.value.message == f"`cuda` is not available: {STATES[code]} (CUDA error {code})"
        assert caught.value.hint
        assert caught.value.exit_code == 8


@pytest.mark.parametrize("provider", [Provider.CPU, Provider.COREML])
def test_a_limit_on_gpu_memory_elsewhere(path: Path, provider: Provider) -> None:
    with pytest.raises(InputError) as caught:
        Session(path, replace(CONFIG, provider=provider, max_memory=1 << 30))
    assert caught.value.message == f"`max_memory` limits the memory of a GPU, and the graph is for `{provider.value}`"
    assert caught.value.exit_code == 2


def test_values_on_the_cpu_are_copies(path: Path) -> None:
    session = Session(path, replace(CONFIG, provider=Provider.CPU))
    array = np.arange(3, dtype=np.int64)

    value = session.value(array)
    array[:] = 7

    assert session.device == "cpu"
    assert value.numpy().tolist() == [0, 1, 2]
    value.update_inplace(array)
    assert value.numpy().tolist() == [7, 7, 7]
    assert session.empty((2, 5), np.float16).shape() == [2, 5]


def encoder_graph(path: Path, output: Sequence[str | int]) -> Path:
    """Token embeddings of `input_ids` (texts, tokens) whose axes are said to be `output`."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["found"])]
    if output[0] == "tokens":
        nodes.append(helper.make_node("Transpose", ["found"], ["out"], perm=[1, 0, 2]))
    else:
        nodes.append(helper.make_node("Identity", ["found"], ["out"]))
    graph = helper.make_graph(
        nodes,
        "embeddings",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "tokens"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, output)],
        [onnx.numpy_helper.from_array(np.ones((9, 2), np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("layout", Layout)
def test_a_layout_that_is_not_the_graphs(tmp_path: Path, layout: Layout) -> None:
    """With as many texts as tokens, the shape of the output would not show it."""
    axes = {Layout.TOKENS_FIRST: ["tokens", "texts", 2], Layout.TEXTS_FIRST: ["texts", "tokens", 2]}
    path = encoder_graph(tmp_path / "model.onnx", axes[layout])
    config = SessionConfig(Provider.CPU, ("input_ids",), layout=layout)
    Session(path, config)
    (other,) = set(Layout) - {layout}

    with pytest.raises(BundleError) as caught:
        Session(path, replace(config, layout=other))
    assert caught.value.message == (
        f"the graph `{path}` gives token embeddings of the shape {axes[layout]}, and the manifest says `{other.value}`"
    )
    assert caught.value.exit_code == 7


def test_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `pip uninstall onnxruntime` where onnxruntime-gpu had overwritten it."""
    import sys

    from ortkit import MissingPartError
    from ortkit.runtime.session.onnxruntime_import import load_onnxruntime

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__path__=[]))
    monkeypatch.setattr("ortkit.runtime.session.onnxruntime_import.installed", lambda: {"onnxruntime-gpu": "1.31.1"})

    with pytest.raises(MissingPartError) as caught:
        load_onnxruntime()
    assert caught.value.message == (
        "the installation of onnxruntime is incomplete: another package with the same module was removed or overwritten"
    )
    assert caught.value.hint == ("run `pip uninstall -y onnxruntime-gpu`, then `pip install 'onnxruntime-gpu>=1.30'`")
