# `nix run` starts the farm on this machine, as `cargo run` does.
{ croft }:
{
  default = {
    type = "app";
    program = "${croft}/bin/croft";
    meta = { inherit (croft.meta) description; };
  };
}
