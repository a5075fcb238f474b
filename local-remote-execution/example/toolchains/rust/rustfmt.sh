#!/nix/store/37d2b12d5d9abc2a364ef9448767ee03-bash/bin/bash
exec /nix/store/247992d2db5e7a3c9935ea4c98811a65-rustfmt/bin/rustfmt "$@"
