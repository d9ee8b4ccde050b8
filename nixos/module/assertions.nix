# What cannot work or must not be, each with what to do instead. Decides over values alone.
{
  lib,
  cfg,
  # Who needs which secret: { dashboard, worker, inference } of lists of { key, file }.
  named,
  # Workers of this host have a gateway to ask.
  asksGateway,
  # NVIDIA's driver is configured.
  hasNvidia,
}:
let
  inherit (lib)
    all
    any
    concatMap
    concatStringsSep
    filter
    hasPrefix
    optionals
    unique
    ;
  inherit (cfg) settings secrets;

  inStore = path: builtins.isPath path || hasPrefix builtins.storeDir path || hasPrefix "/nix/store" path;

  every = unique (
    optionals cfg.dashboard.enable named.dashboard
    ++ optionals cfg.worker.enable named.worker
    ++ optionals cfg.inference.enable named.inference
  );
  isFrom = list: secret: any (other: other.key == secret.key) list;
  ofDashboardAlone = filter (secret: !isFrom named.worker secret) named.dashboard;

  models = settings.gateway.models or [ ];
  isLocal = model: model ? path || (model.recipes or [ ]) != [ ];
  # Without recipes it is put on a GPU.
  wantsGpu =
    model:
    isLocal model
    && (
      (model.recipes or [ ]) == [ ]
      || any (recipe: (recipe.device or "gpu") == "gpu") model.recipes
    );
  # Workers speak to servers of this kind alone.
  isDirect =
    model:
    !isLocal model
    && builtins.elem (model.kind or "openai-compatible") [
      "openai"
      "openai-compatible"
    ];
  namesOf = wanted: concatStringsSep ", " (map (model: model.name) (filter wanted models));

  refuse = condition: message: {
    assertion = !condition;
    inherit message;
  };

  # Every string of the settings with its key.
  strings =
    key: value:
    if builtins.isAttrs value && !lib.isDerivation value then
      concatMap (name: strings (if key == "" then name else "${key}.${name}") value.${name}) (
        builtins.attrNames value
      )
    else if builtins.isList value then
      concatMap (strings key) value
    else if builtins.isString value then
      [ { inherit key value; } ]
    else
      [ ];

  holdsPassword = text: builtins.match "[a-zA-Z][a-zA-Z0-9+.-]*://[^/@]*:[^/@]+@.*" text != null;

  loopback =
    listen: any (prefix: hasPrefix prefix listen) [
      "127."
      "[::1]"
      "localhost:"
    ];
