"""Mutates files of a checkpoint for a while: ``python -m tests.fuzz.fuzz_checkpoint --seconds 600``.

A child reads one mutated file after another, under a limit of memory; inputs that reach new lines of the
package or new messages are mutated further. The parent sees crashes and hangs, and starts another child.
Findings are saved in tests/fuzz/corpus, which test_corpus.py replays.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import random
import select
import subprocess
import sys
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

from tests.fuzz import targets

CORPUS = Path(__file__).parent / "corpus"
HANG_SECONDS = 30
TRACED = 0.25  # share of the executions whose lines are noted: that makes one several times as long
_BYTES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, (2**63).to_bytes(8, "little"), b"\n"]
_VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 16, 2**31, 2**63, 10**12, 10**300, 0.5, -0.0, 1e-300, 1e400, float("nan"),
    "", "1", "chatglm", "\0", "../x", "a\nb", "\ud800", "x" * 5000, [], [[]], {}, [0, 0], [2**62, 2], {"a": {"b": 1}},
    "F16", "I64", "F8_E4M3", "model-00001-of-00002.safetensors", "config.json", "pack-quantized", "channel",
]  # fmt: skip


def mutate(data, kind, file, rng, pool):
    """A variant of an input: of its inner part where the format has one, of its JSON values, or of its bytes."""
    if file.endswith(".safetensors") and rng.random() < 0.6 and len(data) > 8:
        size = int.from_bytes(data[:8], "little")
        header = (
            mutate_json(data[8 : 8 + size], rng) if rng.random() < 0.7 else mutate_bytes(data[8 : 8 + size], rng, pool)
        )
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    if kind == "bin" and rng.random() < 0.7:
        with contextlib.suppress(Exception):
            return mutate_archive(data, rng, pool)
    if file.endswith(".json") and rng.random() < 0.7:
        return mutate_json(data, rng)
    return mutate_bytes(data, rng, pool)


def mutate_json(data, rng):
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng, [data])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = [(value, key) for key in keys(value)]
        level = places
        while level:
            level = [(parent[key], inner) for parent, key in level for inner in keys(parent[key])]
            places += level
        if not places:
            break
        parent, key = rng.choice(places)
        action = rng.random()
        if action < 0.6:
            parent[key] = copy.deepcopy(rng.choice(_VALUES))
        elif action < 0.75:
            del parent[key]
        elif action < 0.9:
            parent[key] = copy.deepcopy(rng.choice([p[k] for p, k in places[:50]]))
        elif isinstance(parent, dict):
            parent[rng.choice(["", "lm_head.weight", "x" * 300, "\n", "__metadata__", "quantization_config"])] = parent[
                key
            ]
    text = json.dumps(value)
    if rng.random() < 0.05:
        text = text.replace("1", rng.choice(["1" * 5000, "[" * 2000, "NaN", "-Infinity", "1e999"]), 1)
    return text.encode()


def keys(value):
    return list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []


def mutate_bytes(data, rng, pool):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # Most of what decides stands in the first and the last kilobytes.
        size = len(data)
        at = rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(size, 500) + 1), size - rng.randrange(min(size, 500) + 1))
        )
        action = rng.randrange(8)
        if action == 0 and at < size:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1 and at < size:
            data[at] = rng.randrange(256)
        elif action == 2:
            data[at : at + len(piece)] = (piece := rng.choice(_BYTES))
        elif action == 3:
            data[at:at] = rng.choice(_BYTES) * rng.choice((1, 1, 100))
        elif action == 4:
            del data[at : at + rng.choice((1, 2, 8, 100, 1000))]
        elif action == 5 and rng.random() < 0.3:
            del data[at:]
        elif action == 6:
            data[at:at] = data[at : at + rng.choice((1, 8, 64, 500))]
        else:
            other = rng.choice(pool)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.choice((0, 32))] = other[start : start + rng.choice((4, 32, 200))]
    return bytes(data)


def mutate_archive(data, rng, pool):
    """Mutate one record of a zip archive and write the archive anew, so that its own checks pass."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as mutated:
        infos = archive.infolist()
        chosen = next(i for i in infos if i.filename.endswith("data.pkl")) if rng.random() < 0.7 else rng.choice(infos)
        for info in infos:
            record = archive.read(info)
            if info is chosen:
                record = mutate_bytes(record, rng, [record])
            how = zipfile.ZIP_DEFLATED if rng.random() < 0.01 else zipfile.ZIP_STORED
            if rng.random() > 0.01:
                mutated.writestr(info.filename, record, how)
    return out.getvalue()


