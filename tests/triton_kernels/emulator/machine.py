"""Runs a compiled kernel: all blocks of a grid in step, each lane an element of NumPy arrays.

Lanes that have branched apart run one after the other, the one that is furthest behind first, and meet again.
Asynchronous copies and products take effect as late as they may: when a program waits for them. What Triton makes of
the project's kernels is all that it knows; any other instruction is refused with its text.
"""

from collections.abc import Sequence

import numpy as np

from tests.triton_kernels.emulator import warps
from tests.triton_kernels.emulator.arithmetic import DTYPES, OPERATIONS
from tests.triton_kernels.emulator.memory import SHARED_BASE, GlobalMemory, KernelError, SharedMemory
from tests.triton_kernels.emulator.ptx import Address, Instruction, Operand, Program
from tests.triton_kernels.emulator.unfinished import Unfinished

# Modifiers that change nothing here: rounding to nearest, precision, caches, whole warps. Others must be known.
IGNORED = {"rn", "approx", "ftz", "full", "uni", "sync", "aligned", "ca", "cg", "L1::evict_first", "L1::evict_last"}
_MEANT = {*DTYPES, "lo", "wide", "wrap", "l", "r", "rzi", "rni", "rmi", "rpi", "global", "shared", "param"}
_MEANT |= {"v2", "v4", "v8", "bfly", "idx", "up", "down", "m8n8", "x1", "x2", "x4", "trans", "m16n8k16", "row", "col"}
_MEANT |= {"async", "commit_group", "wait_group", "mma_async", "fence", "proxy", "shared::cta", "warp"}
_MEANT |= {c + unordered for c in ("eq", "ne", "lt", "le", "gt", "ge") for unordered in ("", "u")}


