# What `nix flake check` builds. The tests that need no Nix are `cargo xtask test`'s.
{
  pkgs,
  module,
  cluster,
  nixosSystem,
  built,
}:
let
  inherit (pkgs) lib;

  # The whole tree with its settings for tools, as cargo's own commands want it.
  source = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.difference ../. (lib.fileset.maybeMissing ../target);
  };

  # Another command of cargo over the same locked crates.
  cargo =
    name: tools: command:
    built.fettle.overrideAttrs (before: {
      pname = "fettle-${name}";
      src = source;
      nativeBuildInputs = before.nativeBuildInputs ++ tools;
      buildPhase = command;
      installPhase = ''touch "$out"'';
      postFixup = "";
    });

  host =
    configuration:
    (nixosSystem {
      modules = [
        module
        cluster
        configuration
        {
          nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
          boot.loader.grub.device = "nodev";
          fileSystems."/".device = "/dev/vda";
          fileSystems."/".fsType = "ext4";
          system.stateVersion = "26.05";
        }
      ];
    }).config;

  # Evaluates the module, lets the real program read the settings, and collects the units and whatever `further` names.
  collected =
    further: name: configuration:
    let
      config = host configuration;
      failed = map (one: one.message) (builtins.filter (one: !one.assertion) config.assertions);
      units = lib.filterAttrs (
        unit: _: lib.hasPrefix "fettle" unit || lib.hasPrefix "k3s" unit
      ) config.systemd.units;
    in
    lib.throwIf (failed != [ ]) "${name}: ${lib.concatStringsSep "\n" failed}" (
      pkgs.linkFarm "fettle-example-${name}" (
        further config
        ++ lib.mapAttrsToList (unit: value: {
          name = unit;
          path = "${value.unit}/${unit}";
        }) units
      )
    );

  example = collected (config: [
    {
      name = "fettle.toml";
      path = config.environment.etc."fettle/fettle.toml".source;
    }
  ]);

  # There the chart makes the file of the settings; what is in them is read all the same.
  clusterExample = collected (
    config:
    let
      settings = (pkgs.formats.toml { }).generate "settings.toml" config.services.fettle.k3s.settings;
      resources = lib.filterAttrs (name: _: lib.hasPrefix "fettle" name) config.services.k3s.manifests;
    in
    [
      {
        name = "settings.toml";
        path = pkgs.runCommand "fettle-k3s-settings.toml" { } ''
          ${built.fettle}/bin/fettle check-config ${settings}
          cp ${settings} "$out"
        '';
      }
    ]
    ++ lib.mapAttrsToList (name: resource: {
      name = "manifests/${name}.json";
      path = pkgs.writeText "${name}.json" (builtins.toJSON resource.content);
    }) resources
  );

  units = import ./module/units.nix {
    placeholders = {
      bin = "${built.fettle}/bin";
      kill = "${pkgs.coreutils}/bin/kill";
    };
  };
  unitFolder = pkgs.linkFarm "fettle-units" (
    lib.mapAttrsToList (name: text: {
      inherit name;
      path = pkgs.writeText (lib.strings.sanitizeDerivationName name) text;
    }) units.files
  );

  # Not built yet by anybody; `nixos/README.md` says what was.
  machines = test: pkgs.testers.runNixOSTest (import test { inherit module; });
in
{
  package = built.fettle;
  installer = built.fettle-installer;

  format =
    pkgs.runCommand "fettle-format"
      {
        nativeBuildInputs = [
          pkgs.cargo
          pkgs.nixfmt
          pkgs.rustfmt
        ];
      }
      ''
        cd ${source}
        cargo fmt --all --check
        find . -name '*.nix' -exec nixfmt --check {} +
        touch "$out"
      '';

  clippy = cargo "clippy" [ pkgs.clippy ] "cargo clippy --offline --workspace --all-targets -- --deny warnings";

  # Of the crates alone: those in `tests/` start programs, ask registries and build sandboxes.
  unit-tests = cargo "unit-tests" [ pkgs.git ] ''
    export HOME="$TMPDIR"
    cargo test --offline --workspace --exclude fettle-tests --exclude fettle-xtask --lib
  '';

  single-node = example "single-node" ./examples/single-node.nix;
  dgx-spark = example "dgx-spark" ./examples/dgx-spark.nix;
  datacenter = example "datacenter" ./examples/datacenter.nix;
  k3s = clusterExample "k3s" ./examples/k3s.nix;

  # With the paths of this build; the tests hold the committed files to their gates of exposure.
  units = pkgs.runCommand "fettle-units-verified" { nativeBuildInputs = [ pkgs.systemd ]; } ''
    cp --recursive --dereference ${unitFolder} units
    cd units
    SYSTEMD_UNIT_PATH="$PWD:" systemd-analyze verify --man=no --recursive-errors=no \
      fettle-dashboard.service fettle-worker@01.service fettle-backup.service fettle-inference.service \
      fettle-engine@m.service
    touch "$out"
  '';

  # Virtual machines, which need KVM.
  vm-single-node = machines ../tests/nixos/vm/single-node.nix;
  vm-two-hosts = machines ../tests/nixos/vm/two-hosts.nix;
}
