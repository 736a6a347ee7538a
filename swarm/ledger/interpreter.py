"""The EVM's plain instructions in one loop: arithmetic, stack, memory, jumps, storage and calldata.

py-evm spends two microseconds and several calls on each instruction, and ten on one that copies or writes; nearly all
of those that our contracts execute are a few lines of Python. Those are here, by Cancun's rules; each other one (calls,
logs, returns) is handed to py-evm, which sees the same stack, memory and gas. `tests/ledger/test_interpreter.py` holds
this loop against py-evm's own.

All values on the stack are whole numbers while this loop runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NoReturn, Protocol

from swarm.encoding import Address, Digest, keccak256

_MAX = (1 << 256) - 1
_STACK_MAX = 1024
_COLD_SLOAD, _WARM_SLOAD = 2100, 100  # EIP-2929
_SET, _RESET, _CLEARS = 20_000, 5_000 - _COLD_SLOAD, 4_800  # EIP-2200, EIP-3529
_STIPEND = 2_300  # EIP-2200: with no more left nothing is stored
# Further than a transaction's gas can pay for; beyond it the cost is not worth computing.
_MEMORY_MAX = 1 << 32

# What an instruction costs before it does anything; zero where py-evm charges.
_COSTS = [0] * 256
for _codes, _cost in (
    ((0x02, 0x04, 0x06), 5),
    ((0x01, 0x03, 0x10, 0x11, *range(0x14, 0x1A), 0x1B, 0x1C, 0x35, 0x37, 0x39, 0x51, 0x52, 0x5E), 3),
    ((0x30, 0x33, 0x34, 0x36, 0x3D, 0x42, 0x50, 0x5A, 0x5F), 2),
    ((0x56,), 8),
    ((0x57,), 10),
    ((0x5B,), 1),
    (range(0x60, 0xA0), 3),
    ((0x20,), 30),
):
    for _code in _codes:
        _COSTS[_code] = _cost


class Frame(Protocol):
    """What the loop needs of py-evm's computation, under py-evm's names."""

    msg: Any
    state: Any
    code: Any
    return_data: Any
    _stack: Any
    _memory: Any
    _gas_meter: Any


class Program:
    """Code, read once: what each PUSH pushes, where jumps may go."""

    __slots__ = ("code", "jumps", "pushed")

    def __init__(self, code: bytes) -> None:
        # Past the end there are zeros, and zero stops.
        self.code = code + bytes(33)
        self.pushed: dict[int, int] = {}
        jumps = []
        position = 0
        while position < len(code):
            instruction = code[position]
            if 0x60 <= instruction <= 0x7F:
                size = instruction - 0x5F
                self.pushed[position] = int.from_bytes(self.code[position + 1 : position + 1 + size], "big")
                position += size
            elif instruction == 0x5B:
                jumps.append(position)
            position += 1
        self.jumps = frozenset(jumps)


program_of = lru_cache(maxsize=64)(Program)
"""The program of some code; contracts are few."""

# Mappings hash the same keys at every access.
_hash = lru_cache(maxsize=16_384)(keccak256)


def store_cost(original: int, current: int, value: int) -> tuple[int, int]:
    """What storing `value` costs, and what of it may be given back (EIP-2200 with EIP-2929 and 3529).

    Args:
        original: what the slot held before the transaction.
    """
    if current == value:
        return _WARM_SLOAD, 0
    if original == current:
        if original == 0:
            return _SET, 0
        return _RESET, _CLEARS if value == 0 else 0
    refund = 0
    if original != 0:
        refund = _CLEARS * ((value == 0) - (current == 0))
    if original == value:
        refund += (_SET if original == 0 else _RESET) - _WARM_SLOAD
    return _WARM_SLOAD, refund


def run(frame: Frame, fail: Callable[[str], NoReturn]) -> Iterator[int]:
    """Execute a frame's code; yields each instruction that py-evm has to execute before it goes on.

    Args:
        fail: raises an exceptional halt, which burns the frame's gas.
    """
    message, accounts = frame.msg, frame.state._account_db
    me: Address = message.storage_address
    data: bytes = message.data
    program = program_of(message.code)
    code, pushed, jumps, costs = program.code, program.pushed, program.jumps, _COSTS
    stack: list[int] = frame._stack.values
    meter, memory_of = frame._gas_meter, frame._memory
    memory: bytearray = memory_of._bytes
    gas: int = meter.gas_remaining
    position = 0
    try:
        while True:
            at = position
            instruction = code[at]
            position = at + 1
            gas -= costs[instruction]
            if gas < 0:
                fail("out of gas")
            if instruction >= 0x5F:
                if instruction < 0x80:  # PUSH
                    if len(stack) >= _STACK_MAX:
                        fail("stack overflow")
                    if instruction == 0x5F:
                        stack.append(0)
                    else:
                        stack.append(pushed[at])
                        position = at + instruction - 0x5E
                    continue
                if instruction < 0x90:  # DUP
                    if len(stack) >= _STACK_MAX:
                        fail("stack overflow")
                    stack.append(stack[0x7F - instruction])
                    continue
                if instruction < 0xA0:  # SWAP
                    other = 0x8E - instruction
                    stack[-1], stack[other] = stack[other], stack[-1]
                    continue
            elif instruction == 0x57:  # JUMPI
                target = stack.pop()
                if stack.pop():
                    if target not in jumps:
                        fail("invalid jump")
                    position = target
                continue
            elif instruction == 0x5B:  # JUMPDEST
                continue
            elif instruction == 0x52 or instruction == 0x51:  # MSTORE, MLOAD
                start = stack.pop()
                end = start + 32
                if end > len(memory):
                    if end > _MEMORY_MAX:
                        fail("out of gas")
                    words, had = (end + 31) >> 5, len(memory) >> 5
                    gas -= 3 * (words - had) + (words * words >> 9) - (had * had >> 9)
                    if gas < 0:
                        fail("out of gas")
                    memory.extend(bytes((words - had) << 5))
                if instruction == 0x52:
                    memory[start:end] = stack.pop().to_bytes(32, "big")
                else:
                    stack.append(int.from_bytes(memory[start:end], "big"))
                continue
            elif instruction == 0x50:  # POP
                stack.pop()
                continue
            elif instruction == 0x01:  # ADD
                stack.append((stack.pop() + stack.pop()) & _MAX)
                continue
            elif instruction == 0x15:  # ISZERO
                stack[-1] = 0 if stack[-1] else 1
                continue
            elif instruction == 0x56:  # JUMP
                position = stack.pop()
                if position not in jumps:
                    fail("invalid jump")
                continue
            elif instruction == 0x16:  # AND
                stack.append(stack.pop() & stack.pop())
                continue
            elif instruction == 0x54:  # SLOAD
                key = (me, stack.pop())
                if accounts.warm_slot(key):
                    gas -= _WARM_SLOAD
                else:
                    gas -= _COLD_SLOAD
                if gas < 0:
                    fail("out of gas")
                stack.append(accounts.get_storage(*key))
                continue
            elif instruction == 0x5E or instruction == 0x39 or instruction == 0x37:  # MCOPY, CODECOPY, CALLDATACOPY
                start, origin, size = stack.pop(), stack.pop(), stack.pop()
                end = (max(start, origin) if instruction == 0x5E else start) + size if size else 0
                if end > _MEMORY_MAX:
                    fail("out of gas")
                gas -= 3 * ((size + 31) >> 5)
                if end > len(memory):
                    words, had = (end + 31) >> 5, len(memory) >> 5
                    gas -= 3 * (words - had) + (words * words >> 9) - (had * had >> 9)
                    if gas < 0:
                        fail("out of gas")
                    memory.extend(bytes((words - had) << 5))
                if gas < 0:
                    fail("out of gas")
                if instruction == 0x5E:
                    memory[start : start + size] = memory[origin : origin + size]
                else:
                    piece = bytes((data if instruction == 0x37 else message.code)[origin : origin + size])
                    memory[start : start + size] = piece + bytes(size - len(piece))
                continue
            elif instruction == 0x55 and not message.is_static:  # SSTORE
                if gas <= _STIPEND:
                    fail("out of gas")
                key, value = (me, stack.pop()), stack.pop()
                cost, refund = store_cost(accounts.get_storage(*key, False), accounts.get_storage(*key), value)
                gas -= cost
                if gas < 0:
                    fail("out of gas")
                if refund:
                    meter.refund_gas(refund)
                accounts.set_storage(*key, value)
                if not accounts.warm_slot(key):
                    gas -= _COLD_SLOAD
                    if gas < 0:
                        fail("out of gas")
                continue
            elif instruction == 0x03:  # SUB
                stack.append((stack.pop() - stack.pop()) & _MAX)
                continue
            elif instruction == 0x14:  # EQ
                stack.append(1 if stack.pop() == stack.pop() else 0)
                continue
            elif instruction == 0x10:  # LT
                stack.append(1 if stack.pop() < stack.pop() else 0)
                continue
            elif instruction == 0x11:  # GT
                stack.append(1 if stack.pop() > stack.pop() else 0)
                continue
            elif instruction == 0x1C:  # SHR
                shift = stack.pop()
                stack[-1] = stack[-1] >> shift if shift < 256 else 0
                continue
            elif instruction == 0x1B:  # SHL
                shift = stack.pop()
                stack[-1] = (stack[-1] << shift) & _MAX if shift < 256 else 0
                continue
            elif instruction == 0x18:  # XOR
                stack.append(stack.pop() ^ stack.pop())
                continue
            elif instruction == 0x17:  # OR
                stack.append(stack.pop() | stack.pop())
                continue
            elif instruction == 0x35:  # CALLDATALOAD
                start = stack.pop()
                word = bytes(data[start : start + 32])
                stack.append(int.from_bytes(word + bytes(32 - len(word)), "big"))
                continue
            elif instruction == 0x02:  # MUL
                stack.append((stack.pop() * stack.pop()) & _MAX)
                continue
            elif instruction == 0x20:  # KECCAK256
                start, size = stack.pop(), stack.pop()
                end = start + size if size else 0
                if end > _MEMORY_MAX:
                    fail("out of gas")
                gas -= 6 * ((size + 31) >> 5)
                if end > len(memory):
                    words, had = (end + 31) >> 5, len(memory) >> 5
                    gas -= 3 * (words - had) + (words * words >> 9) - (had * had >> 9)
                    if gas < 0:
                        fail("out of gas")
                    memory.extend(bytes((words - had) << 5))
                if gas < 0:
                    fail("out of gas")
                digest: Digest = _hash(bytes(memory[start:end])) if size <= 64 else keccak256(bytes(memory[start:end]))
                stack.append(int.from_bytes(digest, "big"))
                continue
            elif instruction == 0x19:  # NOT
                stack[-1] ^= _MAX
                continue
            elif instruction == 0x04 or instruction == 0x06:  # DIV, MOD
                value, by = stack.pop(), stack.pop()
                if not by:
                    stack.append(0)
                else:
                    stack.append(value // by if instruction == 0x04 else value % by)
                continue
            elif instruction in (0x30, 0x33, 0x34, 0x36, 0x3D, 0x42, 0x5A):
                # ADDRESS, CALLER, CALLVALUE, CALLDATASIZE, RETURNDATASIZE, TIMESTAMP, GAS
                if len(stack) >= _STACK_MAX:
                    fail("stack overflow")
                if instruction == 0x36:
                    stack.append(len(data))
                elif instruction == 0x3D:
                    stack.append(len(frame.return_data))
                elif instruction == 0x5A:
                    stack.append(gas)
                elif instruction == 0x42:
                    stack.append(frame.state.timestamp)
                elif instruction == 0x34:
                    stack.append(message.value)
                else:
                    stack.append(int.from_bytes(me if instruction == 0x30 else message.sender, "big"))
                continue
            meter.gas_remaining = gas
            frame.code.program_counter = position
            yield instruction
            gas, position, memory = meter.gas_remaining, frame.code.program_counter, memory_of._bytes
            if stack and isinstance(stack[-1], bytes):
                stack[-1] = int.from_bytes(stack[-1], "big")
    except IndexError:
        fail("stack underflow")
