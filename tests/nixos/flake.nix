# Evaluates the flake over stand-ins for nixpkgs and tells the shape of its outputs. Not itself a flake.
let
  inherit (builtins)
    attrValues
    concatLists
    concatStringsSep
    filter
    foldl'
    fromTOML
    listToAttrs
    map
    mapAttrs
    readDir
    readFile
    replaceStrings
    ;
  inherit (import ./packages.nix) package named;

  # What the flake asks of nixpkgs' library, in short.
  lib = {
    genAttrs =
      names: make:
      listToAttrs (
        map (name: {
          inherit name;
          value = make name;
        }) names
      );
    importTOML = file: fromTOML (readFile file);
    concatMap = make: list: concatLists (map make list);
    concatMapStringsSep =
      separator: make: list:
      concatStringsSep separator (map make list);
    filterAttrs =
      keep: set:
      foldl' (kept: name: if keep name set.${name} then kept // { ${name} = set.${name}; } else kept) { } (
        builtins.attrNames set
      );
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    mapAttrsToList = make: set: attrValues (mapAttrs make set);
    mkDefault = value: { default = value; };
    throwIf = condition: message: value: if condition then throw message else value;
    concatStringsSep = concatStringsSep;
    strings.sanitizeDerivationName = replaceStrings [ "@" ] [ "-" ];
    licenses.asl20 = "Apache-2.0";
    fileset = {
      unions = parts: parts;
      maybeMissing = part: part;
      difference = whole: _: whole;
      # What is named must be there.
      toSource = { root, fileset }: { inherit root fileset; };
    };
    nixosSystem = { modules }: {
      config = {
        assertions = [ ];
        environment.etc."fettle/fettle.toml".source = "settings";
        systemd.units = { };
        services.fettle.k3s.settings = { };
        services.k3s.manifests = { };
        # Every module can at least be read.
        inherit modules;
      };
    };
  };

  packagesFor =
    system:
    let
      make =
        arguments:
        package arguments.pname
        // arguments
        // {
          inherit system arguments;
          name = "${arguments.pname}-${arguments.version}";
          nativeBuildInputs = [ ];
          overrideAttrs =
            change:
            let
              before = make arguments;
            in
            make (arguments // change before);
        };
      run =
        name: arguments: script:
        package name // arguments // { inherit name script; };
      standIns =
        named [
          "bash"
          "cacert"
          "cargo"
          "cargo-deny"
          "clippy"
          "coreutils"
          "diffutils"
          "findutils"
          "gawk"
          "gcc"
          "git"
          "gnugrep"
          "gnumake"
          "gnused"
          "gnutar"
          "gzip"
          "nix"
          "nixfmt"
          "nixfmt-tree"
          "nodejs"
          "rust-analyzer"
          "rustc"
          "rustfmt"
          "sqlx-cli"
          "systemd"
          "tzdata"
        ]
        // {
          inherit lib;
          python3.withPackages = choose: package "python3" // { chosen = choose { pytest = "pytest"; }; };
          rustPlatform.buildRustPackage = make;
          rustPlatform.rustLibSrc = "/nix/store/stand-in-rust-src";
          runCommand = run;
          formats.toml = _: { generate = name: _: package name; };
          writeText = name: text: package name // { inherit text; };
          linkFarm = name: entries: package name // { inherit entries; };
          mkShell = arguments: package "shell" // { inherit arguments; };
          dockerTools.streamLayeredImage = arguments: package arguments.name // { inherit arguments; };
          testers.runNixOSTest = test: package test.name // { inherit test; };
          stdenv = {
            hostPlatform = {
              inherit system;
              parsed.cpu.name = builtins.head (builtins.split "-" system);
            };
            buildPlatform = { inherit system; };
          };
        };
    in
    standIns
    // {
      pkgsStatic = standIns // {
        rustPlatform.buildRustPackage = arguments: make arguments // { static = true; };
      };
    };

  flake = import ../../flake.nix;
  self = flake.outputs {
    inherit self;
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ] packagesFor;
    };
  };
  perSystem = tell: mapAttrs (_: mapAttrs (_: tell));
in
{
  inputs = flake.inputs;
  outputs = builtins.attrNames self;
  packages = perSystem (
    one:
    {
      inherit (one) name;
      program = one.meta.mainProgram;
      static = one.static or false;
    }
    // (
      if one ? arguments.cargoBuildFlags then
        {
          packages = filter (flag: flag != "--package") one.arguments.cargoBuildFlags;
          inherit (one.arguments) doCheck;
          inherit (one.arguments) env;
        }
      else
        { }
    )
    // (if one ? arguments.config then { inherit (one.arguments.config) User Entrypoint; } else { })
    // (if one ? script then { inherit (one) script; } else { })
  ) self.packages;
  apps = perSystem (one: { inherit (one) type program; }) self.apps;
  checks = perSystem (one: one.name) self.checks;
  shells = perSystem (one: map (tool: tool.name) one.arguments.packages) self.devShells;
  formatter = mapAttrs (_: one: one.name) self.formatter;
  overlay = builtins.attrNames (self.overlays.default (packagesFor "x86_64-linux") { });
  # On one machine a configuration is built for another.
  module =
    let
      cross = self.nixosModules.default {
        inherit lib;
        pkgs.stdenv.hostPlatform.system = "aarch64-linux";
        pkgs.stdenv.buildPlatform.system = "x86_64-linux";
      };
    in
    {
      imports = map toString cross.imports;
      package = cross.services.fettle.package.default.arguments.meta.mainProgram;
      runs = cross.services.fettle.package.default.system;
      checks = cross.services.fettle.checkedBy.default.system;
    };
  # Sources that are named and not there.
  absent = map toString (
    filter (
      path: !builtins.pathExists path
    ) self.packages.x86_64-linux.fettle.arguments.src.fileset
  );
  # How the release tree lists its files.
  manifest = self.packages.x86_64-linux.fettle.arguments.postFixup;
}
