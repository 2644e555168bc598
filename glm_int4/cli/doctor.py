"""``glm-int4 doctor``: what is wrong with this machine or installation, and the cure."""

import json
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glm_int4.cli import options
from glm_int4.cli.console import stderr_console
from glm_int4.cli.options import printable
from glm_int4.system import size_text

NAME = "doctor"

# Paths are not cut where the output goes into a file or an issue.
_WIDE = 200


def run(as_json: options.Json = False) -> None:
    """Examine versions, processor, GPU, compiled code and folders; name the cure of each fault."""
    from glm_int4.diagnosis.examination import examine

    console = stderr_console()
    with console.status("examining this machine") as status:
        report = examine(_chats, lambda what: status.update(f"examining {what}"))
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    if not report["ok"]:
        raise typer.Exit(1)


def _chats() -> Path:
    from glm_int4.cli.terminal.autosave import state_folder

    return state_folder()


def _print(report: dict[str, Any]) -> None:
    for label, value in _facts(report).items():
        print(printable(f"{label:<12} {value}"))
    console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else _WIDE)
    table = Table("folder", "written", "free", "path", box=None, pad_edge=False)
    for name, folder in report["folders"].items():
        free = "?" if folder["free_bytes"] is None else size_text(folder["free_bytes"])
        path = Text(printable(folder["path"] or "none"), overflow="fold")
        table.add_row(name.replace("_", " "), "yes" if folder["writable"] else "no", free, path)
    print()
    console.print(table)
    print()
    for note in report["notes"]:
        print(printable(_line("note", note)))
    for fault in report["faults"]:
        print(printable(_line("fault", fault)))
    print(f"{len(report['faults'])} faults" if report["faults"] else "no faults")


def _line(kind: str, fault: dict[str, str]) -> str:
    return f"{kind} ({fault['check']}): {fault['fault']}, so {fault['consequence']}; {fault['cure']}"


def _facts(report: dict[str, Any]) -> dict[str, str]:
    versions = report["packages"]
    missing = ", ".join(name for name, version in versions.items() if version is None)
    return {
        "glm-int4": f"{report['glm_int4']['version']} in {report['glm_int4']['folder']}",
        "system": _system(report["system"]),
        "processor": _processor(report["processor"], report["torch"]),
        "memory": _memory(report["memory"]),
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None),
        "not there": missing or "none",
        "torch": _torch(report["torch"]),
        "GPU": "; ".join(_gpu(gpu) for gpu in report["gpus"]) or f"none ({report['kernel'].get('why_not')})",
        "auto takes": _auto(report["auto"]),
        "loop": _loop(report["loop"]),
        "kernel": _kernel(report["kernel"]),
    }


def _system(system: dict[str, Any]) -> str:
    return f"{system['os']}, {system['implementation']} {system['python']}" if system else "unknown"


def _processor(processor: dict[str, Any], torch: dict[str, Any]) -> str:
    if not processor:
        return "unknown"
    instructions = processor["instructions"]
    has = "instructions unknown" if instructions is None else ", ".join(instructions) or "none of AVX2 and later"
    threads = f", {torch['threads']} threads" if "threads" in torch else ""
    return f"{processor['name']}: {processor['usable_cores']} of {processor['cores']} cores{threads}; {has}"


def _memory(memory: dict[str, Any]) -> str:
    if not memory:
        return "unknown"
    free, limit = memory["free_bytes"], memory["container_limit_bytes"]
    return (
        f"{size_text(memory['total_bytes'])}, {'?' if free is None else size_text(free)} free"
        f"{'' if limit is None else ', limited by the container'}"
    )


def _torch(torch: dict[str, Any]) -> str:
    if "error" in torch:
        return torch["error"]
    return f"{torch['version']}, built for {torch['build']}, which may use {torch['cpu_capability']}"


def _gpu(gpu: dict[str, Any]) -> str:
    free = "" if gpu["free_bytes"] is None else f", {size_text(gpu['free_bytes'])} free"
    driver = f", driver {gpu['driver']}" if gpu["driver"] else ""
    memory = f"{size_text(gpu['total_bytes'])}{free}"
    return f"{gpu['name']}, compute capability {gpu['compute_capability']}, {memory}{driver}"


def _auto(auto: dict[str, Any]) -> str:
    if auto["device"] is None:
        return "unknown"
    return f"{auto['device']}, backend {auto['backend']} ({'; '.join(auto['why']) or 'no reason given'})"


def _loop(loop: dict[str, Any]) -> str:
    if not loop["ran"]:
        return f"did not run ({loop.get('error') or loop.get('numba_error') or 'torch cannot be imported'})"
    return (
        f"compiled in {loop['compile_s']:.1f} s and {'kept' if loop['kept'] else 'not kept'}; "
        f"a product of backend {loop['backend']} in {loop['matrix_s']:.1f} s, "
        f"{loop['relative_error']:.1e} from plain torch"
    )


def _kernel(kernel: dict[str, Any]) -> str:
    if not kernel["ran"]:
        return f"did not run ({kernel.get('error') or kernel.get('why_not')})"
    how_near = f"{kernel['relative_error']:.1e} from plain torch"
    return f"{kernel['backend']}, compiled in {kernel['seconds']:.1f} s, {how_near}"
