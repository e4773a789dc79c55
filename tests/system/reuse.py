"""Make a process with a pid that was another's: python reuse.py PID UID COMMAND...

clone3(2) with set_tid, as CRIU does; needs CAP_CHECKPOINT_RESTORE. The command gets UID, for a
namespace of its own "unshare" goes before it. The parent prints "made" and waits for it.
"""

import ctypes
import os
import resource
import signal
import struct
import sys

SYS_CLONE3 = 435  # the same on all architectures
ARGS_SIZE = 88


def main() -> int:
    pid, uid, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    tids = (ctypes.c_int * 1)(pid)
    fields = [0] * (ARGS_SIZE // 8)
    fields[4] = signal.SIGCHLD
    fields[8], fields[9] = ctypes.addressof(tids), 1
    arguments = ctypes.create_string_buffer(struct.pack(f"{len(fields)}Q", *fields))
    # PyDLL: the interpreter's lock stays with this thread, and so with its copy
    libc = ctypes.PyDLL(None, use_errno=True)
    made = libc.syscall(SYS_CLONE3, arguments, ctypes.c_size_t(ARGS_SIZE))
    if made < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    if made == 0:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.execvp(command[0], command)
    print("made", flush=True)
    os.waitpid(made, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
