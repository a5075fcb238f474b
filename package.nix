# Croft itself, and as `passthru.tests` what must hold for its sources.
{
  lib,
  rustPlatform,
  cargo-deny,
  clippy,
}:
let
  manifest = (lib.importTOML ./Cargo.toml).package;

  # Only what cargo reads: a change of documents or of a module builds nothing anew.
  src = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./Cargo.lock
      ./Cargo.toml
      ./README.md
      ./benches
      ./build.rs
      ./clippy.toml
      ./deny.toml
      ./docs
      ./fuzz
      ./monitoring
      ./src
      ./tests
    ];
  };

  common = {
    inherit (manifest) version;
    inherit src;
    cargoLock.lockFile = ./Cargo.lock;
    strictDeps = true;
  };

  check =
    name: inputs: command:
    rustPlatform.buildRustPackage (
      common
      // {
        pname = "croft-${name}";
        nativeBuildInputs = inputs;
        buildPhase = command;
        doCheck = false;
        installPhase = "mkdir $out";
      }
    );

  tests = {
    clippy = check "clippy" [ clippy ] "cargo clippy --offline --all-targets -- -D warnings";
    docs = check "docs" [ ] "RUSTDOCFLAGS='-D warnings' cargo doc --offline --no-deps --lib";
    deny = check "deny" [ cargo-deny ] "cargo deny --offline check bans licenses sources";
    # A build has no user namespaces to give, so what needs a sandbox is for the VM tests.
    unit = check "unit" [ ] "cargo test --offline --lib -- --skip worker::";
  };
in
rustPlatform.buildRustPackage (
  common
  // {
    pname = "croft";
    cargoBuildFlags = [ "--bin=croft" ];
    doCheck = false; # `tests` has them, one by one
    passthru = { inherit tests; };
    meta = {
      inherit (manifest) description;
      license = lib.licenses.asl20;
      mainProgram = "croft";
      platforms = [
        "x86_64-linux"
        "aarch64-linux"
      ];
    };
  }
)
