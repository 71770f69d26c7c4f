"""What tensors and arrays this interpreter has, and whether blocks go through them unharmed.

Owns: the round trip through a small store, and the look at torch and CUDA from outside. Never
imports torch, and never loads a driver into this process: a child does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from keystow.doctor_finding import DEGRADED, MISSING, OK, Finding
from keystow.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["buffers", "cuda", "torch"]

_BLOCK_BYTES = 4096
_BLOCKS = 4
_CHILD_S = 30.0
"""Longest wait for a driver to answer."""

_BUFFERS_WHY = "blocks come from and go to plain memory: bytes, memoryviews, numpy, torch."
_TORCH_WHY = "torch tensors on the CPU can be put, got and leased without a copy in Python."
_CUDA_WHY = "blocks of a GPU go through pinned host memory; without CUDA all is host memory."

# Ends in one line of JSON. 100 is CUDA's own word for no device.
_CUDA_SCRIPT = """
import ctypes, json
said = {"library": False, "status": 0, "devices": 0, "version": 0}
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    pass
else:
    said["library"] = True
    devices, version = ctypes.c_int(0), ctypes.c_int(0)
    said["status"] = cuda.cuInit(0)
    if said["status"] == 0:
        said["status"] = cuda.cuDeviceGetCount(ctypes.byref(devices))
        cuda.cuDriverGetVersion(ctypes.byref(version))
    said["devices"], said["version"] = devices.value, version.value
print(json.dumps(said))
"""
_CUDA_NO_DEVICE = 100


def buffers() -> Finding:
    """Put blocks into a store and get them back, by each kind of memory there is."""
    name, why = "buffers", _BUFFERS_WHY
    kinds: dict[str, Callable[[bytes], Any]] = {"bytearray": bytearray, "memoryview": _view}
    version = _version("numpy")
    said = "numpy not installed"
    if version is not None:
        try:
            import numpy as np  # noqa: PLC0415 - only if used
        except ImportError as error:
            found = f"numpy {version} can't be imported: {error}"
            return Finding(name, DEGRADED, found, why, "pip install --force-reinstall numpy")
        kinds["numpy"] = lambda block: np.frombuffer(bytearray(block), np.uint8)
        said = f"numpy {version}"
    wrong = [kind for kind, make in kinds.items() if not _comes_back(make)]
    if wrong:
        found = f"other bytes came back than were put, by {', '.join(wrong)}."
        return Finding(name, MISSING, found, why, "don't use this build; report it.")
    return Finding(name, OK, f"put, get and lease are equal by {', '.join(kinds)}; {said}.", why)


def _view(block: bytes) -> memoryview:
    return memoryview(bytearray(block))


def _comes_back(make: Callable[[bytes], Any]) -> bool:
    """Whether blocks of one kind of memory come back through put, get and lease."""
    block = bytes(at * 31 % 251 for at in range(_BLOCK_BYTES * _BLOCKS))
    out = make(bytes(len(block)))
    ram = 2 * _BLOCK_BYTES * _BLOCKS
    with Store(block_bytes=_BLOCK_BYTES, ram=ram, deterministic=True) as store:
        keys = store.keys_of([bytes([number]) * 16 for number in range(_BLOCKS)])
        stored, got = store.put(keys, make(block)), store.get(keys, out)
        with store.lease(keys) as lease:
            leased = b"".join(bytes(lease[number]) for number in range(len(lease)))
    return stored == got == _BLOCKS and bytes(out) == block == leased


def torch() -> Finding:
    """Whether torch is there, without importing it."""
    name, why = "torch", _TORCH_WHY
    if util.find_spec("torch") is None:
        found = "not installed; bytes and numpy arrays work without it."
        return Finding(name, DEGRADED, found, why, "pip install torch")
    version = _version("torch")
    if version is None:
        found = "on the path, but not installed as a package: its version is unknown."
        return Finding(name, DEGRADED, found, why, "pip install torch")
    return Finding(name, OK, f"torch {version}.", why)


def cuda() -> Finding:
    """Whether the driver answers and how many devices it has, asked in a child."""
    name, why = "cuda", _CUDA_WHY
    said = _ask_driver()
    if isinstance(said, str):
        return Finding(name, DEGRADED, said, why, "try nvidia-smi; then the driver's own log.")
    if not said["library"]:
        found = "no driver (libcuda.so.1 can't be loaded)."
        return Finding(name, DEGRADED, found, why, "on a machine with a GPU: install the driver.")
    version = f"driver for CUDA {said['version'] // 1000}.{said['version'] % 1000 // 10}"
    devices = said["devices"]
    if said["status"] not in (0, _CUDA_NO_DEVICE):
        found = f"the driver answers with error {said['status']}."
        return Finding(name, DEGRADED, found, why, "try nvidia-smi; then the driver's own log.")
    if devices == 0:
        fix = "let this process see a GPU (CUDA_VISIBLE_DEVICES, --gpus)."
        return Finding(name, DEGRADED, "the driver is there and shows no device.", why, fix)
    return Finding(name, OK, f"{devices} device{'s' * (devices != 1)}, {version}.", why)


def _ask_driver() -> dict[str, Any] | str:
    """What the driver says; a sentence where it says nothing."""
    if not sys.executable:
        return "not tried: this interpreter does not know its own path."
    command = [sys.executable, "-I", "-c", _CUDA_SCRIPT]
    try:
        child = subprocess.run(  # noqa: S603 - our own interpreter with a fixed script
            command, capture_output=True, text=True, timeout=_CHILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the driver did not answer within {_CHILD_S:.0f} s."
    if child.returncode != 0:
        return f"a child that asked the driver ended with {child.returncode}."
    said: dict[str, Any] = json.loads(child.stdout)
    return said


def _version(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
