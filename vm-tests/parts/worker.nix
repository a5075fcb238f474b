# A worker whose actions have a shell and nothing else, and that runs them on what stands for a machine.
{ lib, pkgs, ... }:
let
  busybox = pkgs.pkgsStatic.busybox;
in
{
  services.croft = {
    worker.toolchains = [ busybox ];
    worker.links = lib.mkForce { "/bin/sh" = "${busybox}/bin/sh"; };
    # There may be no controllers for its control groups.
    settings.worker.limits.required = false;
  };
}
