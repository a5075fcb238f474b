#!/bin/sh
# The guest's first process. A file system that the kernel has unpacked into memory cannot be left by pivot_root, as the sandbox
# does, so everything moves to another one first.
if [ "$$" = 1 ] && [ ! -e /moved ]; then
  mount -t tmpfs -o size=90% tmpfs /root
  for entry in /bin /lib /lib64 /etc /usr /var /data /init; do cp -a "$entry" /root/; done
  mkdir -p /root/proc /root/sys /root/dev /root/root
  mkdir -m 1777 /root/tmp
  touch /root/moved
  exec switch_root /root /init
fi

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
insmod /usr/lib/overlay.ko
ip link set lo up
export PATH=/usr/bin HOME=/root CROFT_UNDER_TEST=/usr/bin/croft
groups=/sys/fs/cgroup
uname -r

# into NAME COMMAND…   becomes COMMAND in the control group NAME, alone as a service is.
into() {
  echo 0 > "$groups/$1/cgroup.procs" || return 1
  shift
  exec "$@"
}

# told NAME   runs a part and says how it ended.
told() {
  mkdir "$groups/$1"
  if "$1"; then echo "machine: $1 ok"; else echo "machine: $1 FAILED"; fi
}

# The farm itself starts where everything must be enforceable.
farm() {
  (CROFT_DATA=/data/farm CROFT_WORKER__LIMITS__REQUIRED=true into farm croft > /tmp/farm.log 2>&1) &
  tries=0
  until grep -q "is ready" /tmp/farm.log; do
    tries=$((tries + 1))
    if [ "$tries" -ge 60 ] || ! kill -0 "$!"; then
      cat /tmp/farm.log
      return 1
    fi
    sleep 1
  done
  kill "$!"
  wait "$!"
}

service() {
  (into service croft-tests worker::machine:: --ignored --test-threads=1)
}

# As a service of an unprivileged user with `Delegate=yes`.
unprivileged() {
  mkdir -p /data/nobody
  chown 65534:65534 /data/nobody
  for file in . cgroup.procs cgroup.subtree_control cgroup.threads; do
    chown 65534:65534 "$groups/unprivileged/$file"
  done
  (into unprivileged su -s /bin/sh nobody -c 'TMPDIR=/data/nobody exec croft-tests worker::machine:: --ignored --test-threads=1')
}

for controller in cpu memory pids; do echo "+$controller" > "$groups/cgroup.subtree_control"; done
told farm
told service
told unprivileged
poweroff -f
