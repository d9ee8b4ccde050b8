# What `nix flake check` builds. The tests that need no Nix are `cargo xtask test`'s.
{
  pkgs,
  module,
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

  # Evaluates the module, lets the real program read the settings, and collects the units.
  example =
    name: configuration:
    let
      config = host configuration;
      failed = map (one: one.message) (builtins.filter (one: !one.assertion) config.assertions);
      units = lib.filterAttrs (unit: _: lib.hasPrefix "fettle" unit) config.systemd.units;
    in
    lib.throwIf (failed != [ ]) "${name}: ${lib.concatStringsSep "\n" failed}" (
      pkgs.linkFarm "fettle-example-${name}" (
        [
          {
            name = "fettle.toml";
            path = config.environment.etc."fettle/fettle.toml".source;
          }
        ]
        ++ lib.mapAttrsToList (unit: value: {
          name = unit;
          path = "${value.unit}/${unit}";
        }) units
      )
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
