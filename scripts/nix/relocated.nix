# Packages for the stand-in that are whole: the host's programs copied into the store with their libraries and their loader, so that they
# run where nothing else of the host is seen. The stand-in's own are links to the host, which is nothing to a worker's closure.
# They stay what the host had when they were built first: an upgrade of the host gives no other store path.
pkgs:
let
  inherit (pkgs) lib;

  # Bash functions: `programs FILE…` makes those that are copied find the loader and the libraries in $libraries.
  functions = ''
    loader=$(ldd /bin/sh | sed -n 's|^[[:space:]]*\(/[^ ]*\).*|\1|p')
    programs() {
      local program
      for program; do
        [ -L "$program" ] || ! patchelf --print-interpreter "$program" > /dev/null 2>&1 || program "$program"
      done
    }
    program() {
      ldd "$1" | sed -n 's|.*=> \(/[^ ]*\).*|\1|p' | while read -r library; do
        [ -e "$libraries/$(basename "$library")" ] || cp --dereference "$library" "$libraries/"
      done
      [ -e "$libraries/$(basename "$loader")" ] || cp --dereference "$loader" "$libraries/"
      patchelf --set-interpreter "$libraries/$(basename "$loader")" --force-rpath --set-rpath "$libraries" "$1"
    }
  '';

  copied =
    name: programs:
    pkgs.runCommand name { } ''
      ${functions}
      libraries=$out/lib
      mkdir -p "$out/bin" "$libraries"
      for name in ${toString programs}; do
        cp --dereference "$(type -P "$name")" "$out/bin/$name"
      done
      programs "$out"/bin/*'';

  # What Debian's packages of gcc, binutils and the C library have, in Debian's directories, as a sysroot.
  gcc = pkgs.runCommand "gcc" { } ''
    ${functions}
    version=$(gcc -dumpversion | cut -d. -f1) triple=$(gcc -dumpmachine)
    libraries=$out/usr/lib/$triple
    mkdir -p "$out/usr/bin" "$libraries"
    ln -s usr/lib "$out/lib"
    ln -s "usr/lib/$triple" "$out/lib64"
    take() {
      local file
      for file; do
        [ ! -e "$file" ] || cp --recursive --no-dereference --parents "$file" "$out"
      done
    }
    dpkg-query --listfiles libc6-dev linux-libc-dev libcrypt-dev | grep -e '^/usr/include/' -e "^/usr/lib/$triple/" | while read -r file; do
      [ -d "$file" ] || take "$file"
    done
    take "/usr/include/c++/$version" "/usr/include/$triple/c++/$version" "/usr/lib/gcc/$triple/$version" "/usr/libexec/gcc/$triple/$version"
    cp --dereference "/usr/lib/$triple/"{libgcc_s.so.1,libstdc++.so.6} "/usr/lib/$triple/"lib{c,m,mvec}.so.[0-9]* "$libraries/"
    for name in ar as ld nm objcopy objdump strip gcc g++; do
      cp --dereference "/usr/bin/$name" "$out/usr/bin/$name"
    done
    # Large, and for what no test does: link-time optimisation and the sanitizers. Then links that lead nowhere.
    rm -f "$out/usr/lib/gcc/$triple/$version/"{lto1,libasan*,liblsan*,libtsan*,libubsan*}
    find "$out" -xtype l -delete
    mapfile -t found < <(find "$out" -type f -perm -u+x)
    programs "''${found[@]}"
    ln -s "$libraries" "$out/libraries"
    ln -s "$libraries/$(basename "$loader")" "$out/loader"'';

  # Scripts that call programs of the sysroot with arguments of their own, as nixpkgs has them: { program = arguments; }.
  wrapped =
    name: programs:
    pkgs.runCommand name { } (
      ''
        mkdir -p "$out/bin"
      ''
      + lib.concatStrings (
        lib.mapAttrsToList (program: arguments: ''
          printf '#!%s\nexec %s "$@"\n' ${bash}/bin/bash '${gcc}/usr/bin/${program} ${arguments}' > "$out/bin/${program}"
          chmod 755 "$out/bin/${program}"
        '') programs
      )
    );

  bash = copied "bash" [
    "bash"
    "sh"
  ];
  binutils = wrapped "binutils" (
    lib.genAttrs [
      "ar"
      "ld"
      "nm"
      "objcopy"
      "objdump"
      "strip"
    ] (_: "")
  );
  # The revision makes another compiler of the same programs.
  compiler =
    revision:
    let
      flags = lib.concatStringsSep " " [
        "--sysroot=${gcc}"
        "-B${gcc}/usr/bin"
        "-Wl,--dynamic-linker=${gcc}/loader"
        "-Wl,-rpath,${gcc}/libraries"
      ];
    in
    wrapped "gcc-wrapper-${revision}" {
      "gcc" = flags;
      "g++" = flags;
    }
    // {
      inherit bintools;
      cc = gcc;
      libc = gcc;
    };
  bintools = binutils;
in
pkgs
// {
  inherit bash compiler;
  coreutils = copied "coreutils" [
    "basename"
    "cat"
    "chmod"
    "cp"
    "date"
    "dirname"
    "echo"
    "env"
    "head"
    "ln"
    "ls"
    "mkdir"
    "mktemp"
    "mv"
    "printf"
    "pwd"
    "readlink"
    "rm"
    "sleep"
    "sort"
    "tail"
    "tee"
    "touch"
    "tr"
    "true"
    "wc"
  ];
  diffutils = copied "diffutils" [
    "cmp"
    "diff"
  ];
  findutils = copied "findutils" [
    "find"
    "xargs"
  ];
  gawk = copied "gawk" [ "awk" ];
  gnugrep = copied "gnugrep" [ "grep" ];
  gnused = copied "gnused" [ "sed" ];
  gnutar = copied "gnutar" [ "tar" ];
  gzip = copied "gzip" [ "gzip" ];
  stdenv = pkgs.stdenv // {
    cc = compiler "one";
  };
}
