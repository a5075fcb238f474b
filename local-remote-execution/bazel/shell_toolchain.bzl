"""The shell at an absolute path, in the form that Bazel's own rules look for."""

def _shell_toolchain_impl(ctx):
    return [platform_common.ToolchainInfo(path = ctx.attr.path)]

shell_toolchain = rule(
    implementation = _shell_toolchain_impl,
    attrs = {"path": attr.string(mandatory = True)},
)