class Machine:
    """One launch.

    Args:
        arguments: of the program's parameters. memory: what their pointers point to. shared_bytes: a block has.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        arguments: Sequence[int | float],
        memory: GlobalMemory,
        shared_bytes: int,
    ) -> None:
        num_blocks, num_threads = int(np.prod(grid)), program.num_threads
        self._program, self._memory = program, memory
        self._size = num_blocks * num_threads
        self._arguments = {
            name: np.array(value).astype(DTYPES[kind])
            for (name, kind), value in zip(program.parameters, arguments, strict=True)
        }
        self._registers: dict[str, np.ndarray] = {}
        self._blocks = np.repeat(np.arange(num_blocks), num_threads)
        thread = np.tile(np.arange(num_threads), num_blocks)
        self._warps = self._blocks * -(-num_threads // warps.LANES) + thread // warps.LANES
        x, y, z = self._blocks % grid[0], self._blocks // grid[0] % grid[1], self._blocks // (grid[0] * grid[1])
        self._special = {"%tid.x": thread, "%ctaid.x": x, "%ctaid.y": y, "%ctaid.z": z, "global_smem": SHARED_BASE}
        self._special |= {f"%nctaid.{axis}": size for axis, size in zip("xyz", grid, strict=True)}
        self._shared = SharedMemory(num_blocks, shared_bytes)
        self._copies, self._products = Unfinished(self._size), Unfinished(self._size)

    def run(self) -> None:
        """Until every lane has returned."""
        instructions, labels = self._program.instructions, self._program.labels
        end = len(instructions)
        places = np.zeros(self._size, dtype=np.int64)
        while (place := int(places.min())) < end:
            active = places == place
            others = places[~active]
            stop = int(others.min()) if len(others) else end
            while place < stop:
                instruction = instructions[place]
                lanes = active if instruction.guard is None else active & self._guard(instruction)
                place += 1
                if instruction.name in ("bra", "ret"):
                    places[active] = place
                    places[lanes] = end if instruction.name == "ret" else labels[str(instruction.operands[0])]
                    break
                if instruction.name == "bar" and (lanes != np.isin(self._blocks, self._blocks[lanes])).any():
                    raise KernelError("a barrier that not every thread of a block reaches")
                try:
                    with np.errstate(all="ignore"):
                        self._execute(instruction, lanes)
                except KernelError as fault:
                    raise KernelError(f"{fault}: {instruction.text}") from None
            else:
                places[active] = place
        if self._copies.pending or self._products.pending:
            raise KernelError("a kernel ends before its asynchronous copies or products")

    def _guard(self, instruction: Instruction) -> np.ndarray:
        return self.read(instruction.guard or "", "pred") ^ instruction.negated

    def _execute(self, instruction: Instruction, lanes: np.ndarray) -> None:
        name, operands = instruction.name, instruction.operands
        if name in ("wgmma", "fence", "shfl"):
            modifiers = instruction.modifiers
        else:
            modifiers = tuple(m for m in instruction.modifiers if m not in IGNORED)
            if not _MEANT.issuperset(modifiers):
                raise NotImplementedError(instruction.text)
        if name in OPERATIONS:
            if not {"bf16", "bf16x2"}.isdisjoint(modifiers) and name not in ("abs", "cvt", "sub"):
                raise NotImplementedError(instruction.text)
            self._write(operands[0], OPERATIONS[name](modifiers, operands[1:], self.read), lanes)
        else:
            getattr(self, f"_{name}")(modifiers, operands, lanes)

    # Registers

    def read(self, operand: Operand, kind: str) -> np.ndarray:
        """An operand of every lane, or one that all share."""
        dtype = DTYPES[kind]
        if isinstance(operand, int):
            if kind == "pred":
                return np.array([operand != 0])
            unsigned = np.dtype(f"u{dtype.itemsize}")
            return np.array([operand & (1 << 8 * dtype.itemsize) - 1], dtype=unsigned).view(dtype)
        assert isinstance(operand, str), operand
        if operand in self._special:
            return np.atleast_1d(np.asarray(self._special[operand], dtype=dtype))
        bits = self._registers.get(operand)
        if bits is None:
            bits = self._undefined(operand)
        if bits.dtype.itemsize > dtype.itemsize:
            return bits.astype(f"u{dtype.itemsize}").view(dtype)
        return bits.view(dtype)

    def _write(self, operand: Operand, values: np.ndarray, lanes: np.ndarray) -> None:
        """Integers are extended to the register's width by their sign."""
        assert isinstance(operand, str), operand
        if operand == "_":
            return
        dtype = self._held(operand)
        if values.dtype.kind == "f":
            values = values.view(f"u{values.itemsize}")
        values = np.broadcast_to(values.astype(dtype, copy=False), self._size)
        if lanes.all():
            self._registers[operand] = values.copy()
        else:
            self._registers[operand] = np.where(lanes, values, self._registers.get(operand, self._undefined(operand)))

    def _undefined(self, register: str) -> np.ndarray:
        """What a register holds that was never written: not a number, where it is taken for one."""
        return ~np.zeros(1, dtype=self._held(register))

    def _held(self, register: str) -> np.dtype:
        """As what a register is kept: of a float, its bits."""
        dtype = DTYPES[self._program.register_type(register)]
        return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "f" else dtype

    def _by_warp(self, operands: Operand, kind: str) -> np.ndarray:
        """(count, warps, 32) of a list of registers."""
        names = operands if isinstance(operands, tuple) else (operands,)
        values = [np.broadcast_to(self.read(name, kind), self._size) for name in names]
        return np.stack(values).reshape(len(names), -1, warps.LANES)

    def _write_by_warp(self, operands: Operand, values: np.ndarray, lanes: np.ndarray) -> None:
        for name, value in zip(operands if isinstance(operands, tuple) else (operands,), values, strict=True):
            self._write(name, value.reshape(-1), lanes)

    def _mov(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        target, source = operands
        kind = modifiers[-1]
        bits = 8 * DTYPES[kind].itemsize
        if isinstance(source, tuple):
            width = bits // len(source)
            whole = sum(self.read(part, f"u{width}").astype(DTYPES[kind]) << width * i for i, part in enumerate(source))
            self._write(target, np.asarray(whole), lanes)
        elif isinstance(target, tuple):
            width = bits // len(target)
            value = self.read(source, kind)
            for i, part in enumerate(target):
                self._write(part, (value >> width * i).astype(f"u{width // 8}"), lanes)
        else:
            self._write(target, self.read(source, kind), lanes)

    # Memory

    def _addresses(self, operand: Operand, space: str) -> np.ndarray:
        assert isinstance(operand, Address)
        kind = "u64" if space == "global" else "u32"
        return np.broadcast_to(self.read(operand.base, kind).astype(np.int64) + operand.offset, self._size)

    def _ld(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        space, kind = modifiers[0], modifiers[-1]
        target, source = operands
        if space == "param":
            assert isinstance(source, Address)
            self._write(target, self._arguments[source.base].reshape(1).view(DTYPES[kind]), lanes)
            return
        names = target if isinstance(target, tuple) else (target,)
        if not lanes.any():
            return
        place, dtype = self._addresses(source, space)[lanes], DTYPES[kind]
        if space == "global":
            loaded = self._memory.load(self._blocks[lanes], place, dtype, len(names))
        else:
            loaded = self._shared.load(self._blocks[lanes], self._warps[lanes], place, dtype, len(names))
        for i, name in enumerate(names):
            values = np.zeros(self._size, dtype=dtype)
            values[lanes] = loaded[:, i]
            self._write(name, values, lanes)

    def _st(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        space, kind = modifiers[0], modifiers[-1]
        target, source = operands
        if not lanes.any():
            return
        names = source if isinstance(source, tuple) else (source,)
        values = np.stack([np.broadcast_to(self.read(name, kind), self._size)[lanes] for name in names], axis=1)
        place = self._addresses(target, space)[lanes]
        if space == "global":
            self._memory.store(self._blocks[lanes], place, values)
        else:
            self._shared.store(self._blocks[lanes], self._warps[lanes], place, values)

    def _cp(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        """``cp.async``: bytes behind the source's size are zeros."""
        if "commit_group" in modifiers:
            self._copies.close(lanes)
            return
        if "wait_group" in modifiers:
            self._copies.wait(lanes, operands[0])
            return
        target, source, size, *rest = operands
        assert isinstance(size, int)
        valid = np.broadcast_to(self.read(rest[0], "u32") if rest else np.array([size]), self._size)
        if not set(np.unique(valid[lanes])) <= {0, size}:
            raise NotImplementedError("a copy of some of its bytes")
        blocks, owners = self._blocks[lanes], self._warps[lanes]
        place = self._addresses(target, "shared")[lanes]
        words = np.zeros((len(place), size // 4), dtype=np.uint32)
        full = valid[lanes] == size
        origin = self._addresses(source, "global")[lanes][full]
        words[full] = self._memory.load(blocks[full], origin, words.dtype, size // 4)
        self._shared.announce(blocks, owners, place, size, 1)

        def arrive(ready: np.ndarray) -> None:
            at = ready[lanes]
            self._shared.announce(blocks[at], owners[at], place[at], size, -1)
            self._shared.store(blocks[at], owners[at], place[at], words[at])

        self._copies.begin(lanes, arrive)

    def _bar(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        if "warp" not in modifiers:
            self._shared.barrier(np.unique(self._blocks[lanes]))

    def _fence(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        """Nothing here overtakes anything: a missing fence between ordinary and asynchronous accesses does not show."""

    # Warps

    def _shfl(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        target, source, operand, clamp, members = operands
        if (clamp, members) != (31, -1):
            raise NotImplementedError(f"shfl.sync of a part of a warp: {clamp}, {members}")
        self._whole_warps(lanes)
        values = warps.shuffle(modifiers[1], self._by_warp(source, "b32")[0], self._by_warp(operand, "s32")[0])
        self._write_by_warp(target, values[None], lanes)

    def _ldmatrix(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        target, source = operands
        self._whole_warps(lanes)
        count = int(next(m for m in modifiers if m[0] == "x")[1:])
        pointing = lanes & (np.arange(self._size) % warps.LANES < 8 * count)
        rows = np.zeros((self._size, 8), dtype=np.float16)
        place = self._addresses(source, "shared")[pointing]
        loaded = self._shared.load(self._blocks[pointing], self._warps[pointing], place, np.dtype(np.uint32), 4)
        rows[pointing] = loaded.view(np.float16)
        registers = warps.from_rows(rows.reshape(-1, warps.LANES, 8), "trans" in modifiers)
        self._write_by_warp(target, registers[:count], lanes)

    def _stmatrix(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        target, source = operands
        self._whole_warps(lanes)
        matrices = warps.to_rows(self._by_warp(source, "b32"), "trans" in modifiers)
        count = matrices.shape[1]
        rows = np.zeros((len(matrices), 4, 8, 8), dtype=np.float16)
        rows[:, :count] = matrices
        pointing = lanes & (np.arange(self._size) % warps.LANES < 8 * count)
        values = rows.reshape(self._size, 8)[pointing].view(np.uint32)
        place = self._addresses(target, "shared")[pointing]
        self._shared.store(self._blocks[pointing], self._warps[pointing], place, values)

    def _mma(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        *shape, result, kind, other, sums_of = modifiers
        known = shape == ["m16n8k16", "row", "col"] and kind == other and kind in ("f16", "bf16")
        if not known or result != "f32" or sums_of != "f32":
            raise NotImplementedError(f"mma.{'.'.join(modifiers)}")
        target, a, b, c = operands
        self._whole_warps(lanes)
        sums = warps.multiply(self._by_warp(a, "b32"), self._by_warp(b, "b32"), self._by_warp(c, "f32"), kind)
        self._write_by_warp(target, sums, lanes)

    def _wgmma(self, modifiers: tuple[str, ...], operands: tuple[Operand, ...], lanes: np.ndarray) -> None:
        if modifiers[0] == "fence":
            return
        if modifiers[0] == "commit_group":
            self._products.close(lanes)
            return
        if modifiers[0] == "wait_group":
            self._products.wait(lanes, operands[0])
            return
        target, a, b, accumulate, *signs = operands
        *signs, b_transposed = signs
        a_transposed = signs.pop() if isinstance(a, str) else 0
        if modifiers[-3:] != ("f32", "f16", "f16") or modifiers[3][:4] != "m64n" or signs != [1, 1]:
            raise NotImplementedError(f"wgmma.{'.'.join(modifiers)} {signs}")
        columns = int(modifiers[3][4:].partition("k")[0])
        keeps = np.broadcast_to(self.read(accumulate, "pred"), self._size).reshape(-1, warps.LANES)
        # Taken now, unlike fragments and what descriptors point to.
        a_descriptors = self.read(a, "u64") if isinstance(a, str) else None
        b_descriptors = self.read(b, "u64")

        def complete(ready: np.ndarray) -> None:
            if a_descriptors is not None:
                left = self._matrices(a_descriptors, 64, bool(a_transposed), ready)
            else:
                left = warps.left_of_group(self._by_warp(a, "b32"))
            sums = np.where(keeps, self._by_warp(target, "f32"), np.float32(0))
            right = self._matrices(b_descriptors, columns, bool(b_transposed), ready)
            self._write_by_warp(target, warps.multiply_group(left, right, sums), ready)

        self._products.begin(lanes, complete)

    def _matrices(self, descriptors: np.ndarray, rows: int, transposed: bool, lanes: np.ndarray) -> np.ndarray:
        """(groups of four warps, rows, 16) fp16 that descriptors, the same within a group, point to."""
        groups = np.broadcast_to(descriptors, self._size).reshape(-1, 4 * warps.LANES)
        active = lanes.reshape(groups.shape)
        if (active != active[:, :1]).any() or (groups != groups[:, :1])[active].any():
            raise KernelError("the warps of a wgmma are not together, or have different descriptors")
        found = np.zeros((len(groups), rows, 16), dtype=np.float16)
        for group in np.flatnonzero(active[:, 0]):
            place = warps.addresses(int(groups[group, 0]), rows, transposed).reshape(-1)
            block = np.full(len(place), self._blocks[group * 4 * warps.LANES])
            nobody = np.full(len(place), -1)  # of the warps: what reads is none of them
            found[group] = self._shared.load(block, nobody, place, found.dtype, 1).reshape(rows, 16)
        return found

    @staticmethod
    def _whole_warps(lanes: np.ndarray) -> None:
        together = lanes.reshape(-1, warps.LANES)
        if (together != together[:, :1]).any():
            raise KernelError("an instruction of a warp that not every lane reaches")
