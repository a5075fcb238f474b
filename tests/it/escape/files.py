"""Tries to reach files and devices that are not the action's; prints what each attempt comes to. Arguments: paths of the host."""
import os
import stat
import sys


def attempt(label, action):
    try:
        action()
        print(f"{label}|ok")
    except OSError as error:
        print(f"{label}|{error.strerror}")


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def write(path):
    with open(path, "ab") as file:
        file.write(b"0")


for path in sys.argv[1:]:
    attempt(f"look at {path}", lambda: os.lstat(path))
for path in ["/etc/shadow", "/proc/kcore", "/proc/kmsg", "/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/dev/mem",
             "/dev/kmsg", "/dev/fuse", "/dev/vsock", "/dev/net/tun", "/dev/tty", "/proc/1/root/etc/passwd",
             "/proc/1/cwd/etc/passwd"]:
    attempt(f"read {path}", lambda: read(path))
for path in ["/sys", "/root", "/home", "/run", "/boot", "/proc/1/root/", "/proc/1/fd", "/.croft/lower",
             "/.croft/scratch", "/.croft/memory"]:
    attempt(f"list {path}", lambda: print(os.listdir(path)))
for path in ["/usr/croft-was-here", "/etc/passwd", "/croft-was-here", "/dev/croft-was-here", "/var/croft-was-here",
             "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
             "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward", "/proc/1/oom_score_adj", "/proc/irq/default_smp_affinity"]:
    attempt(f"write {path}", lambda: write(path))
attempt("chmod /dev/null", lambda: os.chmod("/dev/null", 0o600))
attempt("unlink /dev/null", lambda: os.unlink("/dev/null"))
attempt("link a file of the system", lambda: os.link("/usr/bin/env", "/build/env"))
attempt("make a block device", lambda: os.mknod("/build/disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0)))
attempt("make a character device", lambda: os.mknod("/tmp/memory", 0o666 | stat.S_IFCHR, os.makedev(1, 1)))
attempt("give a file away", lambda: (write("/build/mine"), os.chown("/build/mine", 0, 0)))
attempt("become root", lambda: os.setuid(0))
attempt("join a group", lambda: os.setgroups([0]))
attempt("raise a priority", lambda: os.nice(-5))
