"""Whether torch computes on an NVIDIA GPU here, and if not, why, and what would change that."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFault:
    """Why there is no GPU to compute on: "expected ..., got ...", and what to do.

    is_here: whether there is one all the same, which cannot be used.
    """

    fault: str
    cure: str
    is_here: bool = False

    def __str__(self) -> str:
        return f"{self.fault}; pass --device cpu, or {self.cure}"


def has_cuda() -> bool:
    """Whether torch sees an NVIDIA GPU. Builds for ROCm call their GPUs "cuda" too."""
    return torch.version.cuda is not None and torch.cuda.is_available()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16: from sm_80 on. One that is not here is taken for one that does."""
    return not has_cuda() or torch.cuda.get_device_capability(device) >= (8, 0)


def cuda_fault() -> DeviceFault | None:
    """Why torch does not compute on the first GPU; None where it does."""
    if (rocm := getattr(torch.version, "hip", None)) is not None:
        fault = f"expected a CUDA build of torch, got one for ROCm {rocm}, whose GPUs run nothing here"
        cure = "install a CUDA build of torch where there is a GPU of NVIDIA"
        return DeviceFault(fault=fault, cure=cure, is_here=torch.cuda.is_available())
    if not has_cuda():
        return DeviceFault(fault="expected a CUDA device, got none", cure="install a CUDA build of torch")
    try:
        major, minor = torch.cuda.get_device_capability()
    except RuntimeError as error:  # another program has it, or the driver was changed under it
        got = str(error).strip().partition("\n")[0]
        fault = f"expected a CUDA device that can be used, got one that cannot ({got})"
        return DeviceFault(fault=fault, cure="see what nvidia-smi says", is_here=True)
    compiled = torch.cuda.get_arch_list()
    if not compiled or any(_runs(name, major, minor) for name in compiled):
        return None
    got = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    fault = f"expected a GPU that this torch has code for ({', '.join(compiled)}), got {got}"
    return DeviceFault(fault=fault, cure="install a build of torch for this GPU", is_here=True)


def _runs(compiled: str, major: int, minor: int) -> bool:
    """Whether code for "sm_86" runs on a GPU, of the same major number, or for "compute_90", on any newer one."""
    kind, _, number = compiled.partition("_")
    first = divmod(int(re.sub(r"\D", "", number) or 0), 10)
    return first <= (major, minor) and (kind == "compute" or first[0] == major)
