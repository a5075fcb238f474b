"""Tries to change an input for the actions to come, in every way that reaches a file."""
import os

BAD = b"changed by an action\n"


def write(path, flags=os.O_WRONLY):
    try:
        descriptor = os.open(path, flags)
        os.write(descriptor, BAD)
        os.close(descriptor)
    except OSError:
        pass


reader = os.open("input", os.O_RDONLY)
# The inode below the overlay, before any write copies it up.
write(f"/proc/self/fd/{reader}")
write(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_TRUNC)
for change in (lambda: os.fchmod(reader, 0o777), lambda: os.link("input", "linked"), lambda: os.utime("input", (0, 0)),
               lambda: os.setxattr("input", "user.overlay.metacopy", b""), lambda: os.chmod("input", 0o666)):
    try:
        change()
    except OSError:
        pass
for path in ("linked", "input"):
    write(path)
    write(path, os.O_WRONLY | os.O_TRUNC)
os.rename("input", "moved")
write("moved")
os.unlink("moved")
try:
    os.rename("sub", "gone")
except OSError:
    # An overlay that is mounted without privileges cannot rename a directory of its lower layer.
    os.symlink("sub", "gone")
write("gone/deep")
os.unlink("gone/deep")
os.rmdir("sub")
with open("input", "wb") as file:
    file.write(BAD)
