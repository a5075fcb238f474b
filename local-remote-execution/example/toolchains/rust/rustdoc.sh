#!/nix/store/37d2b12d5d9abc2a364ef9448767ee03-bash/bin/bash
exec /nix/store/6fcd351889eb0caf54c459904e996ac7-rustc/bin/rustdoc "$@"
