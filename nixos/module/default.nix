# `services.fettle`: the units of `systemd/units.toml` with this host's paths, addresses and secrets.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    filterAttrs
    mapAttrs'
    mkIf
    mkMerge
    nameValuePair
    optional
    optionals
    optionalString
    ;
  cfg = config.services.fettle;

  toml = pkgs.formats.toml { };
  # The check reads types, ranges and rules between keys. That secrets are not there while it runs is a warning to it.
  configFile = pkgs.runCommand "fettle.toml" { nativeBuildInputs = [ cfg.checkedBy ]; } ''
    cp ${toml.generate "fettle.toml" cfg.settings} fettle.toml
    fettle check-config fettle.toml
    cp fettle.toml "$out"
  '';

  inherit
    (import ./units.nix {
      placeholders = {
        bin = "${cfg.package}/bin";
        config = "${configFile}";
        kill = "${pkgs.coreutils}/bin/kill";
      };
    })
    units
    ;

  # Whom a secret is handed to. A worker runs what strangers wrote: it never gets what writes to the forge.
  named =
    let
      list = keys: lib.concatMap ({ key, file }: optional (file != null) { inherit key file; }) keys;
      forge = name: {
        key = "forge.${name}";
        file = cfg.settings.forge.${name} or null;
      };
      gateway = name: {
        key = "gateway.${name}";
        file = cfg.settings.gateway.${name} or null;
      };
      transport = name: {
        key = "transport.${name}";
        file = cfg.settings.transport.${name} or null;
      };
      own = section: name: {
        key = "${section}.${name}";
        file = cfg.settings.${section}.${name} or null;
      };
      workerKey = {
        key = "auth.worker_key_file";
        file = cfg.settings.auth.worker_key_file or null;
      };
      models = map (model: {
        key = "gateway.models.api_key_file";
        file = model.api_key_file or null;
      }) (cfg.settings.gateway.models or [ ]);
    in
    {
      # It asks no model; it looks for the models' keys in whatever is about to leave.
      dashboard = list (
        [
          (forge "app_key_file")
          (forge "read_token_file")
          (forge "write_token_file")
          (forge "webhook_secret_file")
          (forge "webhook_secret_previous_file")
          (transport "password_file")
          (transport "worker_password_file")
          workerKey
          (own "auth" "scale_key_file")
          (own "auth" "secrets_key_file")
          (own "auth" "admin_key_file")
          {
            key = "auth.oidc.client_secret_file";
            file = cfg.settings.auth.oidc.client_secret_file or null;
          }
          (own "store" "password_file")
          (gateway "keys_file")
        ]
        ++ models
      );
      # Workers show it the key that they show to the dashboard.
      inference = list (
        [
          workerKey
          (gateway "keys_file")
        ]
        ++ models
      );
      worker = list (
        [
          workerKey
          (forge "read_token_file")
          (transport "worker_password_file")
        ]
        # Who asks a gateway for all models needs no key of theirs.
        ++ optionals (!asksGateway) models
      );
    };
  namesGateway = (cfg.settings.gateway.url or null) != null;
  asksGateway = cfg.inference.enable || namesGateway;
  credentials =
    wanted:
    let
      names = map (secret: baseNameOf secret.file) wanted;
      given = filterAttrs (name: _: builtins.elem name names) cfg.secrets;
    in
    lib.mapAttrsToList (name: path: "${name}:${toString path}") given;
  unused = lib.subtractLists (map (secret: baseNameOf secret.file) (
    named.dashboard ++ named.worker ++ named.inference
  )) (builtins.attrNames cfg.secrets);

  words = text: lib.splitString " " text;

  # NixOS has options of its own for these; what others add to them would collide with a plain key.
  unitOptions =
    sections:
    let
      unit = sections.Unit or { };
    in
    {
      description = unit.Description;
      after = words' (unit.After or "");
      partOf = words' (unit.PartOf or "");
      wants = words' (unit.Wants or "");
      unitConfig = removeAttrs unit [
        "After"
        "Description"
        "PartOf"
        "Wants"
      ];
    };
  words' = text: optionals (text != "") (words text);
  wanted = sections: { wantedBy = words' (sections.Install.WantedBy or ""); };

  # A unit is restarted and not stopped, then started: the sockets stay open meanwhile, and no webhook is lost.
  service =
    name:
    unitOptions units."${name}.service"
    // {
      serviceConfig = units."${name}.service".Service;
      stopIfChanged = false;
    };
  socket =
    name: listen:
    unitOptions units."${name}.socket"
    // wanted units."${name}.socket"
    // {
      listenStreams = [ listen ];
      socketConfig = removeAttrs units."${name}.socket".Socket [ "ListenStream" ];
    };
  slice =
    name:
    unitOptions units."${name}.slice" // { sliceConfig = units."${name}.slice".Slice or { }; };

  instance = number: "fettle-worker@${lib.fixedWidthNumber 2 number}.service";

  # The lines of a file for systemd-tmpfiles, without comments.
  rules =
    file:
    builtins.filter (line: line != "" && !lib.hasPrefix "#" line) (
      lib.splitString "\n" (builtins.readFile file)
    );

  port = address: lib.toInt (lib.last (lib.splitString ":" address));
