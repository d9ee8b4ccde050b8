# The dashboard with the credentials on one host, the worker that runs foreign code on another.
{ module }:
{
  name = "fettle-two-hosts";

  nodes.dashboard =
    { lib, ... }:
    {
      imports = [
        module
        (import ./secrets.nix [
          "read-token"
          "worker.key"
          "write-token"
        ])
      ];
      networking.firewall.allowedTCPPorts = [ 8081 ];
      services.fettle = {
        enable = true;
        worker.enable = false;
        settings = {
          server.internal_listen = "0.0.0.0:8081";
          auth.worker_key_file = "worker.key";
          forge.read_token_file = "read-token";
          forge.write_token_file = "write-token";
        };
        secrets = lib.genAttrs [
          "read-token"
          "worker.key"
          "write-token"
        ] (name: "/run/test-secrets/${name}");
      };
    };

  nodes.worker = {
    imports = [
      module
      (import ./secrets.nix [ "worker.key" ])
    ];
    services.fettle = {
      enable = true;
      dashboard.enable = false;
      worker.dashboard.url = "http://dashboard:8081";
      settings.auth.worker_key_file = "worker.key";
      secrets."worker.key" = "/run/test-secrets/worker.key";
    };
  };

  testScript = ''
    worker.start()
    worker.wait_for_unit("multi-user.target")
    dashboard.start()
    dashboard.wait_for_unit("fettle-dashboard.service")
    worker.wait_for_unit("fettle-worker@01.service")

    fettle = "fettle --url http://127.0.0.1:8080 --key-file /var/lib/fettle/dashboard/admin.key"
    with subtest("a Task goes through the other host"):
        dashboard.succeed(f"{fettle} submit --mode probe --wait")

    with subtest("the worker outlives its dashboard's absence"):
        dashboard.crash()
        worker.succeed("curl --fail --silent http://127.0.0.1:9201/healthz")
        dashboard.start()
        dashboard.wait_for_unit("fettle-dashboard.service")
        dashboard.succeed(f"{fettle} submit --mode probe --wait")
  '';
}
