# What can be set. Everything that `fettle.toml` knows goes through `settings`; the rest is what only a host knows.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.fettle;

  address =
    default: description:
    mkOption {
      type = types.strMatching "(\\[[^]]+]|[^:]+):[0-9]+";
      inherit default description;
    };
in
{
  options.services.fettle = {
    enable = mkEnableOption "Fettle, which makes proven pull requests of issues";

    package = mkOption {
      type = types.package;
      default = pkgs.fettle;
      defaultText = lib.literalExpression "pkgs.fettle";
      description = "The release tree of Fettle whose programs run.";
    };

    checkedBy = mkOption {
      type = types.package;
      default =
        if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
          cfg.package
        else
          pkgs.buildPackages.fettle;
      defaultText = lib.literalExpression "services.fettle.package, for the platform that builds";
      internal = true;
      description = "The Fettle that checks the settings while they are built.";
    };

    settings = mkOption {
      default = { };
      example = lib.literalExpression ''
        {
          forge.app_id = 123456;
          forge.app_key_file = "app.pem";
          gateway.models = [ { name = "coder"; base_url = "http://127.0.0.1:8000/v1"; } ];
        }
      '';
      description = ''
        `fettle.toml`. `fettle check-config` reads it while the system is built, so that an unknown key or a wrong value fails
        `nixos-rebuild` and not the night. It ends in the Nix store, where everybody can read it: a `*_file` is the name of
        an entry in `services.fettle.secrets`.
      '';
      type = types.submodule {
        freeformType = (pkgs.formats.toml { }).type;
        options.server.listen = address "127.0.0.1:8080" ''
          Address and port of API and webhooks. systemd holds the socket through restarts, and also through
          `nixos-rebuild switch`: after a change, `systemctl restart fettle-dashboard.socket`.
        '';
        options.server.internal_listen = address "127.0.0.1:8081" ''
          Address and port of worker API, health and metrics; plain HTTP, so on loopback or inside a tunnel. After a change,
          `systemctl restart fettle-dashboard-internal.socket`.
        '';
        options.gateway.listen = address "127.0.0.1:8484" ''
          Address and port where models are served; others than this host reach it only with `gateway.keys_file`. After a
          change, `systemctl restart fettle-inference.socket`.
        '';
      };
    };

    secrets = mkOption {
      type = types.attrsOf (types.either types.path types.str);
      default = { };
      example = {
        "app.pem" = "/run/secrets/fettle/app.pem";
      };
      description = ''
        Files on this host that only root needs to be able to read, by the name that a `*_file` of the settings gives them.
        systemd hands each to the processes that may have it (`LoadCredential=`): all of them to the
        dashboard, which looks for each in whatever is about to leave; the models' keys and the reading token to workers.
      '';
    };

    dashboard = {
      enable = mkEnableOption "ledger, forge and API on this host" // {
        default = true;
      };
      openFirewall = mkEnableOption "the port of `services.fettle.settings.server.listen` in the firewall";
    };

    worker = {
      enable = mkEnableOption "workers on this host" // {
        default = true;
      };
      instances = mkOption {
        type = types.ints.positive;
        default = 1;
        description = "How many Runs at a time: each instance works on one. 99 at most.";
      };
      memoryMax = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "24G";
        description = ''
          Memory of one instance with everything that runs in its sandbox. Without it, 12G; all of them together get half
          of the host's.
        '';
      };
      extraPackages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        example = lib.literalExpression "[ pkgs.cargo pkgs.rustc pkgs.gcc pkgs.nodejs ]";
        description = "The toolchains with which repositories are built and tested.";
      };
      dashboard.url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "http://10.0.0.1:8081";
        description = "Where the dashboard's internal listener is, when it is not on this host.";
      };
    };

    inference = {
      enable = mkEnableOption "the gateway to all models on this host, and the engines of models that run here" // {
        default = cfg.dashboard.enable && cfg.worker.enable;
        defaultText = lib.literalExpression "with services.fettle.dashboard.enable and services.fettle.worker.enable";
      };
    };

    engines = {
      memoryMax = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "400G";
        description = "Memory of the host that all engines together may have. Without it, 90 %.";
      };
      extraPackages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        example = lib.literalExpression "[ pkgs.llama-cpp pkgs.vllm ]";
        description = ''
          The programs of the engines, which are looked for by their usual names; `services.fettle.settings.gpu.engines`
          names others.
        '';
      };
    };

    backup = {
      enable = mkEnableOption "a backup of the dashboard's state every night" // {
        default = cfg.dashboard.enable;
        defaultText = lib.literalExpression "services.fettle.dashboard.enable";
      };
      onCalendar = mkOption {
        type = types.str;
        default = "*-*-* 03:17:00";
        example = "*-*-* 00/6:00:00";
        description = "When, as in systemd.time(7).";
      };
      keep = mkOption {
        type = types.ints.positive;
        default = 7;
        description = "How many backups are kept.";
      };
      destination = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/mnt/backup/fettle";
        description = "A folder on another disk; without it, `/var/lib/fettle/backups`. It is made, and is the user fettle's.";
      };
    };
  };
}
