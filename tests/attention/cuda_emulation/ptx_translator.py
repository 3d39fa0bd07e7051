"""Turns PTX, the assembly that GPU compilers emit, into C++ that runs on the emulator.

So what runs is the compiler's real output, inline assembly and all. An instruction that is not
known here is an error, never a guess. Registers become variables of raw bits; the few lines of
meaning behind each instruction are in ``emulator/ptx_runtime.h``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_REGISTER_TYPES = {
    "pred": "bool",
    "b16": "u16",
    "u16": "u16",
    "s16": "u16",
    "b32": "u32",
    "u32": "u32",
    "s32": "u32",
    "f32": "u32",
    "b64": "u64",
    "u64": "u64",
    "s64": "u64",
}
_TYPES = {
    "b16": "u16",
    "b32": "u32",
    "b64": "u64",
    "pred": "bool",
    **{name: name for name in ("s16", "s32", "s64", "u16", "u32", "u64", "f32")},
}
_TYPE_BYTES = {"u8": 1, "b8": 1, "u16": 2, "u32": 4, "b32": 4, "u64": 8, "b64": 8}
_SPECIAL = {
    "%tid.x": "emulator::thread_index()",
    "%ntid.x": "emulator::block_size()",
    **{f"%ctaid.{axis}": f"emulator::block_index({i})" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"emulator::grid_size({i})" for i, axis in enumerate("xyz")},
}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED_COMPARISONS = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_BINARY = {"add": "add", "sub": "sub", "div": "div", "rem": "rem", "max": "larger"}
_BINARY |= {"min": "smaller"}
_BITWISE = {"and": "&", "or": "|", "xor": "^"}
_FORMATS = {"f16": "kHalf", "bf16": "kBFloat16"}


class UnknownInstructionError(ValueError):
    """An instruction outside the part of PTX that is understood here."""


def translate(ptx: str) -> str:
    """C++ with one ``extern "C"`` function per kernel of a PTX module."""
    text = re.sub(r"//[^\n]*", "", ptx)
    text = re.sub(r"^\s*\.(loc|pragma)\b[^\n]*", "", text, flags=re.MULTILINE)
    entries = re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)[^{]*\{(.*?)\n\}", text, re.DOTALL)
    shared = re.findall(r"\.extern \.shared[^;]*?(\w+)\[\]", text)
    kernels = [
        _Kernel(name, _parameters(p), shared).translate(body)
        for name, p, body in (match.groups() for match in entries)
    ]
    if not kernels:
        raise UnknownInstructionError("no kernel in this PTX")
    return '#include "ptx_runtime.h"\nusing namespace ptx;\n' + "\n".join(kernels)


def _parameters(declarations: str) -> dict[str, int]:
    """Each parameter's offset in the block that the launch passes."""
    offsets, end = {}, 0
    for declaration in filter(None, map(str.strip, declarations.split(","))):
        name, array = re.fullmatch(r".*?(\w+)(?:\[(\d+)\])?", declaration, re.DOTALL).groups()  # type: ignore[union-attr]
        element = _TYPE_BYTES[re.search(r"\.([ub]\d+)", declaration)[1]]  # type: ignore[index]
        align = re.match(r"\.param \.align (\d+)", declaration)
        alignment = int(align[1]) if align else element
        start = -(-end // alignment) * alignment
        offsets[name] = start
        end = start + element * int(array or 1)
    return offsets


@dataclass
class _Instruction:
    text: str
    opcode: str
    operands: list[str]

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def type(self) -> str:
        return _TYPES[self.parts[-1]]


class _Kernel:
    def __init__(self, name: str, parameters: dict[str, int], shared: list[str]) -> None:
        self.name = name
        self.parameters = parameters
        self.shared = shared

    def translate(self, body: str) -> str:
        lines = []
        body = re.sub(r"(\$\w+):", r"\1:;", body)
        for statement in body.split(";"):
            statement = " ".join(statement.split())
            while statement[:1] in ("{", "}"):
                lines.append(statement[0])
                statement = statement[1:].strip()
            if statement:
                lines.append(self._statement(statement))
        code = "\n  ".join(line for line in lines if line)
        return f'extern "C" void {self.name}(const void* parameters) {{\n  {code}\n}}\n'

    def _statement(self, statement: str) -> str:
        if statement.startswith("$"):
            return statement.removesuffix(":").lstrip("$") + ": ;"
        if statement.startswith(".reg"):
            return _declaration(statement)
        guard = re.match(r"@(!?)(%\w+)\s+", statement)
        condition = f"if ({guard[1]}{_register(guard[2])}) " if guard else ""
        rest = statement[guard.end() :] if guard else statement
        opcode, _, operands = rest.partition(" ")
        instruction = _Instruction(statement, opcode, _split(operands))
        return f"{condition}{{ {self._translate(instruction)} }}"

    def _translate(self, i: _Instruction) -> str:
        handler: Callable[[_Instruction], str] | None = getattr(self, f"_{i.parts[0]}", None)
        if i.parts[0] in _BINARY:
            handler = self._binary
        elif i.parts[0] in _BITWISE:
            handler = self._bitwise
        if handler is None:
            raise UnknownInstructionError(i.text)
        return handler(i)

    # ---- operands ------------------------------------------------------------------------------

    def _value(self, operand: str, type_name: str) -> str:
        if operand in _SPECIAL:
            return f"as<{type_name}>({_SPECIAL[operand]})"
        if operand in self.shared:
            return f"as<{type_name}>(emulator::kSharedBase)"
        if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
            return f"as<f32>(0x{match[1]}u)"
        if re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)", operand):
            return f"as<{type_name}>({int(operand, 0)}LL)"
        return f"as<{type_name}>({_register(operand)})"

    def _values(self, i: _Instruction, type_name: str) -> list[str]:
        return [self._value(operand, type_name) for operand in i.operands[1:]]

    def _address(self, operand: str) -> str:
        base, _, offset = operand.strip("[] ").replace(" ", "").partition("+")
        return f"({self._value(base, 'u64')} + {int(offset or '0', 0)}LL)"

    # ---- arithmetic ----------------------------------------------------------------------------

    def _binary(self, i: _Instruction) -> str:
        a, b = self._values(i, i.type)
        return _set(i.operands[0], f"{_BINARY[i.parts[0]]}<{i.type}>({a}, {b})")

    def _bitwise(self, i: _Instruction) -> str:
        a, b = self._values(i, i.type)
        return _set(i.operands[0], f"as<{i.type}>({a} {_BITWISE[i.parts[0]]} {b})")

    def _mul(self, i: _Instruction) -> str:
        a, b = self._values(i, i.type)
        name = {"wide": "mul_wide", "hi": "mul_hi"}.get(i.parts[1], "mul")
        return _set(i.operands[0], f"{name}<{i.type}>({a}, {b})")

    def _mad(self, i: _Instruction) -> str:
        if i.parts[1] not in ("lo", "wide"):
            raise UnknownInstructionError(i.text)
        a, b = (self._value(operand, i.type) for operand in i.operands[1:3])
        wide = f"Wide<{i.type}>" if i.parts[1] == "wide" else i.type
        product = f"{'mul_wide' if i.parts[1] == 'wide' else 'mul'}<{i.type}>({a}, {b})"
        return _set(i.operands[0], f"add<{wide}>({product}, {self._value(i.operands[3], wide)})")

    def _fma(self, i: _Instruction) -> str:
        return _set(i.operands[0], f"__builtin_fmaf({', '.join(self._values(i, 'f32'))})")

    def _ex2(self, i: _Instruction) -> str:
        return _set(i.operands[0], f"__builtin_exp2f({self._value(i.operands[1], 'f32')})")

    def _neg(self, i: _Instruction) -> str:
        value = self._value(i.operands[1], i.type)
        zero = f"-{value}" if i.type == "f32" else f"sub<{i.type}>(0, {value})"
        return _set(i.operands[0], zero)

    def _not(self, i: _Instruction) -> str:
        operator = "!" if i.type == "bool" else "~"
        return _set(i.operands[0], f"as<{i.type}>({operator}{self._values(i, i.type)[0]})")

    def _shl(self, i: _Instruction) -> str:
        return self._shift(i, "shl")

    def _shr(self, i: _Instruction) -> str:
        return self._shift(i, "shr")

    def _shift(self, i: _Instruction, name: str) -> str:
        value, by = self._value(i.operands[1], i.type), self._value(i.operands[2], "u32")
        return _set(i.operands[0], f"{name}<{i.type}>({value}, {by})")

    def _bfe(self, i: _Instruction) -> str:
        value = self._value(i.operands[1], i.type)
        start, bits = (self._value(operand, "u32") for operand in i.operands[2:])
        return _set(i.operands[0], f"bfe<{i.type}>({value}, {start}, {bits})")

    def _setp(self, i: _Instruction) -> str:
        comparison = i.parts[1]
        a, b = self._values(i, i.type)
        operators = _COMPARISONS | _UNSIGNED_COMPARISONS
        if comparison in operators:
            return _set(i.operands[0], f"bool({a} {operators[comparison]} {b})")
        if comparison.removesuffix("u") in _COMPARISONS:
            operator = _COMPARISONS[comparison.removesuffix("u")]
            return _set(i.operands[0], f"bool(unordered({a}, {b}) || {a} {operator} {b})")
        raise UnknownInstructionError(i.text)

    def _selp(self, i: _Instruction) -> str:
        a, b = (self._value(operand, i.type) for operand in i.operands[1:3])
        return _set(i.operands[0], f"{_register(i.operands[3])} ? {a} : {b}")

    def _mov(self, i: _Instruction) -> str:
        to, source = i.operands
        if source.startswith("{"):
            low, high = (self._value(part, "u32") for part in _list(source))
            return _set(to, f"as<u32>({low} | {high} << 16)")
        if to.startswith("{"):
            word = self._value(source, "u32")
            low, high = _list(to)
            return _set(low, f"as<u16>({word})") + _set(high, f"as<u16>({word} >> 16)")
        return _set(to, self._value(source, i.type))

    def _cvta(self, i: _Instruction) -> str:
        return _set(i.operands[0], self._value(i.operands[1], "u64"))

    def _cvt(self, i: _Instruction) -> str:
        to, source = i.parts[-2:]
        values = [self._value(operand, "f32") for operand in i.operands[1:]]
        if i.opcode in ("cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32"):
            name = "float_to_half" if to == "f16x2" else "float_to_bfloat16"
            high, low = (f"u32(emulator::{name}({value}))" for value in values)
            return _set(i.operands[0], f"as<u32>({low} | {high} << 16)")
        if i.opcode == "cvt.rn.f16.f32":
            return _set(i.operands[0], f"emulator::float_to_half({values[0]})")
        if i.opcode == "cvt.f32.f16":
            half = self._value(i.operands[1], "u16")
            return _set(i.operands[0], f"emulator::half_to_float({half})")
        if "f" in to + source or to not in _TYPES:
            raise UnknownInstructionError(i.text)
        value = self._value(i.operands[1], _TYPES[source])
        return _set(i.operands[0], f"static_cast<{_TYPES[to]}>({value})")

    # ---- memory --------------------------------------------------------------------------------

    def _ld(self, i: _Instruction) -> str:
        targets = _list(i.operands[0]) if i.operands[0].startswith("{") else [i.operands[0]]
        count = len(targets)
        if i.parts[1] == "param":
            name, _, offset = i.operands[1].strip("[] ").replace(" ", "").partition("+")
            place = self.parameters[name] + int(offset or "0", 0)
            load = f"load_parameter(z, {count}, parameters, {place});"
        elif i.parts[1] in ("global", "shared"):
            load = f"load_{i.parts[1]}(z, {count}, {self._address(i.operands[1])});"
        else:
            raise UnknownInstructionError(i.text)
        sets = "".join(_set(target, f"z[{n}]") for n, target in enumerate(targets))
        return f"{i.type} z[{count}]; {load} {sets}"

    def _st(self, i: _Instruction) -> str:
        if i.parts[1] not in ("global", "shared"):
            raise UnknownInstructionError(i.text)
        sources = _list(i.operands[1]) if i.operands[1].startswith("{") else [i.operands[1]]
        values = ", ".join(self._value(source, i.type) for source in sources)
        address = self._address(i.operands[0])
        store = f"store_{i.parts[1]}({address}, z, {len(sources)});"
        return f"const {i.type} z[] = {{{values}}}; {store}"

    def _cp(self, i: _Instruction) -> str:
        if i.opcode == "cp.async.commit_group":
            return "emulator::commit_copies();"
        if i.opcode == "cp.async.wait_group":
            return f"emulator::wait_copies({int(i.operands[0], 0)});"
        if i.parts[2] not in ("ca", "cg") or i.parts[3:5] != ["shared", "global"]:
            raise UnknownInstructionError(i.text)
        num_bytes = self._value(i.operands[2], "s32")
        source_bytes = self._value(i.operands[3], "s32") if len(i.operands) > 3 else num_bytes
        to, source = self._address(i.operands[0]), self._address(i.operands[1])
        return (
            f"emulator::copy_async(static_cast<u32>({to}), reinterpret_cast<void*>({source}), "
            f"{num_bytes}, {source_bytes});"
        )

    # ---- control and collectives ---------------------------------------------------------------

    def _bra(self, i: _Instruction) -> str:
        return f"goto {i.operands[0].lstrip('$')};"

    def _ret(self, i: _Instruction) -> str:
        return "return;"

    def _bar(self, i: _Instruction) -> str:
        if i.opcode != "bar.sync" or i.operands != ["0"]:
            raise UnknownInstructionError(i.text)
        return "emulator::block_barrier();"

    def _vote(self, i: _Instruction) -> str:
        if i.opcode != "vote.sync.any.pred":
            raise UnknownInstructionError(i.text)
        vote = f"emulator::any_lane({self._value(i.operands[1], 'bool')})"
        return self._whole_warp(i.operands[2]) + _set(i.operands[0], vote)

    def _shfl(self, i: _Instruction) -> str:
        target = i.operands[0].partition("|")[0].strip()
        if i.opcode != "shfl.sync.bfly.b32" or int(i.operands[3], 0) != 31:
            raise UnknownInstructionError(i.text)
        value, mask = self._value(i.operands[1], "u32"), self._value(i.operands[2], "s32")
        shuffle = _set(target, f"emulator::shuffle_xor({value}, {mask})")
        return self._whole_warp(i.operands[4]) + shuffle

    def _whole_warp(self, members: str) -> str:
        return f"require_whole_warp({self._value(members, 'u32')}); "

    def _ldmatrix(self, i: _Instruction) -> str:
        if "m8n8" not in i.parts or i.parts[-1] != "b16":
            raise UnknownInstructionError(i.text)
        targets = _list(i.operands[0])
        transposed = str("trans" in i.parts).lower()
        address = f"static_cast<u32>({self._address(i.operands[1])})"
        sets = "".join(_set(target, f"z[{n}]") for n, target in enumerate(targets))
        return (
            f"u32 z[4]; emulator::load_matrices(z, {address}, {len(targets)}, {transposed}); {sets}"
        )

    def _mma(self, i: _Instruction) -> str:
        match = re.fullmatch(
            r"mma\.sync\.aligned\.m16n8k(8|16)\.row\.col\.f32\.(b?f16)\.\2\.f32", i.opcode
        )
        if not match:
            raise UnknownInstructionError(i.text)
        targets, a, b, c = (_list(operand) for operand in i.operands)
        arrays = {
            "f32 z[]": [self._value(x, "f32") for x in c],
            "const u32 a[]": [self._value(x, "u32") for x in a],
            "const u32 b[]": [self._value(x, "u32") for x in b],
        }
        declare = "".join(f"{name} = {{{', '.join(xs)}}}; " for name, xs in arrays.items())
        call = (
            f"emulator::multiply_add(z, a, b, {match[1]}, emulator::Format::{_FORMATS[match[2]]});"
        )
        return declare + call + "".join(_set(x, f"z[{n}]") for n, x in enumerate(targets))


def _declaration(statement: str) -> str:
    _, type_name, names = statement.split(maxsplit=2)
    register_type = _REGISTER_TYPES[type_name.lstrip(".")]
    if counted := re.fullmatch(r"%(\w+)<(\d+)>", names):
        names = ", ".join(f"%{counted[1]}{n}" for n in range(int(counted[2])))
    variables = ", ".join(f"{_register(name)} = 0" for name in names.split(", "))
    return f"[[maybe_unused]] {register_type} {variables};"


def _register(name: str) -> str:
    if not re.fullmatch(r"%?[A-Za-z_]\w*", name.strip()):
        raise UnknownInstructionError(f"not a register: {name}")
    return "v_" + name.strip().lstrip("%")


def _set(register: str, value: str) -> str:
    return f"set({_register(register)}, {value});"


def _list(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{} ").split(",")]


def _split(operands: str) -> list[str]:
    """At the commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", operands) if part.strip()]
