"""Tries to type at whatever terminal there is; prints for each way its name and what happened."""
import ctypes
import errno
import fcntl
import os
import platform
import sys

libc = ctypes.CDLL(None, use_errno=True)
IOCTL = 16 if platform.machine() == "x86_64" else 29
TIOCSTI, TIOCSCTTY = 0x5412, 0x540E


def typed(descriptor, request=TIOCSTI):
    """The kernel looks at the lower half of the request alone, so a filter must, too."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(word) for word in (IOCTL, descriptor, request)]
    result = libc.syscall(*words, b"\n")
    return "ok" if result == 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def opened(path):
    try:
        return os.open(path, os.O_RDWR | os.O_NOCTTY), "ok"
    except OSError as error:
        return -1, errno.errorcode[error.errno]


links = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
         if os.path.islink(f"/proc/self/fd/{name}")}
print("inherited|" + ",".join(sorted(link for link in links if "pt" in link.rsplit("/", 1)[-1] or "/pts/" in link
                                     or "tty" in link)))
print("/dev/tty|" + opened("/dev/tty")[1])
print("terminals|" + ",".join(sorted(set(os.listdir("/dev/pts")) - {"ptmx"})))
print("any descriptor|" + ",".join(sorted({typed(descriptor) for descriptor in range(128)})))
print("upper half|" + ",".join(sorted({typed(descriptor, TIOCSTI | 1 << 32) for descriptor in range(128)})))
# A terminal of one's own, even as the controlling one, is none of the host's and is not typed at either.
master, slave = os.openpty()
print("own|" + typed(slave))
sys.stdout.flush()
if os.fork() == 0:
    os.setsid()
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    descriptor, how = opened("/dev/tty")
    print(f"own as controlling one|{how},{typed(descriptor)}", flush=True)
    os._exit(0)
os.wait()
