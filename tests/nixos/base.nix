# A configuration with which nothing is wrong; each file in `bad/` breaks one thing of it.
{
  services.fettle = {
    enable = true;
    settings = {
      forge.read_token_file = "read-token";
      forge.write_token_file = "write-token";
      auth.worker_key_file = "worker.key";
    };
    secrets = {
      "read-token" = "/run/secrets/read-token";
      "write-token" = "/run/secrets/write-token";
      "worker.key" = "/run/secrets/worker.key";
    };
  };
}
