"""Becomes a program whose controlling terminal, standard input and two more descriptors are a terminal of its own."""
import fcntl
import os
import sys
import termios

master, slave = os.openpty()
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
for descriptor, number in (slave, 0), (slave, 97), (master, 98):
    os.dup2(descriptor, number)
os.execv(sys.argv[1], sys.argv[1:])
