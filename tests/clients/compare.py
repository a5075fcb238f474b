#!/usr/bin/env python3
"""Compares what two builds of one workspace left in their bazel-bin folders, byte by byte.

  compare.py ONE OTHER [--within PREFIX…]

Compared are file contents, executable bits and the targets of links. Prints how much was equal; exit code 1, with the
differences on stderr, when anything differs or is there only once. `--within` takes only paths that begin with a prefix.

Left out is what is not an output of an action that can run elsewhere: dependency files and argument files, which Bazel keeps
in memory when it builds remotely, runfiles, which are links that name the output base by its absolute path, and the tree
"unnamable" of workspace.py, in which Bazel 7 itself spoils a name.
"""

import argparse
import hashlib
import os
import stat
import sys

SHOWN = 10  # differences printed: the rest says no more
LEFT_OUT_FILES = (".d", ".params", ".runfiles_manifest", ".repo_mapping")
LEFT_OUT_FOLDERS = (".runfiles", "unnamable")
CHUNK = 1 << 20


def digest(path):
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def describe(root, path):
    """What is compared of one path. A link into the output base is compared by what is behind it."""
    if os.path.islink(path):
        target = os.readlink(path)
        if not os.path.isabs(target):
            return "link", target
        marker = "/execroot/"
        return "link", target[target.index(marker) :] if marker in target else target
    mode = os.stat(path).st_mode
    return "executable" if mode & stat.S_IXUSR else "plain", os.path.getsize(path), digest(path)


def outputs(root, within):
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.endswith(LEFT_OUT_FOLDERS)]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in files + links:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if name.endswith(LEFT_OUT_FILES) or (within and not relative.startswith(tuple(within))):
                continue
            found[relative] = describe(root, path)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--within", nargs="*", default=[])
    options = parser.parse_args()
    one, other = outputs(options.one, options.within), outputs(options.other, options.within)
    different = sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    for path in different[:SHOWN]:
        print(f"{path}: {one.get(path, 'absent')} in one, {other.get(path, 'absent')} in the other", file=sys.stderr)
    kinds = [description[0] for description in one.values()]
    size = sum(description[1] for description in one.values() if description[0] != "link")
    print(f"{len(one)} outputs of {size} bytes, {kinds.count('link')} links, {len(different)} different")
    return 1 if different or not one else 0


if __name__ == "__main__":
    sys.exit(main())