in
{
  imports = [ ./options.nix ];

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = import ./assertions.nix {
        inherit
          lib
          cfg
          named
          asksGateway
          ;
        hasNvidia =
          builtins.elem "nvidia" config.services.xserver.videoDrivers
          || config.hardware.nvidia.datacenter.enable;
      };
      warnings =
        map (
          name: ''services.fettle.secrets."${name}" is handed to nobody: no `*_file` of the settings has this name.''
        ) unused
        ++ optional (cfg.worker.enable && !config.security.allowUserNamespaces) ''
          security.allowUserNamespaces is off: Fettle's sandbox reaches the level `landlock` alone, and no proof is then
          better than `Weak`.
        '';

      environment.systemPackages = [ cfg.package ];
      # For people and the command line; the units name the file in the store and so start anew when it changes.
      environment.etc."fettle/fettle.toml".source = configFile;

      systemd.targets.fettle =
        unitOptions units."fettle.target"
        // wanted units."fettle.target"
        // {
          wants = optionals cfg.worker.enable (map instance (lib.range 1 cfg.worker.instances));
        };
      systemd.slices.fettle = slice "fettle";
      systemd.tmpfiles.rules = rules ../../systemd/tmpfiles/fettle.conf;
    }

    (mkIf cfg.dashboard.enable {
      users.users.fettle = {
        isSystemUser = true;
        group = "fettle";
        home = "/var/lib/fettle/dashboard";
        description = "Fettle dashboard";
      };
      users.groups.fettle = { };

      systemd.services.fettle-dashboard = lib.recursiveUpdate (
        service "fettle-dashboard" // wanted units."fettle-dashboard.service"
      ) { serviceConfig.LoadCredential = credentials named.dashboard; };
      systemd.sockets.fettle-dashboard = socket "fettle-dashboard" cfg.settings.server.listen;
      systemd.sockets.fettle-dashboard-internal = socket "fettle-dashboard-internal" cfg.settings.server.internal_listen;

      networking.firewall.allowedTCPPorts = optional cfg.dashboard.openFirewall (
        port cfg.settings.server.listen
      );
    })

    (mkIf cfg.worker.enable {
      # Not in the dashboard's group: here everybody can read fettle.toml, which holds no secret.
      users.users.fettle-worker = {
        isSystemUser = true;
        group = "fettle-worker";
        home = "/var/lib/fettle/worker";
        description = "Fettle worker";
      };
      users.groups.fettle-worker = { };

      services.fettle.settings.agent.dashboard_url = mkMerge [
        (mkIf (cfg.worker.dashboard.url != null) cfg.worker.dashboard.url)
        (mkIf (cfg.worker.dashboard.url == null) (lib.mkDefault "http://${cfg.settings.server.internal_listen}"))
      ];

      systemd.slices.fettle-worker = slice "fettle-worker";
      # A template: the target wants its instances.
      systemd.services."fettle-worker@" = mkMerge [
        (service "fettle-worker@")
        {
          # What a repository's commands expect of any system; the sandbox shows no tool that is not on this path.
          path = cfg.worker.extraPackages ++ [
            pkgs.bash
            pkgs.diffutils
            pkgs.gawk
            pkgs.git
            pkgs.gnutar
            pkgs.gzip
          ];
          serviceConfig.LoadCredential = credentials named.worker;
        }
        # For all models, unless the settings name another gateway.
        (mkIf (cfg.inference.enable && !namesGateway) {
          environment.FETTLE_GATEWAY__URL = "http://${
            builtins.replaceStrings [ "0.0.0.0" "[::]" ] [ "127.0.0.1" "[::1]" ] cfg.settings.gateway.listen
          }";
        })
        (mkIf (cfg.worker.memoryMax != null) {
          serviceConfig.MemoryMax = lib.mkForce cfg.worker.memoryMax;
        })
      ];
    })

    (mkIf cfg.inference.enable {
      users.users.fettle-inference = {
        isSystemUser = true;
        group = "fettle-inference";
        home = "/var/lib/fettle/inference";
        description = "Fettle inference";
      };
      users.groups.fettle-inference = { };

      # Its user starts and ends engines, which are units, and nothing else.
      security.polkit.enable = true;
      security.polkit.extraConfig = builtins.readFile ../../systemd/polkit/50-fettle.rules;

      systemd.sockets.fettle-inference = socket "fettle-inference" cfg.settings.gateway.listen;
      systemd.services.fettle-inference = mkMerge [
        (service "fettle-inference" // wanted units."fettle-inference.service")
        {
          # Engines inherit it.
          path = cfg.engines.extraPackages;
          serviceConfig.LoadCredential = credentials named.inference;
        }
      ];
      systemd.slices.fettle-engine = mkMerge [
        (slice "fettle-engine")
        (mkIf (cfg.engines.memoryMax != null) {
          sliceConfig.MemoryMax = lib.mkForce cfg.engines.memoryMax;
        })
      ];
      # A template. What runs goes on with what it was started with: a model that takes minutes to load is not loaded again for
      # another version of the program that keeps it.
      systemd.services."fettle-engine@" = service "fettle-engine@" // {
        restartIfChanged = false;
      };
    })

    (mkIf cfg.backup.enable {
      systemd.services.fettle-backup = mkMerge [
        (service "fettle-backup")
        (mkIf (cfg.backup.keep != 7 || cfg.backup.destination != null) {
          serviceConfig.ExecStart = lib.mkForce (
            units."fettle-backup.service".Service.ExecStart
            + optionalString (cfg.backup.keep != 7) " --keep ${toString cfg.backup.keep}"
            + optionalString (cfg.backup.destination != null) " --to ${cfg.backup.destination}"
          );
        })
        (mkIf (cfg.backup.destination != null) {
          unitConfig.RequiresMountsFor = cfg.backup.destination;
          serviceConfig.ReadWritePaths = lib.mkForce "${units."fettle-backup.service".Service.ReadWritePaths} ${cfg.backup.destination}";
        })
      ];
      systemd.timers.fettle-backup =
        unitOptions units."fettle-backup.timer"
        // wanted units."fettle-backup.timer"
        // {
          timerConfig = units."fettle-backup.timer".Timer // {
            OnCalendar = cfg.backup.onCalendar;
          };
        };
      systemd.tmpfiles.rules = optional (
        cfg.backup.destination != null
      ) "d ${cfg.backup.destination} 0700 root root -";
    })
  ]);
}
