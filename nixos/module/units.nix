# What `systemd/units.toml` says, put together by its rules with builtins alone: bare Nix renders it without nixpkgs.
{
  table ? builtins.fromTOML (builtins.readFile ../../systemd/units.toml),
  # What `@bin@` and the like become; those that are not named stay as on a host without NixOS.
  placeholders ? { },
}:
let
  inherit (builtins)
    attrNames
    attrValues
    concatMap
    concatStringsSep
    filter
    foldl'
    isBool
    isList
    isString
    map
    mapAttrs
    replaceStrings
    toString
    ;

  given = table.placeholders // placeholders;

  fill =
    value:
    if isList value then
      map fill value
    else if isString value then
      replaceStrings (map (name: "@${name}@") (attrNames given)) (attrValues given) value
    else
      value;

  # A later key takes the place of an earlier one, its whole value.
  over =
    sections: later:
    sections // mapAttrs (section: keys: (sections.${section} or { }) // keys) later;

  sections =
    unit:
    mapAttrs (_: mapAttrs (_: fill)) (
      foldl' over { } (
        map (name: table.profile.${name}) (unit.profiles or [ ]) ++ [ (removeAttrs unit [ "profiles" ]) ]
      )
    );

  spelled =
    value:
    if isBool value then
      (if value then "true" else "false")
    else
      toString value;

  section =
    name: keys:
    concatStringsSep "\n" (
      [ "[${name}]" ]
      ++ concatMap (
        key:
        let
          value = keys.${key};
        in
        map (one: "${key}=${spelled one}") (if isList value then value else [ value ])
      ) (attrNames keys)
    );

  order = [
    "Unit"
    "Slice"
    "Socket"
    "Timer"
    "Service"
    "Install"
  ];

  text =
    unit:
    concatStringsSep "\n\n" (
      [ "# ${table.notice}" ] ++ map (name: section name unit.${name}) (filter (name: unit ? ${name}) order)
    )
    + "\n";
in
rec {
  # name.section.key, a value or a list of values.
  units = mapAttrs (_: sections) table.unit;

  # name, the file's text.
  files = mapAttrs (_: text) units;
}
