"""Which device and which number format models run in: found by a probe, once for each machine and torch version.

bf16 is twice as fast as fp32 on some processors and half as fast on others, also among those that have bf16
instructions, so no rule by name or flag is right; the probe times a real transformer layer in both.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rag.errors import ConfigError
from rag.starters import read_cache, write_cache
from rag.types import content_hash

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PROBE_VERSION = 1
BF16_MARGIN = 1.15  # bf16 loses digits, so it has to be worth it: at least this much faster than fp32
_COMPUTE = "ragtune-compute"
_one: ThreadPoolExecutor | None = None  # see `compute_in_one_thread`


def pick_device(device: str | None = None) -> torch.device:
    """`device` as asked ("cpu", "cuda", "cuda:1", "mps"), or the fastest there is when None or "auto".

    Raises:
        ConfigError: the device does not exist here.
    """
    import torch

    if device in (None, "auto"):
        found = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else found
    try:
        picked = torch.device(str(device))
        torch.empty(1, device=picked)
    except (RuntimeError, AssertionError) as error:
        places = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        places += ["mps"] if torch.backends.mps.is_available() else []
        raise ConfigError(f"device {device!r} is not available here; allowed: {', '.join(places)} or auto.") from error
    if picked.type == "cpu":
        keep_freed_memory()
    return picked


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep memory that tensors gave back, for the next ones; False where that cannot be set.

    A pass on the CPU takes and returns megabytes at every product. By default glibc returns them to the kernel, which
    clears the pages when they are taken again: measured, a fifth of a prefill. In exchange a process holds what its
    largest pass needed; two arenas for all threads keep that from adding up. `MALLOC_…` in the environment goes first.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (the largest that is taken), M_ARENA_MAX
    return all(libc.mallopt(option, value) == 1 for option, value in ((-1, 1 << 30), (-3, 32 << 20), (-8, 2)))


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is not collected meanwhile: importing torch, transformers and a model makes many objects and no garbage,
    and all of them would be looked through again and again."""
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()


def compute_in_one_thread() -> None:
    """From now on `compute` runs all that the CPU computes in one thread: for a server, whose requests come in many.

    OpenMP keeps a team of workers for each thread that ever computed, and when there are more workers than processors
    none of them waits actively any more. What idle teams cost the one that works: `benchmarks/threads.py`.
    """
    global _one
    if _one is None:
        _one = ThreadPoolExecutor(1, thread_name_prefix=_COMPUTE)


def compute(device: torch.device, work: Callable[..., T], *given: Any) -> T:
    """`work(*given)`: here, or, on the CPU of a process that called `compute_in_one_thread`, in that one thread, after
    what waits there. Who calls must hold no lock that work in that thread takes."""
    if _one is None or device.type != "cpu" or threading.current_thread().name.startswith(_COMPUTE):
        return work(*given)
    return _one.submit(work, *given).result()


def pick_dtype(device: torch.device, dtype: Any = None) -> torch.dtype:
    """`dtype` as asked ("fp32", "bf16", "fp16" or a torch dtype); when None or "auto", what the environment's
    RAGTUNE_DTYPE names, else the probe's choice.

    Raises:
        ConfigError: not a floating format that models run in.
    """
    import torch

    names = {
        "fp32": torch.float32,
        "float32": torch.float32,
        "bf16": torch.bfloat16,
        "bfloat16": torch.bfloat16,
        "fp16": torch.float16,
        "float16": torch.float16,
    }
    if isinstance(dtype, torch.dtype) and dtype in names.values():
        return dtype
    if dtype in (None, "auto"):
        dtype = os.environ.get("RAGTUNE_DTYPE") or "auto"
    if dtype == "auto":
        return torch.bfloat16 if bf16_is_faster(device) else torch.float32
    if str(dtype) not in names:
        raise ConfigError(f"dtype {dtype!r} is not known; allowed: auto, fp32, bf16, fp16.")
    return names[str(dtype)]


def bf16_is_faster(device: torch.device) -> bool:
    """Whether a transformer layer runs at least `BF16_MARGIN` times faster in bf16; remembered in the cache folder."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    key = machine_key(device)
    known = read_cache("dtype", key)
    if isinstance(known, dict) and isinstance(known.get("bf16"), bool):
        return bool(known["bf16"])
    timings = probe(device)
    faster = timings["fp32"] > BF16_MARGIN * timings["bf16"]
    write_cache("dtype", key, {"bf16": faster, "seconds": timings, "machine": _machine(device)})
    return faster


def machine_key(device: torch.device) -> str:
    """Under which a probe's result is remembered: another processor, torch version or number of threads asks anew."""
    import torch

    return content_hash(_machine(device), torch.__version__, str(torch.get_num_threads()), str(PROBE_VERSION))


def probe(device: torch.device, *, tokens: int = 192, rounds: int = 5) -> dict[str, float]:
    """Seconds (best of `rounds`, the two formats taking turns) of one small transformer layer in fp32 and bf16.

    The layer is the real thing (projections, attention, gated feed-forward, norm, in the starter generator's shapes),
    because a matrix product alone says nothing about the conversions around it.
    """
    import torch

    sides = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        shapes = ((4, tokens, 576), (3 * 576, 576), (576, 576), (2 * 1536, 576), (576, 1536))
        sides[name] = [(torch.randn(s, generator=generator) * 0.02).to(device, dtype) for s in shapes]
    best = dict.fromkeys(sides, float("inf"))
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, tensors in sides.items():
                begin = time.perf_counter()
                float(_layer(*tensors)[0, 0, 0])  # reading one value waits for the device
                if turn:  # the first turn warms up
                    best[name] = min(best[name], time.perf_counter() - begin)
    return best


def _layer(
    x: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    import torch.nn.functional as F

    batch, length, width = x.shape
    heads = F.linear(F.rms_norm(x, (width,)), qkv).view(batch, length, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    x = x + F.linear(attended.transpose(1, 2).reshape(x.shape), out)
    gate, up = F.linear(F.rms_norm(x, (width,)), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


def _machine(device: torch.device) -> str:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        wanted = ("model name", "cpu family", "model\t", "stepping", "flags")
        model = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return f"{platform.machine()} {content_hash(model)} {device.type}"
