"""Variants of an input: of its inner part where the format has one, of its JSON values, its characters or its bytes."""

import contextlib
import copy
import json
import zipfile
from dataclasses import dataclass
from io import BytesIO

MAX_INPUT_BYTES = 300_000
_BYTES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, (2**63).to_bytes(8, "little"), b"\n"]
_VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 16, 2**31, 2**63, 10**12, 10**300, 0.5, -0.0, 1e-300, 1e400, float("nan"),
    "", "1", "\0", "../x", "a\nb", "\ud800", "x" * 5000, [], [[]], {}, [0, 0], [2**62, 2], {"a": {"b": 1}},
]  # fmt: skip
_CHARACTERS = [
    "\0", "\n", "\r\n", "\t", " ", "  ", "\u2581", "\ufffd", "\ud83d", "\udc4b", "\ufeff", "\u200b", "\u2028", "\u0301",
    "\U0001f44b\U0001f3fd", "Ａ", "ﬁ", "…", "龘", "é", "<", ">", "|", '"', "'", "\\", "{", "}", "[", "]", ",", ":", "1",
]  # fmt: skip
_DEPTHS = (20, 40, 300, 900, 980, 2000, 20_000)
_RAW = "\a raw \a"  # stands in a JSON value's place until text that json.dumps would not write takes it


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input: its first inputs, its format, and words that mean something in it.

    format: "bytes", "text", "json", "json lines", "safetensors" or "archive".
    """

    format: str
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()


def mutate(data, kind, rng, pool):
    """A variant of an input of a kind; ``pool`` holds others to take parts from."""
    if kind.format == "safetensors" and rng.random() < 0.6 and len(data) > 8:
        return mutate_header(data, kind, rng, pool)
    if kind.format == "archive" and rng.random() < 0.7:
        with contextlib.suppress(Exception):
            return mutate_archive(data, rng)
    if kind.format == "json" and rng.random() < 0.7:
        return mutate_json(data, kind.words, rng)
    if kind.format == "json lines" and rng.random() < 0.7:
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at : at + 1] = [mutate_json(lines[at], kind.words, rng)] * rng.choice((1, 1, 1, 2))
        return b"\n".join(lines)
    if kind.format != "bytes" and rng.random() < 0.6:
        return as_bytes(mutate_text(as_text(data), kind.words, rng, as_text(rng.choice(pool))))
    return mutate_bytes(data, kind.words, rng, pool)


def as_text(data):
    """Bytes as a text; half of a surrogate pair may stand in it."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def as_bytes(text):
    """What ``as_text`` makes ``text`` of."""
    return text.encode("utf-8", "surrogatepass")


def mutate_header(data, kind, rng, pool):
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    of_json = rng.random() < 0.7
    header = mutate_json(header, kind.words, rng) if of_json else mutate_bytes(header, kind.words, rng, pool)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutate_json(data, words, rng):
    """Change, remove, copy or rename values of a JSON text."""
    try:
        value = json.loads(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            _change_json(value, words, rng)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return mutate_bytes(data, words, rng, [data])
    return as_bytes(text.replace(json.dumps(_RAW), _odd_json(rng)))


def _change_json(value, words, rng):
    """Change one value inside a JSON value, in place."""
    places = _places(value)
    if not places:
        return
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.25 and isinstance(parent[key], str):
        parent[key] = mutate_text(parent[key], words, rng, "")
    elif action < 0.55:
        parent[key] = copy.deepcopy(rng.choice([*_VALUES, *words]))
    elif action < 0.6:
        parent[key] = _RAW
    elif action < 0.7:
        del parent[key]
    elif action < 0.85:
        parent[key] = copy.deepcopy(rng.choice([p[k] for p, k in places[:50]]))
    elif isinstance(parent, dict):
        parent[rng.choice(["", "x" * 300, "\n", *words])] = copy.deepcopy(parent[key])
    else:
        parent.insert(key, copy.deepcopy(parent[key]))


def _places(value):
    """Every parent and key in a JSON value, the outer ones first."""
    places = [(value, key) for key in _keys(value)]
    level = places
    while level:
        level = [(parent[key], inner) for parent, key in level for inner in _keys(parent[key])]
        places += level
    return places


def _keys(value):
    return list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []


def _odd_json(rng):
    """JSON that a program would hardly write."""
    depth = rng.choice(_DEPTHS)
    odd = ["1" * 5000, "-0", "1e999", "NaN", "-Infinity", "[" * depth, "{" * depth, '{"a": 1, "a": 2}']
    odd += ["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth] * 3
    return rng.choice(odd)


def mutate_text(text, words, rng, other):
    """Change characters of a text; ``other`` is one to take a part from."""
    characters = list(text)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(characters) + 1)
        action = rng.randrange(6)
        if action == 0:
            characters[at : at + rng.choice((0, 1))] = rng.choice(_CHARACTERS) * rng.choice((1, 1, 1, 3, 90))
        elif action == 1:
            characters[at : at + rng.choice((0, 1))] = chr(rng.randrange(rng.choice((128, 0x3000, 0x110000))))
        elif action == 2:
            del characters[at : at + rng.choice((1, 2, 8, 100))]
        elif action == 3:
            characters[at:at] = characters[at : at + rng.choice((1, 8, 64, 500))]
        elif action == 4 and words:
            characters[at : at + rng.choice((0, 1, 8))] = rng.choice(words)
        elif other:
            start = rng.randrange(len(other))
            characters[at:at] = other[start : start + rng.choice((4, 32, 200))]
    return "".join(characters)


def mutate_bytes(data, words, rng, pool):
    """Change bytes; most of what decides stands in the first and the last kilobytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(data)
        at = rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(size, 500) + 1), size - rng.randrange(min(size, 500) + 1))
        )
        action = rng.randrange(9)
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
        elif action == 7 and words:
            data[at : at + rng.choice((0, 8))] = as_bytes(rng.choice(words))
        else:
            other = rng.choice(pool)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.choice((0, 32))] = other[start : start + rng.choice((4, 32, 200))]
    return bytes(data)


def mutate_archive(data, rng):
    """Mutate one record of a zip archive and write the archive anew, so that its own checks pass."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as mutated:
        infos = archive.infolist()
        chosen = next(i for i in infos if i.filename.endswith("data.pkl")) if rng.random() < 0.7 else rng.choice(infos)
        for info in infos:
            record = archive.read(info)
            if info is chosen:
                record = mutate_bytes(record, (), rng, [record])
            how = zipfile.ZIP_DEFLATED if rng.random() < 0.01 else zipfile.ZIP_STORED
            if rng.random() > 0.01:
                mutated.writestr(info.filename, record, how)
    return out.getvalue()
