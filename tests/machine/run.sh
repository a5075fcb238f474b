#!/bin/bash
# Runs the tests of tests/it/worker/machine.rs in a small virtual machine, whose kernel has all controllers of control groups.
#
#   tests/machine/run.sh
#
# The machine is emulated (no /dev/kvm is needed) and has no disk and no network: Debian's cloud kernel, and an initial file system of
# busybox, the binary `croft`, the test binary and their libraries. The farm itself starts there, and the tests run as root and without. Needs what
# tests/machine/install.sh unpacks; exit code 3, and a last line that says why, without that.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
machine=${CROFT_TEST_CACHE:-/var/cache/croft-test}/machine
boot_seconds=600 # a machine that hangs must not take the tests' time
memory=1536M

main() {
  tests/machine/install.sh || exit
  local croft tests kernel
  read -r croft tests < <(binaries) || { echo "the binaries cannot be built"; exit 1; }
  work=$(mktemp --directory)
  trap 'rm -rf --one-file-system "$work"' EXIT
  kernel=$(find "$machine/root/boot" -name 'vmlinuz-*' | head -n 1)
  fill "$work/root" "$croft" "$tests"
  (cd "$work/root" && find . | "$machine/root/bin/busybox" cpio -o -H newc 2> /dev/null) > "$work/initrd"
  boot "$kernel" "$work/initrd" | tee "$work/console"
  judge "$work/console"
}

# The paths of `croft` and of the tests' binary, as cargo knows them.
binaries() {
  cargo test --locked --quiet --no-run --test it --message-format=json |
    python3 -c 'import json, sys
found = {}
for line in sys.stdin:
    artifact = json.loads(line)
    if artifact.get("executable"): found[artifact["target"]["name"]] = artifact["executable"]
print(found["croft"], found["it"])'
}

# fill ROOT CROFT TESTS   makes the guest's file system.
fill() {
  local root=$1 name library overlay
  mkdir -p "$root"/{dev,etc,proc,root,sys,tmp,usr/bin,usr/lib,var,data}
  chmod 1777 "$root/tmp"
  ln -s usr/bin "$root/bin"
  ln -s usr/lib "$root/lib"
  ln -s usr/lib "$root/lib64"
  for name in $("$machine/root/bin/busybox" --list); do
    ln -sf busybox "$root/usr/bin/$name"
  done
  # It names itself, too.
  cp --remove-destination "$machine/root/bin/busybox" "$root/usr/bin/busybox"
  # Without what debuggers read, they are a tenth of the size.
  strip --strip-debug -o "$root/usr/bin/croft" "$2"
  strip --strip-debug -o "$root/usr/bin/croft-tests" "$3"
  # The loader asks for libraries by these names in these directories.
  for library in $(ldd "$2" "$3" | grep --only-matching '/[^ )]*' | grep '\.so' | sort --unique); do
    mkdir -p "$root/usr/lib/x86_64-linux-gnu"
    cp --dereference "$library" "$root/usr/lib/x86_64-linux-gnu/"
  done
  cp --dereference /lib64/ld-linux-x86-64.so.2 "$root/usr/lib/"
  overlay=$(find "$machine/root/lib/modules" -name overlay.ko | head -n 1)
  cp "$overlay" "$root/usr/lib/overlay.ko"
  cp tests/machine/init.sh "$root/init"
  chmod 755 "$root/init"
  echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh' > "$root/etc/passwd"
}

# boot KERNEL INITRD   the console on stdout, until the machine has switched itself off.
boot() {
  LD_LIBRARY_PATH=$machine/root/usr/lib/x86_64-linux-gnu:$machine/root/lib/x86_64-linux-gnu \
    timeout --kill-after=10 "$boot_seconds" "$machine/root/usr/bin/qemu-system-x86_64" \
    -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" -L "$machine/root/usr/share/qemu" -L "$machine/root/usr/share/seabios" \
    -display none -serial stdio -monitor none -nic none -no-reboot \
    -kernel "$1" -initrd "$2" -append "console=ttyS0 loglevel=3 panic=-1 rdinit=/init" < /dev/null
}

# judge CONSOLE   every run must have said how it ended.
judge() {
  local runs
  runs=$(grep --count '^machine: .* ok' "$1" || true)
  echo "$runs of 3 parts of the machine's tests passed"
  [ "$runs" = 3 ]
}

main "$@"
