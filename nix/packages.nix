# What the flake builds.
{ pkgs }:
rec {
  croft = pkgs.callPackage ../package.nix { };
  default = croft;

  # One file that runs on any Linux, for workers on machines that are not NixOS.
  croft-static = pkgs.pkgsStatic.callPackage ../package.nix { };

  # Without a listener beyond loopback: where it may listen, and for whom, is for the configuration to say, which is mounted.
  oci-image = pkgs.dockerTools.buildLayeredImage {
    name = "croft";
    tag = croft.version;
    contents = [ pkgs.cacert ];
    config = {
      Entrypoint = [ (pkgs.lib.getExe croft) ];
      Env = [
        "SSL_CERT_FILE=${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt"
        "STATE_DIRECTORY=/var/lib/croft"
      ];
      Volumes."/var/lib/croft" = { };
    };
  };
}
