# `services.fettle.k3s`: a cluster of its own on this host, with what Fettle needs in it and Fettle's chart. It stands on NixOS'
# own `services.k3s`; what lies in the Nix store is read by everybody, so no secret is in a value here.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    optional
    optionalAttrs
    types
    ;
  cfg = config.services.fettle.k3s;
  isServer = cfg.role == "server";

  # As k3s' own controller for charts takes it; the chart's archive is served by k3s itself.
  chart = name: namespace: values: {
    apiVersion = "helm.cattle.io/v1";
    kind = "HelmChart";
    metadata = {
      inherit name;
      namespace = "kube-system";
    };
    spec = {
      chart = "https://%{KUBERNETES_API}%/static/charts/${name}.tgz";
      targetNamespace = namespace;
      createNamespace = true;
      timeout = "10m";
      # The other policy uninstalls first.
      failurePolicy = "abort";
      valuesContent = builtins.toJSON values;
    };
  };

  values = lib.recursiveUpdate (
    {
      image.registry = cfg.registry;
      config = cfg.settings // {
        # The ingress is a pod: without this everybody would seem to come from it.
        server = {
          trusted_proxies = [ cfg.clusterCidr ];
        } // (cfg.settings.server or { });
      };
      worker =
        if cfg.keda then
          {
            scaling = "scaledJob";
            scaledJob.max = cfg.workers;
          }
        else
          {
            scaling = "fixed";
            replicas = cfg.workers;
          };
      redis.enabled = cfg.redis;
      rabbitmq.enabled = cfg.rabbitmq;
    }
    // optionalAttrs (cfg.secrets != { }) { secrets.existingSecret = "fettle"; }
    // optionalAttrs (cfg.nvidia && cfg.gpus > 0) {
      inference = {
        enabled = true;
        inherit (cfg) gpus;
      };
    }
    // optionalAttrs (cfg.host != null) {
      exposure = {
        kind = "ingress";
        inherit (cfg) host;
        className = cfg.ingressClass;
        tls.kind = if cfg.certManager then "selfSigned" else "none";
      };
    }
  ) cfg.values;

  # Names of files among the arguments, and never what is in them.
  handOver = pkgs.writeShellScript "fettle-k3s-secrets" ''
    set -eu
    k3s=${cfg.package}/bin/k3s
    $k3s kubectl create namespace fettle --dry-run=client --output=json | $k3s kubectl apply --server-side --filename=-
    $k3s kubectl create secret generic fettle --namespace=fettle --dry-run=client --output=json \
      --from-file="$CREDENTIALS_DIRECTORY" \
      | $k3s kubectl apply --server-side --force-conflicts --field-manager=fettle --filename=-
  '';

  inStore = path: path != null && (builtins.isPath path || lib.hasPrefix "/nix/store" path);
  refuse = condition: message: {
    assertion = !condition;
    inherit message;
  };
  telling = [
    "password"
    "secret"
    "token"
    "apikey"
    "api_key"
  ];
  # Paths of texts that are secrets by their names.
  secretsIn =
    at: value:
    if builtins.isAttrs value && !lib.isDerivation value then
      lib.concatMap (name: secretsIn (if at == "" then name else "${at}.${name}") value.${name}) (
        builtins.attrNames value
      )
    else if
      builtins.isString value
      && value != ""
      && lib.any (word: lib.hasSuffix word (lib.toLower at)) telling
    then
      [ at ]
    else
      [ ];