in
[
  (refuse (!cfg.dashboard.enable && !cfg.worker.enable && !cfg.inference.enable) ''
    services.fettle is enabled with neither dashboard nor workers nor inference: set services.fettle.dashboard.enable,
    services.fettle.worker.enable or services.fettle.inference.enable, or leave services.fettle.enable off.
  '')
  (refuse (cfg.worker.enable && !asksGateway && any (model: !isDirect model) models) ''
    Workers reach these models through a gateway alone: ${namesOf (model: !isDirect model)}. Set
    services.fettle.inference.enable, or services.fettle.settings.gateway.url to another host's.
  '')
  (refuse
    (cfg.inference.enable && !hasNvidia && (settings.gpu.mode or "auto") != "off" && any wantsGpu models)
    ''
      These models want a GPU, and no NVIDIA driver is configured: ${namesOf wantsGpu}. Set
      services.xserver.videoDrivers = [ "nvidia" ] or hardware.nvidia.datacenter.enable, or give the models recipes with
      device = "cpu"; with services.fettle.settings.gpu.mode = "off" the driver is not asked for.
    ''
  )
  (refuse (cfg.worker.instances > 99) ''
    services.fettle.worker.instances is ${toString cfg.worker.instances}, and worker NN listens on port 92NN: set it to 99 at
    most, and put further workers on another host.
  '')
  (refuse ((settings.agent.workers or 1) != 1) ''
    services.fettle.settings.agent.workers would let one process work on several jobs, past its limit of memory: leave it
    out and set services.fettle.worker.instances.
  '')
  (refuse (cfg.worker.enable && !cfg.dashboard.enable && cfg.worker.dashboard.url == null) ''
    Workers on this host have no dashboard: set services.fettle.worker.dashboard.url to the address of its internal
    listener, as in "http://10.0.0.1:8081", or set services.fettle.dashboard.enable.
  '')
  (refuse (cfg.worker.enable && !(settings ? auth.worker_key_file)) ''
    Workers and dashboard need one key between them: make it with `openssl rand -hex 32`, put it into a file that only root
    can read, name that file in services.fettle.secrets."worker.key", and set
    services.fettle.settings.auth.worker_key_file = "worker.key" on both.
  '')
  (refuse (cfg.dashboard.openFirewall && loopback settings.server.listen) ''
    services.fettle.dashboard.openFirewall opens a port on which nobody outside is heard, since the dashboard listens on
    ${settings.server.listen}: set services.fettle.settings.server.listen to "0.0.0.0:8080", or leave the firewall shut and
    put a reverse proxy with TLS before it.
  '')
  (refuse (settings.server.listen == settings.server.internal_listen) ''
    services.fettle.settings.server.listen and server.internal_listen are one address: give them different ports, for the
    internal one carries the worker API and is never public.
  '')
  (refuse (settings ? store.data_dir || settings ? agent.cache_dir) ''
    The units can write below /var/lib/fettle alone: leave services.fettle.settings.store.data_dir and agent.cache_dir out,
    and mount another disk at /var/lib/fettle if that is what you want.
  '')
  (refuse (cfg.backup.enable && !cfg.dashboard.enable) ''
    services.fettle.backup.enable has nothing to back up on a host without the dashboard: set it where the dashboard is.
  '')
  (refuse
    (cfg.backup.destination != null && builtins.match "/[A-Za-z0-9/._-]+" cfg.backup.destination == null)
    ''
      services.fettle.backup.destination is "${toString cfg.backup.destination}": give it as an absolute path of letters,
      digits, dots and hyphens, as in "/mnt/backup/fettle".
    ''
  )
  (refuse
    (
      cfg.backup.destination != null
      && any (folder: hasPrefix "${folder}/" "${cfg.backup.destination}/") [
        "/home"
        "/root"
        "/run/user"
      ]
    )
    ''
      services.fettle.backup.destination is below a home, which the unit cannot see: choose a folder elsewhere, as in
      "/mnt/backup/fettle".
    ''
  )
]
++ map (
  { key, value }:
  refuse (holdsPassword value) ''
    services.fettle.settings.${key} holds a password, and fettle.toml lies in the Nix store, where everybody can read it:
    take the password out of the URL, and name a file with it in services.fettle.secrets.
  ''
) (strings "" settings)
++ concatMap (name: [
  (refuse (inStore secrets.${name}) ''
    services.fettle.secrets."${name}" would lie in the Nix store, where everybody can read it: write the path of a file on
    this host in quotes, as in "/run/secrets/${name}".
  '')
  (refuse (!builtins.isPath secrets.${name} && !hasPrefix "/" secrets.${name}) ''
    services.fettle.secrets."${name}" is not an absolute path: write the path of a file on this host, as in
    "/run/secrets/${name}", and never the secret itself.
  '')
  (refuse (builtins.match "[A-Za-z0-9._-]+" name == null) ''
    services.fettle.secrets."${name}" is no file name that systemd takes for a credential: use letters, digits, dots and
    hyphens, as in "worker.key".
  '')
]) (builtins.attrNames secrets)
++ concatMap (
  { key, file }:
  [
    (refuse (inStore file) ''
      services.fettle.settings.${key} lies in the Nix store, where everybody can read it: set it to a name, as in
      "${lib.last (lib.splitString "." key)}", and that name to a file on this host in services.fettle.secrets.
    '')
    (refuse (!inStore file && !hasPrefix "/" file && !(secrets ? ${baseNameOf file})) ''
      services.fettle.settings.${key} names "${file}", which no secret is called: set
      services.fettle.secrets."${baseNameOf file}" to the path of a file on this host.
    '')
  ]
) every
++ map (
  secret:
  let
    same = filter (other: baseNameOf other.file == baseNameOf secret.file) named.worker;
  in
  refuse (!inStore secret.file && same != [ ]) ''
    services.fettle.settings.${secret.key} and ${
      concatStringsSep ", " (map (other: other.key) same)
    } have one file name, "${baseNameOf secret.file}", by which workers would get what is the dashboard's alone: give them different names.
  ''
) (lib.optionals (all (secret: builtins.isString secret.file) named.worker) ofDashboardAlone)
