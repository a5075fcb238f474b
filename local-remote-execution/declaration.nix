# How Bazel gets to know a toolchain: for builds on and for platforms that have these toolchains, which is what `//:this` says.
{
  name ? "toolchain",
  implementation,
  type,
}:
''
  toolchain(
      name = "${name}",
      exec_compatible_with = ["//:this"],
      target_compatible_with = ["//:this"],
      toolchain = "${implementation}",
      toolchain_type = "${type}",
      visibility = ["//visibility:public"],
  )
''
