"""timm in PyTorch as a contender, eager or compiled; run by ``worker``.

It runs in environments that have torch and timm, and may not have this package.
"""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # the first optimiser would import it, which takes seconds

CLASSES = 1000
# timm imports torchvision, which asks for these operations. Nothing here calls them.
DETECTION = (
    "nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d",
)  # fmt: skip

Steps = Callable[[int], None]


def _import_timm():
    try:
        import timm

        return timm, None
    except RuntimeError:
        # torchvision's compiled operations do not load beside a torch that is built for the CPU.
        for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in (*DETECTION, *(f"_{name}_backward" for name in DETECTION)):
        library.define(f"{name}(Tensor a) -> Tensor")
    import timm

    return timm, library


timm, _library = _import_timm()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def facts() -> dict[str, Any]:
    """Returns the platform, the device and the versions."""
    cuda = DEVICE == "cuda"
    return {
        "platform": "gpu" if cuda else "cpu",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }


def prepare(
    what: str,
    *,
    model: str,
    image_size: int,
    batch_size: int,
    dtype: str,
    threads: int,
    compiled: bool,
) -> dict[str, Callable[[], Steps]]:
    """Returns the ways of running it: functions that make a function that runs some steps."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    # JAX and TensorFlow do this by default.
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    make = functools.partial(
        _training if what == "training" else _inference,
        model,
        (batch_size, 3, image_size, image_size),
        torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        compiled,
    )
    layouts = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    if compiled:
        # Compiling takes minutes on a CPU, and the compiler chooses layouts itself.
        layouts.pop("contiguous")
    return {name: functools.partial(make, layout) for name, layout in layouts.items()}


def _training(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, compiled: bool, layout
) -> Steps:
    network = timm.create_model(name, num_classes=CLASSES, drop_rate=0.2, drop_path_rate=0.2)
    network = network.to(DEVICE, memory_format=layout).train()
    images = torch.randn(shape, device=DEVICE).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, shape[:1], device=DEVICE)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    # This is faster than timm's RMSpropTF, which loops over the parameters in Python.
    optimizer = torch.optim.RMSprop(
        network.parameters(), 1e-4, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5,
        foreach=True,
    )  # fmt: skip
    forward = torch.compile(network) if compiled else network
    half = dtype != torch.float32

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype) if half else contextlib.nullcontext():
            value = loss(forward(images), labels)
        value.backward()
        optimizer.step()

    return _repeat(step)


def _inference(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, compiled: bool, layout
) -> Steps:
    network = timm.create_model(name, num_classes=CLASSES)
    network = network.to(DEVICE, dtype, memory_format=layout).eval()
    images = torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=layout)
    forward = torch.compile(network) if compiled else network

    @torch.inference_mode()
    def step() -> None:
        forward(images)

    return _repeat(step)


def _repeat(step: Callable[[], None]) -> Steps:
    def steps(number: int) -> None:
        for _ in range(number):
            step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return steps
