#!/nix/store/37d2b12d5d9abc2a364ef9448767ee03-bash/bin/bash
exec /nix/store/3322532d8589f95c912a7c956aecd5b0-cargo/bin/cargo "$@"
