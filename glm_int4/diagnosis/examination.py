"""All checks one after the other: a report for programs, with the faults and their cures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm_int4.diagnosis import folders, isolated, machine, packages, verdicts
from glm_int4.diagnosis.faults import Fault, first_line
from glm_int4.version import __version__

Facts = dict[str, Any]


def examine(chats: Callable[[], Path], say: Callable[[str], None] = lambda what: None) -> Facts:
    """Examine machine and installation.

    Args:
        chats: gives the folder of the chat's history and conversations, or raises RuntimeError where there is no home.
        say: is told what is at hand.
    Returns:
        ok, glm_int4, system, processor, memory, packages, torch, gpus, auto, loop, kernel, folders, faults and notes;
        a part that could not be looked at is empty.
    """
    examination = _Examination(say)
    report: Facts = {"ok": False} | examination.machine() | examination.programs()
    report["folders"] = examination.folders(chats, report)
    found = examination.faults
    report["faults"] = [fault.to_json() for fault in found if not fault.is_note]
    report["notes"] = [fault.to_json() for fault in found if fault.is_note]
    report["ok"] = not report["faults"]
    return report


class _Examination:
    """Runs checks; one that fails itself is a fault like others, and the next one follows."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._imports: Facts = {}
        self.faults: list[Fault] = []

    def machine(self) -> Facts:
        """What the operating system says."""
        return {
            "glm_int4": {"version": __version__, "folder": str(Path(__file__).parents[1])},
            "system": self._look("system", machine.system, machine.python_faults),
            "processor": self._look("processor", machine.processor),
            "memory": self._look("memory", machine.memory, machine.memory_faults),
        }

    def programs(self) -> Facts:
        """Packages, torch, the device and backend that "auto" takes, a loop and a kernel."""
        self._imports = imports = self._ask("packages", "packages")
        versions = self._look("packages", packages.versions, lambda found: packages.package_faults(found, imports))
        torch = self._ask("torch", "torch and GPUs")
        self._judge("torch", lambda: verdicts.torch_faults(torch, versions.get("torch")))
        cards: list[dict[str, str]] = self._look("gpus", lambda: {"cards": machine.graphics_cards()}).get("cards", [])
        self._judge("gpus", lambda: verdicts.gpu_faults(torch, cards))
        gpus = torch.pop("gpus", [])
        why_no_gpu = torch.get("no_gpu_because")
        loop: Facts = {} if "error" in torch else self._ask("loop", "a loop, which is compiled")
        kernel: Facts = {"why_not": why_no_gpu or "torch cannot be imported"}
        if loop:
            processor = self._look("processor", machine.processor)
            self._judge("loop", lambda: verdicts.loop_faults(loop, processor))
        if gpus:
            kernel = self._ask("kernel", "a kernel, which is compiled")
            self._judge("kernel", lambda: verdicts.kernel_faults(kernel))
        device = torch.get("device")
        if device == "cuda" and kernel.get("backend") != "triton":  # as loading decides for a quantized model
            device = "cpu"
            why_no_gpu = kernel.get("cause") or kernel.get("error")
        chosen = kernel if device == "cuda" else loop
        why = ([why_no_gpu] if why_no_gpu else []) + chosen.get("why", [])
        return {
            "packages": versions,
            "torch": torch,
            "gpus": [gpu | {"driver": cards[0]["driver"] if cards else None} for gpu in gpus],
            "auto": {"device": device, "backend": chosen.get("backend"), "why": why},
            "loop": {"ran": loop.get("relative_error") is not None} | loop,
            "kernel": {"ran": kernel.get("relative_error") is not None} | kernel,
        }

    def folders(self, chats: Callable[[], Path], report: Facts) -> Facts:
        """The folders that must be writable."""
        has_gpu = bool(report["gpus"])
        return self._look(
            "folders",
            lambda: folders.find(chats, report["loop"], self._imports),
            lambda found: folders.folder_faults(found, has_gpu=has_gpu),
        )

    def _ask(self, probe: str, what: str) -> Facts:
        self._say(what)
        return isolated.ask(probe)

    def _look(
        self, check: str, find: Callable[[], Facts], judge: Callable[[Facts], list[Fault]] = lambda found: []
    ) -> Facts:
        """What a check finds, its faults added to the others'; empty where it fails."""
        found: Facts = {}

        def find_and_judge() -> list[Fault]:
            found.update(find())
            return judge(found)

        self._judge(check, find_and_judge)
        return found

    def _judge(self, check: str, judge: Callable[[], list[Fault]]) -> None:
        try:
            self.faults += judge()
        except Exception as error:
            self.faults.append(
                Fault(
                    check=check,
                    fault=f"expected an end of the check, got {first_line(error)}",
                    consequence="it may have overlooked something",
                    cure="report this with the output of glm-int4 doctor --json",
                )
            )
