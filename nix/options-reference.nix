# The reference of all options, made of the options themselves. docs/options.md is what this gives.
{
  pkgs,
  nixpkgs,
  self,
}:
let
  inherit (nixpkgs) lib;
  system = lib.nixosSystem {
    modules = [
      self.nixosModules.default
      { nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system; }
    ];
  };

  # A value as somebody would write it in Nix.
  written =
    v:
    if lib.isAttrs v && v._type or null == "literalExpression" then
      "`${lib.trim v.text}`"
    else if lib.isAttrs v && v._type or null == "literalMD" then
      v.text
    else
      "`${shown v}`";
  shown =
    v:
    if lib.isAttrs v then
      if v == { } then
        "{ }"
      else
        "{ ${lib.concatStringsSep " " (lib.mapAttrsToList (name: x: "${key name} = ${shown x};") v)} }"
    else if lib.isList v then
      if v == [ ] then "[ ]" else "[ ${lib.concatMapStringsSep " " shown v} ]"
    else
      builtins.toJSON v;
  key =
    name: if builtins.match "[A-Za-z_][A-Za-z0-9_'-]*" name == null then builtins.toJSON name else name;

  # Long examples are read line by line.
  example =
    v:
    let
      text = written v;
    in
    if lib.hasInfix "\n" text then
      "Example:\n\n```nix\n${lib.removeSuffix "`" (lib.removePrefix "`" text)}\n```\n"
    else
      "Example: ${text}\n";

  entry =
    name: option:
    ''
      ### `${name}`

      ${lib.trim (plain option.description)}

      Type: ${typeText option.type}
    ''
    + lib.optionalString (option ? defaultText || option ? default) ''

      Default: ${written (option.defaultText or option.default)}
    ''
    + lib.optionalString (option ? example) "\n${example option.example}";

  # As `description`, but of a submodule, whose options follow and whose own description depends on what else it may hold.
  typeText =
    type:
    if type.name == "submodule" then
      "attributes"
    else if lib.hasSuffix " value" type.description then
      type.description
    else if type.name == "attrsOf" then
      "attribute set of ${within type}"
    else if type.name == "listOf" then
      "list of ${within type}"
    else if type.name == "nullOr" then
      "null or ${within type}"
    else
      type.description;
  within =
    type:
    let
      inner = type.nestedTypes.elemType;
      text = typeText inner;
    in
    if lib.hasInfix " or " text || lib.hasInfix " of " text then "(${text})" else text;

  # The roles of NixOS's manual are not known to whoever reads Markdown.
  plain =
    lib.replaceStrings
      [
        "{option}`"
        "{command}`"
        "{file}`"
        "{env}`"
        "{manpage}`"
        "::: {.warning}\n"
        ":::\n"
      ]
      [
        "`"
        "`"
        "`"
        "`"
        "`"
        "**Warning.** "
        ""
      ];

  # Options below an option: those of a submodule, be it in a list or below names.
  below =
    name: type:
    if type.name == "submodule" then
      lib.concatLists (
        lib.mapAttrsToList (child: entries "${name}.${child}") (
          removeAttrs
            (lib.evalModules {
              modules = type.getSubModules ++ [ { config._module.args.name = "name"; } ];
            }).options
            [ "_module" ]
        )
      )
    # The values of a format are made of themselves.
    else if lib.hasSuffix " value" type.description then
      [ ]
    else if places ? ${type.name} then
      below (name + places.${type.name}) type.nestedTypes.elemType
    else
      [ ];
  places = {
    attrsOf = ".<name>";
    listOf = ".*";
    nullOr = "";
  };

  entries =
    name: option:
    if option._type or null == "option" then
      lib.optionals (!(option.internal or false)) ([ (entry name option) ] ++ below name option.type)
    else
      lib.concatLists (lib.mapAttrsToList (child: entries "${name}.${child}") option);
in
pkgs.writeText "options.md" ''
  # Options of the NixOS modules

  Made of the modules by `nix build .#options-reference`; the checks of the flake compare it with them. What stands in
  `services.croft.settings` is croft's own configuration, which the README explains.

  ${lib.concatStringsSep "\n" (entries "services.croft" system.options.services.croft)}''
