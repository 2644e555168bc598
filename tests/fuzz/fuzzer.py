"""Mutates what people and programs hand to the package: ``python -m tests.fuzz.fuzzer --seconds 600``.

Every target is fuzzed for so long, ``--jobs`` of them at a time. A child takes one mutated input after another, under a
limit of memory; inputs that reach new lines of the package or new messages are mutated further. The parent sees crashes
and hangs, and starts another child. Findings are saved in tests/fuzz/corpus, which test_corpus.py replays.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import random
import select
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
# Modules beside this one; each has a class Target(folder) with kinds of input and use(kind, input), which may return
# the message of an error that the input met.
TARGETS = ("checkpoints", "tokenizers", "tools", "chat_files", "training_data", "http_bodies")
HANG_SECONDS = 30
TRACED = 0.25  # share of the executions whose lines are noted: that makes one several times as long


def make_target(name, work):
    """The target of a name, with what it needs in a folder; a seed that it refused would hide what is behind."""
    target = importlib.import_module(f"tests.fuzz.{name}").Target(work)
    for kind, known in target.kinds.items():
        for seed in known.seeds:
            refusal = target.use(kind, seed)
            assert not refusal, refusal
    return target


def child(name, work, corpus, seed, chosen):
    """Mutate and use until killed; every line on stdout is a JSON object for the parent."""
    from tests.fuzz.mutations import MAX_INPUT_BYTES, mutate
    from tests.fuzz.watching import Lines, limit_memory, outcome

    rng = random.Random(seed)
    messages, found, lines = set(), set(), Lines()
    target = make_target(name, work / "files")
    pools = {kind: list(known.seeds) for kind, known in target.kinds.items()}
    for path in (work / "pool").iterdir():
        pools[path.name.split("-")[0]].append(path.read_bytes())
    limit_memory()
    executions, told = 0, 0.0
    while True:
        if time.monotonic() > told + 0.5:
            told = time.monotonic()
            tell(executions=executions, lines=len(lines.seen), messages=len(messages))
        kind = rng.choice(chosen or list(pools))
        pool = pools[kind]
        data = mutate(rng.choice(pool), target.kinds[kind], rng, pool)
        if len(data) > MAX_INPUT_BYTES:
            continue
        (work / "current").write_bytes(kind.encode() + b"\n" + data)
        before = len(lines.seen), len(messages)
        with lines if rng.random() < TRACED else contextlib.nullcontext():
            fault, message = outcome(target, kind, data)
        executions += 1
        messages.add((kind, message))
        if (kind, fault) in found:
            continue
        if fault is not None:
            found.add((kind, fault))
            tell(fault=fault, kind=kind, file=save(data, kind, corpus))
        elif (len(lines.seen), len(messages)) != before:
            pool.append(data)
            save(data, kind, work / "pool")


def replay():
    """Use every file of the corpus; print the name of each, its target's in front, with its fault, or null."""
    from tests.fuzz.watching import limit_memory, outcome

    with tempfile.TemporaryDirectory() as work:
        targets = {name: make_target(name, Path(work) / name) for name in TARGETS if (CORPUS / name).is_dir()}
        limit_memory()
        for path in saved_files():
            fault, _ = outcome(targets[path.parent.name], path.name.split("-")[0], path.read_bytes())
            print(json.dumps([f"{path.parent.name}/{path.name}", fault]), flush=True)


def saved_files():
    """The corpus, in order."""
    return sorted(CORPUS.glob("*/*"))


def tell(**report):
    print(json.dumps(report), flush=True)


def save(data, kind, folder):
    path = folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path.name


def fuzz(name, seconds, seed, kinds, corpus):
    """Run children of a target until the time is over; returns the findings and a line about the run."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        work, corpus = Path(folder), corpus / name
        (work / "pool").mkdir()
        corpus.mkdir(parents=True, exist_ok=True)
        findings, executions, most = {}, 0, {"lines": 0, "messages": 0}
        left = seconds
        while left > 0:
            command = [sys.executable, "-m", "tests.fuzz.fuzzer", "--target", name, "--child", folder]
            command += ["--seed", str(seed), "--corpus", str(corpus), *kinds]
            fault, found, last, taken = watch(command, work, left)
            if fault is not None:
                kind, data = (work / "current").read_bytes().split(b"\n", 1)
                found.setdefault(f"{kind.decode()}: {fault}", save(data, kind.decode(), corpus))
            findings = found | findings
            left -= taken
            executions, seed = executions + last["executions"], seed + 1
            most = {key: max(most[key], last[key]) for key in most}
        with contextlib.suppress(OSError):  # something was found
            corpus.rmdir()
    figures = f"{most['lines']} lines of the package and {most['messages']} kinds of message by one child"
    return findings, f"{name}: {executions} executions in {seconds:g} s, {executions / seconds:.0f}/s; {figures}"


def watch(command, work, seconds):
    """Run a child until it has fuzzed for so long, ends, or says nothing for long.

    Returns:
        What ended it, None for the time; what it found; its last report; the seconds that it has fuzzed.
    Raises:
        RuntimeError: it did not start.
    """
    findings, last, started = {}, {}, None
    with (work / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
    fault = None
    while fault is None and (started is None or time.monotonic() < started + seconds):
        if not select.select([process.stdout], [], [], HANG_SECONDS if started else 300)[0]:
            fault = f"no answer in {HANG_SECONDS} s"
        elif not (line := process.stdout.readline()):
            last_words = (work / "errors").read_text(errors="replace").strip().rpartition("\n")[2]
            fault = f"ended with status {process.wait()} {last_words[:200]}".rstrip()
        elif "fault" in (report := json.loads(line)):
            findings.setdefault(f"{report['kind']}: {report['fault']}", report["file"])
        else:
            last, started = report, started or time.monotonic()
    process.kill()
    process.communicate()
    if started is None:
        raise RuntimeError(f"the child did not start: {fault}: {(work / 'errors').read_text()[-2000:]}")
    return fault, findings, last, time.monotonic() - started


def told_of(name, args):
    """Fuzz a target; returns what to print."""
    try:
        findings, line = fuzz(name, args.seconds, args.seed, args.kinds, args.corpus)
    except RuntimeError as error:
        return [f"FOUND {name}: {error}"]
    return [line, *(f"FOUND {fault}: {args.corpus / name / file}" for fault, file in findings.items())]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=TARGETS, help="may stand more than once; default: all")
    parser.add_argument("--seconds", type=float, default=600, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", action="store_true", help="use the saved inputs once and end")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where findings are saved")
    parser.add_argument("kinds", nargs="*", help="kinds of input; all where none is named")
    args = parser.parse_args()
    if args.kinds and len(args.target or ()) != 1:
        parser.error("kinds of input are those of one --target")
    if args.child:
        child(args.target[0], args.child, args.corpus, args.seed, args.kinds)
    if args.replay:
        replay()
        return
    print(f"seed {args.seed}", flush=True)
    num_findings = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for lines in pool.map(lambda name: told_of(name, args), args.target or TARGETS):
            print("\n".join(lines), flush=True)
            num_findings += sum(line.startswith("FOUND ") for line in lines)
    print(f"{num_findings} findings")
    sys.exit(1 if num_findings else 0)


if __name__ == "__main__":
    main()
