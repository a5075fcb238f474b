"""A C and C++ compiler at absolute paths, with flags under which equal inputs give equal outputs."""

load("@rules_cc//cc:action_names.bzl", "ACTION_NAMES")
load(
    "@rules_cc//cc:cc_toolchain_config_lib.bzl",
    "action_config",
    "feature",
    "flag_group",
    "flag_set",
    "tool",
    "tool_path",
    "with_feature_set",
)
load("@rules_cc//cc/common:cc_common.bzl", "cc_common")
load("@rules_cc//cc/toolchains:cc_toolchain_config_info.bzl", "CcToolchainConfigInfo")

_C_ACTIONS = [
    ACTION_NAMES.assemble,
    ACTION_NAMES.c_compile,
    ACTION_NAMES.preprocess_assemble,
]
_CXX_ACTIONS = [
    ACTION_NAMES.cpp_compile,
    ACTION_NAMES.cpp_header_parsing,
    ACTION_NAMES.linkstamp_compile,
]
_LINK_ACTIONS = [
    ACTION_NAMES.cpp_link_dynamic_library,
    ACTION_NAMES.cpp_link_executable,
    ACTION_NAMES.cpp_link_nodeps_dynamic_library,
]

# Bazel adds these features by itself, but switches them on only for actions that imply them.
_OF_COMPILING = [
    "legacy_compile_flags",
    "user_compile_flags",
    "sysroot",
    "unfiltered_compile_flags",
    "compiler_input_flags",
    "compiler_output_flags",
]
_OF_LINKING = [
    "strip_debug_symbols",
    "linkstamps",
    "output_execpath_flags",
    "runtime_library_search_directories",
    "library_search_directories",
    "libraries_to_link",
    "user_link_flags",
    "legacy_link_flags",
    "linker_param_file",
    "fission_support",
    "sysroot",
]
_OF_SHARED_LINKING = ["shared_flag"]
_OF_EXECUTABLE_LINKING = ["force_pic_flags"]

def _compile_with(actions, path):
    return [
        action_config(action_name = action, tools = [tool(path = path)], implies = _OF_COMPILING)
        for action in actions
    ]

def _link_with(path):
    configs = []
    for action in _LINK_ACTIONS:
        of_kind = _OF_EXECUTABLE_LINKING if action == ACTION_NAMES.cpp_link_executable else _OF_SHARED_LINKING
        configs.append(action_config(action_name = action, tools = [tool(path = path)], implies = _OF_LINKING + of_kind))
    return configs

def _flags(actions, flags, only_with = None):
    features = [with_feature_set(features = [only_with])] if only_with else []
    return flag_set(actions = actions, flag_groups = [flag_group(flags = flags)], with_features = features)

def _features(is_clang):
    compile = _C_ACTIONS + _CXX_ACTIONS

    # Otherwise gcc names headers by where links lead to, which may be outside the directories that Bazel knows.
    of_compiler = ["-no-canonical-prefixes"] + ([] if is_clang else ["-fno-canonical-system-headers"])
    return [
        feature(name = "dbg"),
        feature(name = "opt"),
        feature(name = "fastbuild"),
        feature(name = "supports_dynamic_linker", enabled = True),
        feature(name = "supports_pic", enabled = True),
        feature(name = "supports_start_end_lib", enabled = False),
        feature(name = "default_compile_flags", enabled = True, flag_sets = [
            _flags(compile, ["-fstack-protector", "-Wall", "-fno-omit-frame-pointer"] + of_compiler),
            _flags(compile, ["-g"], only_with = "dbg"),
            _flags(compile, ["-O2", "-DNDEBUG", "-ffunction-sections", "-fdata-sections"], only_with = "opt"),
            _flags(_CXX_ACTIONS, ["-std=c++17"]),
        ]),
        feature(name = "default_link_flags", enabled = True, flag_sets = [
            _flags(_LINK_ACTIONS, ["-Wl,-z,relro,-z,now", "-Wl,--build-id=sha1", "-Wl,--hash-style=gnu"]),
            _flags(_LINK_ACTIONS, ["-Wl,--gc-sections"], only_with = "opt"),
        ]),
        # Last, so that no target's flags undo it.
        feature(name = "unfiltered_compile_flags", enabled = True, flag_sets = [
            _flags(compile, [
                "-Wno-builtin-macro-redefined",
                '-D__DATE__="redacted"',
                '-D__TIME__="redacted"',
                '-D__TIMESTAMP__="redacted"',
            ]),
        ]),
    ]

def _cc_toolchain_config_impl(ctx):
    attr = ctx.attr
    paths = {
        "ar": attr.ar,
        "cpp": attr.c_compiler,
        "gcc": attr.c_compiler,
        "ld": attr.ld,
        "nm": attr.nm,
        "objcopy": attr.objcopy,
        "objdump": attr.objdump,
        "strip": attr.strip,
    }
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        abi_libc_version = "local",
        abi_version = "local",
        action_configs = _compile_with(_C_ACTIONS, attr.c_compiler) +
                         _compile_with(_CXX_ACTIONS, attr.cxx_compiler) +
                         _link_with(attr.cxx_compiler),
        compiler = attr.compiler,
        cxx_builtin_include_directories = attr.include_directories,
        features = _features(attr.compiler == "clang"),
        host_system_name = "local",
        target_cpu = attr.cpu,
        target_libc = "local",
        target_system_name = attr.cpu + "-linux",
        tool_paths = [tool_path(name = name, path = path) for name, path in paths.items()],
        toolchain_identifier = "croft-" + attr.compiler,
    )

cc_toolchain_config = rule(
    implementation = _cc_toolchain_config_impl,
    attrs = {
        "ar": attr.string(mandatory = True),
        "c_compiler": attr.string(mandatory = True),
        "compiler": attr.string(mandatory = True, values = ["clang", "gcc"]),
        "cpu": attr.string(mandatory = True),
        "cxx_compiler": attr.string(mandatory = True),
        "include_directories": attr.string_list(mandatory = True),
        "ld": attr.string(mandatory = True),
        "nm": attr.string(mandatory = True),
        "objcopy": attr.string(mandatory = True),
        "objdump": attr.string(mandatory = True),
        "strip": attr.string(mandatory = True),
    },
    provides = [CcToolchainConfigInfo],
)