def child(work, corpus, seed, kinds):
    """Mutate and read until killed; every line on stdout is a JSON object for the parent."""
    rng = random.Random(seed)
    seeds = targets.seeds(work / "seeds")
    pools = {kind: [files[name]] for kind, (name, files) in seeds.items()}
    for path in (work / "pool").iterdir():
        pools[path.name.split("-")[0]].append(path.read_bytes())
    for kind, (_, files) in seeds.items():
        targets.write_folder(work / kind, files)
    targets.limit_memory()
    messages, lines = set(), targets.Lines()
    executions, told = 0, time.monotonic()
    while True:
        kind = rng.choice(kinds or list(seeds))
        pool = pools[kind]
        data = mutate(rng.choice(pool), kind, seeds[kind][0], rng, pool)
        if len(data) > 300_000:
            continue
        (work / "current").write_bytes(kind.encode() + b"\n" + data)
        (work / kind / seeds[kind][0]).write_bytes(data)
        before = len(lines.seen), len(messages)
        with lines if rng.random() < TRACED else contextlib.nullcontext():
            fault, message = targets.outcome(work / kind)
        executions += 1
        messages.add((kind, message))
        if fault is not None:
            print(json.dumps({"fault": fault, "kind": kind, "file": save(data, kind, corpus)}), flush=True)
        elif (len(lines.seen), len(messages)) != before:
            pool.append(data)
            save(data, kind, work / "pool")
        if time.monotonic() > told + 0.5:
            told = time.monotonic()
            print(
                json.dumps({"executions": executions, "lines": len(lines.seen), "messages": len(messages)}), flush=True
            )


def replay():
    """Read every file of the corpus; print each name with its fault, or null."""
    with tempfile.TemporaryDirectory() as work:
        seeds = targets.seeds(Path(work) / "seeds")
        targets.limit_memory()
        for path in sorted(CORPUS.iterdir()):
            name, files = seeds[path.name.split("-")[0]]
            targets.write_folder(Path(work) / path.name, files | {name: path.read_bytes()})
            print(json.dumps([path.name, targets.outcome(Path(work) / path.name)[0]]), flush=True)


def save(data, kind, folder):
    path = folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path.name


def fuzz(seconds, seed, kinds, work, corpus):
    """Run children until the time is over; returns the findings."""
    (work / "pool").mkdir()
    stop, findings, executions = time.monotonic() + seconds, {}, 0
    last = {"executions": 0, "lines": 0, "messages": 0}
    most = dict(last)
    while time.monotonic() < stop:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.fuzz_checkpoint",
            "--child",
            str(work),
            "--seed",
            str(seed),
            *kinds,
        ]
        errors = (work / "errors").open("w")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        fault, started = None, False
        while fault is None and time.monotonic() < stop:
            if not select.select([process.stdout], [], [], HANG_SECONDS if started else 120)[0]:
                fault = f"no answer in {HANG_SECONDS} s"
            elif not (line := process.stdout.readline()):
                fault = f"ended with status {process.wait()}"
            elif "fault" in (report := json.loads(line)):
                findings.setdefault(f"{report['kind']}: {report['fault']}", report["file"])
            else:
                last, started = report, True
        process.kill()
        if fault is not None and not started:
            sys.exit(f"the child did not start: {fault}: {(work / 'errors').read_text()[-2000:]}")
        if fault is not None:
            kind, data = (work / "current").read_bytes().split(b"\n", 1)
            findings.setdefault(f"{kind.decode()}: {fault}", save(data, kind.decode(), corpus))
        process.communicate()
        executions, seed = executions + last["executions"], seed + 1
        most = {key: max(most[key], last[key]) for key in most}
    print(f"{executions} executions in {seconds} s: {executions / seconds:.0f}/s")
    print(f"{most['lines']} lines of the package and {most['messages']} kinds of message by one child")
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", action="store_true", help="read the saved inputs once and end")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where findings are saved")
    parser.add_argument("kinds", nargs="*", help="kinds of file; all where none is named")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.corpus, args.seed, args.kinds)
    if args.replay:
        replay()
        return
    print(f"seed {args.seed}", flush=True)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        findings = fuzz(args.seconds, args.seed, args.kinds, Path(work), args.corpus)
    for fault, file in findings.items():
        print(f"FOUND {fault}: {args.corpus / file}")
    print(f"{len(findings)} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
