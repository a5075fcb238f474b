# Settings as the file that croft reads. A wrong setting fails the build of the system, not its next boot.
{
  lib,
  pkgs,
  package,
}:
settings:
let
  format = pkgs.formats.toml { };

  # The keys whose values are files that croft looks into when it checks a configuration.
  fileKeys = [
    "account_key_file"
    "authorities"
    "ca_file"
    "certificate"
    "credential_file"
    "file"
    "key"
    "keys"
    "password_file"
    "revoked"
    "secret_access_key_file"
    "token"
  ];

  # Certificates and secrets are on the machine and not where it is built, so there they are taken for credentials, which are believed.
  rehearsed =
    key: value:
    if lib.isAttrs value then
      lib.mapAttrs rehearsed value
    else if lib.isList value then
      map (rehearsed "") value
    else if lib.elem key fileKeys && lib.hasPrefix "/" value then
      "credential:${key}"
    else
      value;

  canCheck = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
in
pkgs.runCommand "croft.toml"
  {
    settings = format.generate "croft.toml" settings;
    rehearsal = format.generate "croft-to-check.toml" (rehearsed "" settings);
  }
  ''
    ${lib.optionalString canCheck "${lib.getExe package} check $rehearsal"}
    cp $settings $out
  ''
