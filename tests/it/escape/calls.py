"""Tries system calls that lead out of a sandbox; prints for each its name, what must happen, and what happens."""
import ctypes
import errno
import mmap
import os
import platform
import signal

libc = ctypes.CDLL(None, use_errno=True)
IS_X86 = platform.machine() == "x86_64"
# name: (number on x86-64, number on the architectures without a history)
NUMBERS = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "clone": (56, 220), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224), "acct": (163, 89),
    "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "syslog": (103, 116), "vhangup": (153, 58),
    "open_by_handle_at": (304, 265), "socket": (41, 198), "ioctl": (16, 29), "personality": (135, 92),
}
# Later calls have one number everywhere.
for name, number in {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "open_tree_attr": 467, "clone3": 435, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "a call of the future": 500,
}.items():
    NUMBERS[name] = (number, number)


def call(name, *arguments):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(NUMBERS[name][0 if IS_X86 else 1]), *words)
    return result, errno.errorcode.get(ctypes.get_errno(), "?")


def attempt(expected, label, name, *arguments):
    result, error = call(name, *arguments)
    if result == 0 and name in ("clone", "clone3") and os.getpid() != SELF:
        os._exit(0)
    print(f"{label}|{expected}|{'ok' if result != -1 else error}", flush=True)


SELF = os.getpid()
NEW = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000,
       "uts": 0x4000000, "cgroup": 0x2000000}
for kind, flag in NEW.items():
    attempt("EPERM", f"unshare {kind}", "unshare", flag)
    attempt("EPERM", f"clone {kind}", "clone", flag | signal.SIGCHLD, 0, 0, 0, 0)
attempt("EPERM", "unshare time", "unshare", 0x80)
for kind in ("user", "mnt", "net"):
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    attempt("EPERM", f"setns {kind}", "setns", fd, 0)
    os.close(fd)

attempt("EPERM", "mount", "mount", b"none", b"/tmp", b"tmpfs", 0, 0)
attempt("EPERM", "remount /usr writable", "mount", 0, b"/usr", 0, 32 | 4096, 0)
attempt("EPERM", "umount /proc", "umount2", b"/proc", 2)
attempt("EPERM", "pivot_root", "pivot_root", b"/build", b"/build")
attempt("EPERM", "chroot", "chroot", b"/build")
attempt("EPERM", "open_tree", "open_tree", -100, b"/", 1)
attempt("EPERM", "fsopen", "fsopen", b"tmpfs", 0)
attempt("EPERM", "mount_setattr", "mount_setattr", -100, b"/usr", 0, ctypes.create_string_buffer(32), 32)
for name in ("move_mount", "fsconfig", "fsmount", "fspick", "open_tree_attr"):
    attempt("EPERM", name, name, -1, 0, 0, 0, 0)
attempt("EPERM", "open_by_handle_at", "open_by_handle_at", -100, ctypes.create_string_buffer(136), 0)

attempt("EPERM", "join a session keyring", "keyctl", 1, 0)
attempt("EPERM", "add a key", "add_key", b"user", b"croft", b"x", 1, -3)
attempt("EPERM", "request a key", "request_key", b"user", b"croft", 0, 0)
attempt("EPERM", "bpf", "bpf", 0, ctypes.create_string_buffer(128), 128)
attempt("EPERM", "perf_event_open", "perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)
attempt("EPERM", "userfaultfd", "userfaultfd", 1)
for name in ("init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "acct", "quotactl",
             "settimeofday", "clock_settime", "vhangup"):
    attempt("EPERM", name, name, 0, 0, 0, 0)
attempt("EPERM", "read the clock's tuning", "adjtimex", ctypes.create_string_buffer(256))
attempt("EPERM", "read the kernel's log", "syslog", 3, ctypes.create_string_buffer(4096), 4096)

for family, kind, protocol, label in [
    (40, 1, 0, "vsock"), (17, 3, 0, "packet"), (38, 5, 0, "crypto"), (15, 3, 2, "key"), (30, 1, 0, "tipc"),
    (44, 3, 0, "xdp"), (31, 3, 1, "bluetooth"), (16, 3, 12, "netfilter"), (16, 3, 9, "audit"), (2, 1, 132, "sctp"),
]:
    attempt("EPERM", f"socket {label}", "socket", family, kind, protocol)

attempt("ENOSYS", "clone3", "clone3", ctypes.create_string_buffer(88), 88)
for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "a call of the future"):
    attempt("ENOSYS", name, name, 1, ctypes.create_string_buffer(120), 0, 0)
if IS_X86:
    NUMBERS["x32"] = (0x40000000 | 165,) * 2
    attempt("ENOSYS", "mount of x32", "x32", b"none", b"/tmp", b"tmpfs", 0, 0)

terminal = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
attempt("EPERM", "type at a terminal", "ioctl", terminal, 0x5412, b"x")
attempt("EPERM", "paste at a console", "ioctl", terminal, 0x541C, b"x")
attempt("EPERM", "executable data", "personality", 0x400000)
attempt("ok", "fixed addresses", "personality", 0x40000)

PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE = 0, 16, 0x4206
attempt("EPERM", "attach to init", "ptrace", PTRACE_ATTACH, 1, 0, 0)
attempt("EPERM", "seize init", "ptrace", PTRACE_SEIZE, 1, 0, 0)
buffer = ctypes.create_string_buffer(16)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)
attempt("EPERM", "read init's memory", "process_vm_readv", 1, vector, 1, vector, 1, 0)
attempt("ok", "read one's own memory", "process_vm_readv", SELF, vector, 1, vector, 1, 0)
child = os.fork()
if child == 0:
    os._exit(0 if call("ptrace", PTRACE_TRACEME, 0, 0, 0)[0] == 0 else 1)
print(f"trace one's own child|0|{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)

if IS_X86:
    child = os.fork()
    if child == 0:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # getpid by the table of 32-bit programs
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # A kernel without 32-bit programs does not know the instruction.
    print(f"call of a 32-bit program|-31|{-31 if status == -signal.SIGSEGV else status}", flush=True)
