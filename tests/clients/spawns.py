#!/usr/bin/env python3
"""Says how the actions of a Bazel build were run, from its `--execution_log_json_file`, and checks it.

  spawns.py LOG [--only RUNNER…] [--at-least N] [--same-keys LOG]

Prints one line of counts. Exit code 1, with the offenders on stderr, when an action ran in another way than `--only` allows
("remote", "remote cache hit"), when fewer than N actions are in the log, or when another build's log has other actions or other
digests of them. What Bazel does within itself, links and
written files, is no spawn and is not in the log.
"""

import argparse
import collections
import json
import sys

SHOWN = 5  # offenders printed: the rest says no more


def spawns(path):
    """The log is JSON objects one after another, with nothing between them that a JSON parser knows."""
    with open(path, encoding="utf-8", errors="replace") as log:
        text = log.read()
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        spawn, position = decoder.raw_decode(text, position)
        yield spawn
        while position < len(text) and text[position].isspace():
            position += 1


def describe(spawn):
    name = spawn.get("targetLabel") or " ".join(spawn.get("listedOutputs", [])[:1])
    return f"{spawn.get('mnemonic', '?')} of {name} ran as \"{spawn.get('runner')}\""


def keys(found):
    """The digest of each action, by what it is for."""
    return {
        (spawn.get("mnemonic"), spawn.get("targetLabel"), *spawn.get("listedOutputs", [])): spawn.get("digest", {}).get("hash")
        for spawn in found
    }


def differences(one, other):
    """The actions that are there only once, have no digest, or have two."""
    return [key for key in sorted(one.keys() | other.keys(), key=str) if not one.get(key) or one.get(key) != other.get(key)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log")
    parser.add_argument("--only", nargs="+", help="the runners allowed")
    parser.add_argument("--at-least", type=int, default=1, help="the least number of actions run by those")
    parser.add_argument("--same-keys", metavar="LOG", help="the log of a build whose actions have to have the same digests")
    options = parser.parse_args()
    found = list(spawns(options.log))
    counts = collections.Counter(spawn.get("runner", "") for spawn in found)
    print(", ".join(f"{count} {runner}" for runner, count in sorted(counts.items())) or "no spawns")
    offenders = [spawn for spawn in found if options.only and spawn.get("runner") not in options.only]
    for spawn in offenders[:SHOWN]:
        print(describe(spawn), file=sys.stderr)
    if len(found) - len(offenders) < options.at_least:
        print(f"only {len(found) - len(offenders)} actions, expected {options.at_least} or more", file=sys.stderr)
        return 1
    different = differences(keys(found), keys(spawns(options.same_keys))) if options.same_keys else []
    for key in different[:SHOWN]:
        print(f"another digest: {key}", file=sys.stderr)
    return 1 if offenders or different else 0


if __name__ == "__main__":
    sys.exit(main())
