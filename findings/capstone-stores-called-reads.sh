#!/bin/sh
# capstone 5.0.9: the memory operand of many x86-64 stores has access "read".
#
# With `detail`, an operand's `access` should say whether the instruction reads or writes it. For movups,
# vmovdqu, movhps, movntdq, movnti, fst and cmpxchg to memory it says read only; movaps, movss and mov are
# right. Code that tells a faulting read from a faulting write by it gets plain memset() and memcpy() wrong.
# Source of what is right: Intel SDM volume 2, the operand encoding table of each instruction ("ModRM:r/m (w)").
#
# Output seen (1 read, 2 write, 3 both):
#   movups 1, vmovdqu 1, movhps 1, movntdq 1, movnti 1, fst 1, cmpxchg 1, movaps 2, movss 2, mov 2, xadd 3
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check capstone==5.0.9
cat >"$dir/seen.py" <<'PY'
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from capstone.x86 import X86_OP_MEM

STORES = {
    "movups": "0f1107", "vmovdqu": "c5fe7f07", "movhps": "0f1707", "movntdq": "660fe707",
    "movnti": "0fc307", "fst": "d917", "cmpxchg": "0fb10f", "movaps": "0f2907",
    "movss": "f30f1107", "mov": "8907", "xadd": "0fc10f",
}
disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
disassembler.detail = True
seen = []
for name, code in STORES.items():
    found = next(disassembler.disasm(bytes.fromhex(code), 0))
    assert found.mnemonic == name, found
    (memory,) = (operand for operand in found.operands if operand.type == X86_OP_MEM)
    seen.append(f"{name} {memory.access}")
print(", ".join(seen))
PY
seen=$("$dir/v/bin/python" "$dir/seen.py")
printf '%s\n' "$seen"
test "$seen" = "movups 1, vmovdqu 1, movhps 1, movntdq 1, movnti 1, fst 1, cmpxchg 1, movaps 2, movss 2, mov 2, xadd 3"