in
{
  options.services.fettle.k3s = {
    enable = mkEnableOption "k3s with Fettle in it";
    package = mkOption {
      type = types.package;
      default = pkgs.k3s;
      defaultText = lib.literalExpression "pkgs.k3s";
      description = "The k3s that runs.";
    };
    role = mkOption {
      type = types.enum [
        "server"
        "agent"
      ];
      default = "server";
      description = "Whether this host is the cluster, or joins one.";
    };
    serverAddr = mkOption {
      type = types.str;
      default = "";
      example = "https://10.0.0.1:6443";
      description = "The cluster that an agent joins.";
    };
    tokenFile = mkOption {
      type = types.nullOr (types.either types.path types.str);
      default = null;
      example = "/run/secrets/k3s-token";
      description = ''
        A file on this host. On a server: the word by which servers join, a random text. On an agent: the content of
        `/var/lib/rancher/k3s/server/agent-token` of a server that has `agentTokenFile`; it names the cluster's certificate, so that
        the agent tells it to no other host.
      '';
    };
    agentTokenFile = mkOption {
      type = types.nullOr (types.either types.path types.str);
      default = null;
      example = "/run/secrets/k3s-agent-token";
      description = ''
        Of a server: a file on this host with a random text by which agents join. Without it they join by the word of servers, and
        whoever reads that on an agent administers the cluster.
      '';
    };
    openNodePorts = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether other hosts reach the kubelet (10250/tcp) and the network of pods (8472/udp, which is neither encrypted nor
        authenticated). Needed on every node of a cluster of more than one, and by no other; let a firewall in front of them admit
        the other nodes alone.
      '';
    };
    tlsSan = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further names and addresses of the cluster's API.";
    };
    clusterCidr = mkOption {
      type = types.str;
      default = "10.42.0.0/16";
      description = "The network of pods.";
    };
    serviceCidr = mkOption {
      type = types.str;
      default = "10.43.0.0/16";
      description = "The network of services.";
    };
    airgap = mkOption {
      type = types.listOf types.path;
      default = [ ];
      example = [ "/srv/bundle/images/fettle.tar" ];
      description = "Archives of images on this host that k3s loads at its start, so that no registry is asked.";
    };
    charts = mkOption {
      type = types.attrsOf (types.either types.path types.package);
      default = { };
      example = lib.literalExpression ''
        { fettle = ./fettle.tgz; cert-manager = ./cert-manager.tgz; keda = ./keda.tgz; }
      '';
      description = "Archives of charts by name: `fettle`, and those of the add-ons that are enabled.";
    };
    registry = mkOption {
      type = types.str;
      default = "localhost";
      description = "Where Fettle's images are; `localhost` are those of `airgap`.";
    };
    host = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "fettle.example.org";
      description = "The name by which people reach Fettle; without one there is no way in from outside the cluster.";
    };
    ingressClass = mkOption {
      type = types.str;
      default = "traefik";
      description = "Which ingress answers; Traefik comes with k3s.";
    };
    certManager = mkEnableOption "certificates by cert-manager" // {
      default = true;
    };
    keda = mkEnableOption "a worker for each Run that waits, by KEDA" // {
      default = true;
    };
    redis = mkEnableOption "the chart's own Redis";
    rabbitmq = mkEnableOption "the chart's own RabbitMQ";
    nvidia = mkEnableOption "GPUs for pods";
    gpus = mkOption {
      type = types.ints.unsigned;
      default = 0;
      description = "GPUs that the inference service takes on each node that has some; 0: models are elsewhere.";
    };
    workers = mkOption {
      type = types.ints.positive;
      default = 1;
      description = "How many Runs at a time.";
    };
    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "`fettle.toml` as the chart takes it; a `*_file` is the name of an entry in `secrets`.";
    };
    secrets = mkOption {
      type = types.attrsOf (types.either types.path types.str);
      default = { };
      example = {
        "app.pem" = "/run/secrets/fettle/app.pem";
      };
      description = "Files on this host that become the Secret `fettle`; systemd hands them to the unit that makes it.";
    };
    values = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Values of the chart, over those that follow from the rest.";
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        (refuse (config.services.fettle.enable or false) ''
          services.fettle.enable and services.fettle.k3s.enable are both on: Fettle runs on this host either as services or in a
          cluster, since they would fight for ports, GPUs and memory. Turn one of them off.
        '')
        (refuse (inStore cfg.tokenFile) ''
          services.fettle.k3s.tokenFile would lie in the Nix store, where everybody can read it: write the path of a file on this
          host in quotes, as in "/run/secrets/k3s-token".
        '')
        (refuse (inStore cfg.agentTokenFile) ''
          services.fettle.k3s.agentTokenFile would lie in the Nix store, where everybody can read it: write the path of a file on
          this host in quotes, as in "/run/secrets/k3s-agent-token".
        '')
        (refuse (cfg.nvidia && !(config.hardware.nvidia-container-toolkit.enable or false)) ''
          services.fettle.k3s.nvidia needs NVIDIA's container runtime: set hardware.nvidia-container-toolkit.enable = true.
        '')
      ]
      ++ map (
        path:
        refuse true ''
          services.fettle.k3s.values.${path} is a secret by its name, and values lie in the Nix store, where everybody can read
          them: put it into a file, name that in services.fettle.k3s.secrets, and the entry as a `*_file` in the settings.
        ''
      ) (secretsIn "" cfg.values)
      ++ map (
        name:
        refuse (inStore cfg.secrets.${name}) ''
          services.fettle.k3s.secrets."${name}" would lie in the Nix store, where everybody can read it: write the path of a file
          on this host in quotes, as in "/run/secrets/${name}".
        ''
      ) (builtins.attrNames cfg.secrets)
      ++ map (
        name:
        refuse (isServer && !(cfg.charts ? ${name})) ''
          services.fettle.k3s.charts."${name}" is missing: name the archive of that chart, since k3s serves it to itself.
        ''
      ) (
        [ "fettle" ]
        ++ optional cfg.certManager "cert-manager"
        ++ optional cfg.keda "keda"
        ++ optional cfg.nvidia "nvidia-device-plugin"
      );

      services.k3s = {
        enable = true;
        inherit (cfg) package role serverAddr;
        tokenFile = mkIf (cfg.tokenFile != null) cfg.tokenFile;
      };
      systemd.tmpfiles.rules = map (
        archive: "L+ /var/lib/rancher/k3s/agent/images/${baseNameOf archive} - - - - ${archive}"
      ) cfg.airgap;
      # k3s looks for NVIDIA's runtime on the search path.
      systemd.services.k3s.path = optional cfg.nvidia (
        lib.getOutput "tools" pkgs.nvidia-container-toolkit
      );
      networking.firewall = {
        allowedTCPPorts =
          optional cfg.openNodePorts 10250
          ++ lib.optionals isServer [
            80
            443
            6443
          ];
        allowedUDPPorts = optional cfg.openNodePorts 8472;
        trustedInterfaces = [
          "cni0"
          "flannel.1"
        ];
      };
    }

    (mkIf isServer {
      services.k3s = {
        clusterInit = true;
        extraFlags = [
          "--cluster-cidr=${cfg.clusterCidr}"
          "--service-cidr=${cfg.serviceCidr}"
          "--secrets-encryption"
          "--write-kubeconfig-mode=0600"
          "--etcd-snapshot-schedule-cron='0 */6 * * *'"
          "--etcd-snapshot-retention=12"
        ]
        ++ map (name: "--tls-san=${name}") (cfg.tlsSan ++ optional (cfg.host != null) cfg.host)
        ++ optional (cfg.agentTokenFile != null) "--agent-token-file=${toString cfg.agentTokenFile}"
        ++ optional cfg.nvidia "--node-label=nvidia.com/gpu.present=true";
        inherit (cfg) charts;
        manifests = {
          fettle.content = chart "fettle" "fettle" values;
          fettle-traefik.content = {
            apiVersion = "helm.cattle.io/v1";
            kind = "HelmChartConfig";
            metadata = {
              name = "traefik";
              namespace = "kube-system";
            };
            # Streams of events stay open, and uploads take their time.
            spec.valuesContent = builtins.toJSON {
              ports.websecure.transport.respondingTimeouts = {
                readTimeout = 0;
                idleTimeout = 600;
              };
            };
          };
        }
        // optionalAttrs cfg.certManager {
          fettle-cert-manager.content = chart "cert-manager" "cert-manager" {
            crds = {
              enabled = true;
              keep = true;
            };
          };
        }
        // optionalAttrs cfg.keda {
          fettle-keda.content = chart "keda" "keda" { image.pullPolicy = "IfNotPresent"; };
        }
        // optionalAttrs cfg.nvidia {
          fettle-nvidia.content = chart "nvidia-device-plugin" "nvidia-device-plugin" {
            runtimeClassName = "nvidia";
          };
        };
      };

      systemd.services.fettle-k3s-secrets = mkIf (cfg.secrets != { }) {
        description = "Fettle's secrets for its cluster";
        after = [ "k3s.service" ];
        requires = [ "k3s.service" ];
        wantedBy = [ "multi-user.target" ];
        restartTriggers = [ (builtins.toJSON cfg.secrets) ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = "${handOver}";
          LoadCredential = lib.mapAttrsToList (name: path: "${name}:${toString path}") cfg.secrets;
          # The API server is there some time after the unit is.
          Restart = "on-failure";
          RestartSec = 5;
        };
      };
    })
  ]);
}
