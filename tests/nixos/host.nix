# Evaluates one configuration with the real modules of NixOS over packages that are stand-ins, and tells what came of Fettle.
{
  # Folders: `nixos` holds nixos/modules, `lib` is nixpkgs' lib.
  nixos,
  lib,
  # A file with the names of all packages that the modules mention.
  names,
  configuration,
}:
let
  library = import lib;
  standIn = import ./packages.nix;
  inherit (standIn) package named;

  base = named (
    builtins.fromJSON (builtins.readFile names)
    # Asked for by a name that is put together.
    ++ [
      "fish"
      "xonsh"
      "zsh"
    ]
  );
  platform = library.systems.elaborate "x86_64-linux";

  # Whatever a format would write; what is asked about is the value.
  format = {
    type =
      with library.types;
      let
        value =
          nullOr (oneOf [
            bool
            int
            float
            str
            path
            (attrsOf value)
            (listOf value)
          ])
          // {
            description = "a value";
          };
      in
      attrsOf value;
    generate = name: _: package name;
    lib = { };
  };

  kernel = package "linux" // {
    inherit kernel;
    extend = _: kernel;
    config = {
      isEnabled = _: true;
      isYes = _: true;
      isModule = _: true;
      isSet = _: true;
    };
    features = { };
    kernelAtLeast = _: true;
    kernelOlder = _: false;
    isHardened = false;
    isLibre = false;
    isZen = false;
    modDirVersion = "6.18";
    target = "bzImage";
    zfs = package "zfs" // {
      latestCompatibleLinuxPackages = kernel;
    };
  };

  pkgs = base // {
    _type = "pkgs";
    __splicedPackages = pkgs;
    lib = library;
    inherit (platform) system;
    config = {
      allowAliases = false;
    };
    overlays = [ ];
    path = nixos;
    appendOverlays = _: pkgs;
    extend = _: pkgs;
    buildPackages = pkgs;
    pkgsStatic = pkgs;
    callPackage = _: _: package "called";
    writers.writeNginxConfig = name: _: package name;
    stdenv = {
      hostPlatform = platform;
      buildPlatform = platform;
      targetPlatform = platform;
      inherit (platform) system isLinux;
      isDarwin = false;
      isx86_64 = true;
      isAarch64 = false;
      cc = package "cc" // {
        bintools.dynamicLinker = "/lib/ld.so";
      };
    };
    hostPlatform = platform;
    linuxPackages = kernel;
    linuxPackagesFor = _: kernel;
    bash = package "bash" // {
      shellPath = "/bin/bash";
    };
    python3 = package "python3" // {
      withPackages = _: package "python3";
    };
    systemd = package "systemd" // {
      interfaceVersion = 2;
      withBootctl = true;
      withCryptsetup = true;
    };
    formats = library.genAttrs [
      "configobj"
      "elixirConf"
      "hocon"
      "ini"
      "iniWithGlobalSection"
      "javaProperties"
      "json"
      "keyValue"
      "libconfig"
      "lua"
      "php"
      "pythonVars"
      "systemd"
      "toml"
      "xml"
      "yaml"
      "yaml_1_1"
      "yaml_1_2"
    ] (_: _: format);
    runCommand =
      name: _: _:
      package name;
    runCommandLocal =
      name: _: _:
      package name;
    runtimeShell = "/bin/sh";
    substituteAll = arguments: package (arguments.name or "substituted");
    replaceVars = file: _: package (baseNameOf file);
    symlinkJoin = arguments: package arguments.name;
    buildEnv = arguments: package arguments.name;
    linkFarm = name: _: package name;
    writeScript = name: _: package name;
    writeShellScript = name: _: package name;
    writeShellScriptBin = name: _: package name;
    writeShellApplication = arguments: package arguments.name;
    writeScriptBin = name: _: package name;
    writeText = name: _: package name;
    writeTextDir = name: _: package (baseNameOf name);
    writeTextFile = arguments: package arguments.name;
    makeModulesClosure = _: package "modules";
    nixos-artwork = base;
    perlPackages = base;
    python3Packages = base;
    unixtools = base;
    xorg = base;
    kdePackages = base;
    libsForQt5 = base;
  };

  host = import (nixos + "/nixos/lib/eval-config.nix") {
    lib = library;
    system = null;
    modules = [
      ../../nixos/module
      ../../nixos/module/k3s.nix
      configuration
      {
        nixpkgs.pkgs = pkgs;
        nixpkgs.hostPlatform = "x86_64-linux";
        system.stateVersion = "24.11";
        documentation.enable = false;
        environment.stub-ld.enable = false;
        boot.loader.grub.device = "nodev";
        fileSystems."/".device = "/dev/vda";
        fileSystems."/".fsType = "ext4";
      }
    ];
  };
  inherit (host) config;
  ours = library.filterAttrs (name: _: library.hasPrefix "fettle" name);
in
{
  refused = map (assertion: assertion.message) (
    builtins.filter (assertion: !assertion.assertion) config.assertions
  );
  warnings = builtins.filter (library.hasInfix "fettle") config.warnings;
  units = builtins.mapAttrs (_: unit: unit.text) (ours config.systemd.units);
  wantedBy = builtins.mapAttrs (_: unit: unit.wantedBy) (ours config.systemd.units);
  users = builtins.mapAttrs (_: user: {
    inherit (user) home group extraGroups isSystemUser;
    shell = toString user.shell;
  }) (ours config.users.users);
  tmpfiles = builtins.filter (library.hasInfix "fettle") config.systemd.tmpfiles.rules;
  ports = config.networking.firewall.allowedTCPPorts;
  udpPorts = config.networking.firewall.allowedUDPPorts;
  settings = config.services.fettle.settings;
  polkit = config.security.polkit.extraConfig;
  etc = builtins.attrNames (ours config.environment.etc);
  cluster = {
    inherit (config.services.k3s)
      enable
      role
      clusterInit
      charts
      ;
    settings = config.services.fettle.k3s.settings;
    tokenFile = toString config.services.k3s.tokenFile;
    flags = config.services.k3s.extraFlags;
    manifests = builtins.mapAttrs (_: manifest: manifest.content) (ours config.services.k3s.manifests);
  };
}
