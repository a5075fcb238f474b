#!/usr/bin/env python3
"""Writes a Bazel workspace that real builds of the farm are tried on.

The same options write the same bytes: nothing is read from the clock, the machine or the network. Every C++ test compares
a computed number with the one that this script computed on its own, so an output mixed up with another fails a test.

  workspace.py --out DIR [--bazel 7|4] [--seed N] [--files 300] [--large BYTES] [--many N] [--sleep SECONDS] [--marker SECONDS]

What is in it, by package:
  lib, bin, test   the C++ tree: libraries in layers, programs, tests
  gen              genrules: outputs of 0 B, 1 KiB and 64 MiB, a generated header, programs that run other programs
  tree             directory outputs, with scripts that are executed and links inside
  links            links as outputs, two of them dangling (Bazel 7)
  names            names outside ASCII (Bazel 7)
  shell            an sh_test (Bazel 7)
  broken           a test that fails (manual)
  daemon           an action that leaves processes behind, one of which holds stdout (manual)
  slow             a test that sleeps for ever together with its children, actions that sleep (manual)
  many             distinct genrules (manual, only with --many)

`--marker` is what sleeping processes give to sleep(1): a number that no one else uses, to find them by their command line.
"""

import argparse
import random
from pathlib import Path

MODULUS = 65521
LAYER = 10  # libraries in a layer; a library uses only those of the layer below, so that calls stay few
LIBRARY_FILES = 4
LIBRARY_SHARE = 0.8  # of all C++ files; the rest are programs and tests, one file each


class Workspace:
    """A folder under construction; files are written once, executable or not."""

    def __init__(self, root):
        self.root = Path(root)

    def write(self, path, text, executable=False):
        """Writes one file, with its folders, in UTF-8 whatever the locale says."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode("utf-8"))
        target.chmod(0o755 if executable else 0o644)


class Library:
    """One C++ library, `value(x) = factor * x + offset + sum of value(x + 1) of its dependencies`, modulo a prime."""

    def __init__(self, number, rng, below):
        self.number = number
        self.factor = rng.randrange(2, MODULUS)
        self.offset = rng.randrange(MODULUS)
        self.below = sorted(rng.sample(below, min(len(below), 3)), key=lambda library: library.number)

    @property
    def name(self):
        return f"lib{self.number:03}"

    def value(self, x):
        return (self.factor * x + self.offset + sum(library.value(x + 1) for library in self.below)) % MODULUS


def libraries(count, rng):
    made = []
    for number in range(count):
        first_of_layer = number - number % LAYER
        made.append(Library(number, rng, made[max(0, first_of_layer - LAYER) : first_of_layer]))
    return made


def write_library(workspace, library):
    name, folder = library.name, f"lib/{library.name}"
    workspace.write(f"{folder}/{name}.h", f"#pragma once\nint {name}_value(int x);\n")
    workspace.write(
        f"{folder}/{name}_constants.h",
        f"#pragma once\nconstexpr long long {name}_factor = {library.factor};\n"
        f"constexpr long long {name}_offset = {library.offset};\nlong long {name}_below(int x);\n",
    )
    workspace.write(
        f"{folder}/{name}.cc",
        f'#include "lib/{name}/{name}.h"\n#include "lib/{name}/{name}_constants.h"\n'
        f"int {name}_value(int x) {{\n"
        f"  return static_cast<int>(({name}_factor * x + {name}_offset + {name}_below(x + 1)) % {MODULUS});\n}}\n",
    )
    includes = "".join(f'#include "lib/{below.name}/{below.name}.h"\n' for below in library.below)
    total = " + ".join([f"{below.name}_value(x)" for below in library.below] or ["0 * x"])
    workspace.write(
        f"{folder}/{name}_below.cc",
        f'#include "lib/{name}/{name}_constants.h"\n{includes}long long {name}_below(int x) {{ return {total}; }}\n',
    )
    dependencies = ", ".join(f'"//lib/{below.name}"' for below in library.below)
    # A few libraries are shared ones in tests: their links in _solib_* are inputs that only links bring.
    linkstatic = library.number % LAYER != 0
    workspace.write(
        f"{folder}/BUILD",
        f'cc_library(\n    name = "{name}",\n    srcs = ["{name}.cc", "{name}_below.cc", "{name}_constants.h"],\n'
        f'    hdrs = ["{name}.h"],\n    linkstatic = {linkstatic},\n'
        f'    visibility = ["//visibility:public"],\n    deps = [{dependencies}],\n)\n',
    )


def write_program(workspace, number, library):
    workspace.write(
        f"bin/program{number:03}.cc",
        f'#include <stdio.h>\n#include "lib/{library.name}/{library.name}.h"\n'
        f'int main() {{ printf("%d\\n", {library.name}_value({number})); return 0; }}\n',
    )
    return f'cc_binary(name = "program{number:03}", srcs = ["program{number:03}.cc"], deps = ["//lib/{library.name}"])\n'


def write_test(workspace, number, library):
    workspace.write(
        f"test/test{number:03}.cc",
        f'#include <stdio.h>\n#include "lib/{library.name}/{library.name}.h"\nint main() {{\n'
        f"  int got = {library.name}_value({number});\n"
        f'  printf("{library.name}_value({number}) = %d\\n", got);\n'
        f"  return got == {library.value(number)} ? 0 : 1;\n}}\n",
    )
    # Every second test links statically: both ways of linking run.
    return (
        f'cc_test(name = "test{number:03}", size = "small", srcs = ["test{number:03}.cc"], '
        f'deps = ["//lib/{library.name}"], linkstatic = {number % 2 == 0})\n'
    )


def write_cpp(workspace, files, rng):
    """The C++ tree of exactly `files` headers and sources; the number of programs in it is returned."""
    made = libraries(max(1, int(files * LIBRARY_SHARE) // LIBRARY_FILES), rng)
    for library in made:
        write_library(workspace, library)
    rest = max(2, files - len(made) * LIBRARY_FILES)
    programs = rest // 3
    public = 'package(default_visibility = ["//visibility:public"])\n'
    workspace.write("bin/BUILD", public + "".join(write_program(workspace, n, rng.choice(made)) for n in range(programs)))
    workspace.write("test/BUILD", "".join(write_test(workspace, n, rng.choice(made)) for n in range(rest - programs)))
    return programs


NOISE = """#include <stdio.h>
#include <stdlib.h>

