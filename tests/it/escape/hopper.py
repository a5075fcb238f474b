"""Never the same process for long: each forks the next and ends. Ignores what can be ignored."""
import os
import signal

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
os.setsid() if os.fork() == 0 else os._exit(0)
while True:
    if os.fork():
        os._exit(0)
