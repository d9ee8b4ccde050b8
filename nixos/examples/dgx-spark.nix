# A DGX Spark (aarch64): one pool of memory for the model and for what is built and tested beside it, so both are given limits.
{ pkgs, ... }:
{
  services.fettle = {
    enable = true;
    settings = {
      forge.read_token_file = "read-token";
      forge.write_token_file = "write-token";
      forge.webhook_secret_file = "webhook-secret";
      auth.worker_key_file = "worker.key";
      agent.sandbox.memory = "6 GiB";
      agent.sandbox.min_level = "full";
      # A model server of your own, on this machine.
      gateway.models = [
        {
          name = "coder";
          base_url = "http://127.0.0.1:8000/v1";
          context = 65536;
        }
      ];
    };
    secrets = {
      "read-token" = "/etc/fettle-secrets/read-token";
      "write-token" = "/etc/fettle-secrets/write-token";
      "webhook-secret" = "/etc/fettle-secrets/webhook-secret";
      "worker.key" = "/etc/fettle-secrets/worker.key";
    };
    worker.memoryMax = "8G";
    worker.extraPackages = [
      pkgs.cargo
      pkgs.gcc
      pkgs.rustc
    ];
  };
}