// Bytes that do not compress, the same for the same seed.
int main(int argc, char** argv) {
  if (argc != 3) return 2;
  unsigned long long left = strtoull(argv[1], nullptr, 10), state = strtoull(argv[2], nullptr, 10) | 1;
  static unsigned char chunk[1 << 16];
  while (left > 0) {
    for (size_t i = 0; i < sizeof chunk; i += sizeof state) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      __builtin_memcpy(chunk + i, &state, sizeof state);
    }
    size_t size = left < sizeof chunk ? left : sizeof chunk;
    if (fwrite(chunk, 1, size, stdout) != size) return 1;
    left -= size;
  }
  return fflush(stdout) == 0 ? 0 : 1;
}
"""


def write_genrules(workspace, options, programs):
    workspace.write("gen/noise.cc", NOISE)
    workspace.write("gen/uses_generated.cc", '#include "gen/generated.h"\nint main() { return GENERATED == %d ? 0 : 1; }\n' % options.seed)
    rules = [
        'cc_binary(name = "noise", srcs = ["noise.cc"])\n',
        'genrule(name = "empty", outs = ["empty.bin"], cmd = "touch $@")\n',
        'genrule(name = "kibibyte", outs = ["kibibyte.bin"], tools = [":noise"], cmd = "$(location :noise) 1024 1 > $@")\n',
        f'genrule(name = "large", outs = ["large.bin"], tools = [":noise"], cmd = "$(location :noise) {options.large} 2 > $@")\n',
        f'genrule(name = "header", outs = ["generated.h"], cmd = "echo \'#define GENERATED {options.seed}\' > $@")\n',
        'cc_test(name = "uses_generated", size = "small", srcs = ["uses_generated.cc", "generated.h"])\n',
        'genrule(name = "script", outs = ["script.sh"], executable = True,\n'
        '    cmd = "printf \'#!/bin/sh\\\\necho made by a generated script: $$1\\\\n\' > $@; chmod +x $@")\n',
        'genrule(name = "scripted", outs = ["scripted.txt"], tools = [":script"], cmd = "$(location :script) yes > $@")\n',
        'genrule(name = "several", outs = ["several/one.txt", "several/two.txt", "several/deep/three.txt"],\n'
        '    cmd = "for file in $(OUTS); do basename $$file > $$file; done")\n',
        'genrule(name = "both_streams", outs = ["both_streams.txt"], cmd = "echo to stdout; echo to stderr >&2; echo done > $@")\n',
        'genrule(name = "sizes", outs = ["sizes.txt"], srcs = ["empty.bin", "kibibyte.bin", "large.bin"], cmd = "wc -c $(SRCS) > $@")\n',
    ]
    for number in range(programs):
        label = f"//bin:program{number:03}"
        rules.append(
            f'genrule(name = "run{number:03}", outs = ["run{number:03}.txt"], tools = ["{label}"], cmd = "$(location {label}) > $@")\n'
        )
    workspace.write("gen/BUILD", "".join(rules))


TREE_RULES = '''"""Directory outputs: what one action writes, a second one reads and runs."""

def _tree_impl(ctx):
    tree = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [tree],
        mnemonic = "MakeTree",
        arguments = [tree.path, ctx.attr.extra],
        command = """set -e
cd "$1"
mkdir -p a/b/c many
echo deep > a/b/c/file.txt
: > a/empty
printf '#!/bin/sh\\\\necho the script in the tree says: %s\\\\n' "$(basename "$PWD")" > a/run.sh
chmod 755 a/run.sh
ln -s b/c/file.txt a/link
for number in 0 1 2 3 4 5 6 7 8 9; do echo "$number" > "many/file $number"; done
[ -z "$2" ] || echo named > "a/$2"
""",
    )
    return [DefaultInfo(files = depset([tree]))]

tree = rule(implementation = _tree_impl, attrs = {"extra": attr.string()})

def _listing_impl(ctx):
    listing = ctx.actions.declare_file(ctx.label.name + ".txt")
    tree = ctx.file.tree
    ctx.actions.run_shell(
        inputs = [tree],
        outputs = [listing],
        mnemonic = "ListTree",
        arguments = [tree.path, listing.path],
        command = """set -e
out=$PWD/$2
cd "$1"
find -L . -type f | LC_ALL=C sort | while IFS= read -r file; do cksum "$file"; done > "$out"
a/run.sh >> "$out"
cat a/link >> "$out"
""",
    )
    return [DefaultInfo(files = depset([listing]))]

listing = rule(implementation = _listing_impl, attrs = {"tree": attr.label(allow_single_file = True)})
'''

LINK_RULES = '''"""Links as outputs: made by Bazel itself, and by an action that runs."""

def _links_impl(ctx):
    own = ctx.actions.declare_symlink(ctx.label.name + ".own")
    ctx.actions.symlink(output = own, target_path = "no/such/file")
    made = ctx.actions.declare_symlink(ctx.label.name + ".made")
    ctx.actions.run_shell(
        outputs = [made],
        mnemonic = "MakeLink",
        arguments = [made.path],
        command = 'ln -s ../no/such/folder "$1"',
    )
    read = ctx.actions.declare_file(ctx.label.name + ".txt")
    ctx.actions.run_shell(
        inputs = [own, made],
        outputs = [read],
        mnemonic = "ReadLinks",
        arguments = [own.path, made.path, read.path],
        command = 'readlink "$1" "$2" > "$3"',
    )
    return [DefaultInfo(files = depset([own, made, read]))]

links = rule(implementation = _links_impl)
'''


def write_trees(workspace, options):
    workspace.write("tree/rules.bzl", TREE_RULES)
    workspace.write(
        "tree/BUILD",
        'load(":rules.bzl", "listing", "tree")\n\n'
        'tree(name = "first")\ntree(name = "second")\n'
        'listing(name = "first_listing", tree = ":first")\nlisting(name = "second_listing", tree = ":second")\n',
    )
    if options.bazel == 7:
        workspace.write("links/rules.bzl", LINK_RULES)
        workspace.write("links/BUILD", 'load(":rules.bzl", "links")\n\nlinks(name = "dangling")\n')


def write_names(workspace):
    """Not for Bazel 4: it finds such files only under a locale that Debian does not make by itself."""
    workspace.write("names/größe.txt", "umlaut\n")
    workspace.write("names/日本語.txt", "three letters\n")
    workspace.write("names/with space.txt", "space\n")
    # Bazel 7 gives the file in the tree a wrong name on disk when it downloads it, though it had the right one from the farm
    # and hands it on as an input under the right one. So the listing is what is compared, not the tree.
    workspace.write(
        "names/BUILD",
        'load("//tree:rules.bzl", "listing", "tree")\n\n'
        'genrule(name = "names", srcs = glob(["*.txt"]), outs = ["größe-日本.out", "plain.out"],\n'
        '    cmd = "export LC_ALL=C; for file in names/*.txt; do cat \\"$$file\\"; done > $(location plain.out);'
        ' cp $(location plain.out) $(location größe-日本.out)")\n'
        'tree(name = "unnamable", extra = "größe.txt")\n'
        'listing(name = "unnamable_listing", tree = ":unnamable")\n',
    )


def write_shell_test(workspace):
    workspace.write(
        "shell/checks_environment_test.sh",
        '#!/bin/bash\nset -euo pipefail\n[ -d "$TEST_TMPDIR" ]\n'
        'echo scratch > "$TEST_TMPDIR/file"\n[ "$(cat shell/data/größe.txt)" = umlaut ]\n',
        executable=True,
    )
    workspace.write("shell/data/größe.txt", "umlaut\n")
    workspace.write(
        "shell/BUILD",
        'sh_test(name = "checks_environment_test", size = "small", srcs = ["checks_environment_test.sh"], data = glob(["data/*"]))\n',
    )


def write_misbehaving(workspace, options):
    """What is built only by name: it fails, hangs or leaves something behind on purpose."""
    workspace.write(
        "broken/failing_test.cc",
        "#include <stdio.h>\nint main() {\n"
        '  puts("the failing test says on stdout: expected 4, got 5");\n'
        '  fputs("the failing test says on stderr: see above\\n", stderr);\n  return 3;\n}\n',
    )
    workspace.write("broken/BUILD", 'cc_test(name = "failing_test", size = "small", srcs = ["failing_test.cc"], tags = ["manual"])\n')
    sleep = f"sleep {options.marker}"
    workspace.write(
        "daemon/BUILD",
        'genrule(name = "daemon", outs = ["daemon.txt"], tags = ["manual"],\n'
        f'    cmd = "setsid {sleep} & {sleep} & setsid {sleep} < /dev/null > /dev/null 2>&1 & echo started > $@")\n',
    )
    workspace.write(
        "slow/sleeping_test.cc",
        "#include <stdio.h>\n#include <unistd.h>\nint main() {\n"
        '  puts("the sleeping test says: about to sleep");\n  fflush(stdout);\n'
        "  for (int child = 0; child < 2; child++) {\n    if (fork() == 0) {\n      if (child == 1) setsid();\n"
        f'      execlp("sleep", "sleep", "{options.marker}", static_cast<char*>(nullptr));\n      return 127;\n    }}\n  }}\n'
        "  for (;;) sleep(3600);\n}\n",
    )
    sleepers = "".join(
        f'genrule(name = "sleeper{n}", outs = ["sleeper{n}.txt"], tags = ["manual"], cmd = "{sleep}; echo {n} > $@")\n' for n in range(2)
    )
    workspace.write(
        "slow/BUILD",
        'cc_test(name = "sleeping_test", timeout = "short", srcs = ["sleeping_test.cc"], tags = ["manual"])\n' + sleepers,
    )


def write_many(workspace, options):
    """Distinct genrules. Each odd one has an output above 4 KiB, which stores keep in another way than small ones."""
    rules = []
    for number in range(options.many):
        content = f"seq {number} {number + 1500}" if number % 2 else f"echo item {number} of seed {options.seed}"
        rules.append(
            f'genrule(name = "item{number:05}", outs = ["item{number:05}.txt"], tags = ["manual"], '
            f'cmd = "sleep {options.sleep}; {content} > $@")\n'
        )
    names = ", ".join(f'":item{number:05}"' for number in range(options.many))
    rules.append(f'filegroup(name = "all_items", srcs = [{names}], tags = ["manual"])\n')
    workspace.write("many/BUILD", "".join(rules))


RC = """# The same environment for actions here and on a farm: nothing of the shell that started Bazel.
build --incompatible_strict_action_env
build --verbose_failures
# No bazel-* links: Bazel 4 takes one of another output base for a part of the workspace.
build --symlink_prefix=/
test --test_output=errors
"""

# Bazel 4 would download its rule sets and the tools of test coverage. Debian 12 packages the rules for Java; its rules for C++
# are too new, and the native ones are all that it takes. The coverage tools have to be there, nothing runs them.
WORKSPACE_BAZEL_4 = """local_repository(name = "rules_java", path = "/usr/share/bazel/rules/java")
local_repository(name = "rules_cc", path = "third_party/rules_cc")
local_repository(name = "remote_coverage_tools", path = "third_party/coverage")
"""

RULES_CC = """cc_binary = native.cc_binary
cc_library = native.cc_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
"""

RC_BAZEL_4 = "common --color=no --curses=no --show_progress_rate_limit=10\n"


COVERAGE_TOOLS = """package(default_visibility = ["//visibility:public"])
filegroup(name = "coverage_report_generator", srcs = ["unused"])
filegroup(name = "lcov_merger", srcs = ["unused"])
"""


def write_repositories(workspace):
    """What Bazel 4 would fetch from the network."""
    workspace.write("third_party/rules_cc/WORKSPACE", 'workspace(name = "rules_cc")\n')
    workspace.write("third_party/rules_cc/cc/defs.bzl", RULES_CC)
    workspace.write(
        "third_party/rules_cc/cc/BUILD",
        'alias(name = "toolchain_type", actual = "@bazel_tools//tools/cpp:toolchain_type", visibility = ["//visibility:public"])\n',
    )
    workspace.write("third_party/coverage/WORKSPACE", 'workspace(name = "remote_coverage_tools")\n')
    workspace.write("third_party/coverage/BUILD", COVERAGE_TOOLS)
    workspace.write("third_party/coverage/unused", "")
    workspace.write(".bazelignore", "third_party\n")


def write_workspace(options):
    workspace = Workspace(options.out)
    workspace.write("WORKSPACE", 'workspace(name = "croft_clients")\n' + (WORKSPACE_BAZEL_4 if options.bazel == 4 else ""))
    workspace.write(".bazelrc", RC + (RC_BAZEL_4 if options.bazel == 4 else ""))
    programs = write_cpp(workspace, options.files, random.Random(options.seed))
    write_genrules(workspace, options, programs)
    write_trees(workspace, options)
    if options.bazel == 4:
        write_repositories(workspace)
    else:
        write_names(workspace)
        write_shell_test(workspace)
    write_misbehaving(workspace, options)
    if options.many:
        write_many(workspace, options)


def marker(text):
    """Checks a number of seconds and keeps its spelling: as a number, 0.50 would become 0.5 and no process be found by it."""
    float(text)
    return text


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--bazel", type=int, default=7, choices=(4, 7), help="the Bazel that will build it")
    parser.add_argument("--seed", type=int, default=1, help="another seed is another workspace")
    parser.add_argument("--files", type=int, default=300, help="C++ headers and sources")
    parser.add_argument("--large", type=int, default=64 * 1024 * 1024, help="size of the large output, in bytes")
    parser.add_argument("--many", type=int, default=0, help="number of distinct genrules")
    parser.add_argument("--sleep", type=float, default=0, help="how long each of them sleeps, in seconds")
    parser.add_argument("--marker", type=marker, default="86400.5", help="what the endless sleepers sleep, in seconds")
    return parser.parse_args()


if __name__ == "__main__":
    write_workspace(arguments())
