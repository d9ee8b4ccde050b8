# The half that runs foreign code.
{
  services.fettle = {
    enable = true;
    dashboard.enable = false;
    worker.instances = 3;
    worker.memoryMax = "24G";
    worker.dashboard.url = "http://10.9.0.1:8081";
    settings = {
      auth.worker_key_file = "worker.key";
      gateway.models = [
        {
          name = "coder";
          base_url = "http://10.9.0.2:8000/v1";
          api_key_file = "coder.key";
        }
      ];
    };
    secrets = {
      "coder.key" = "/run/secrets/coder.key";
      "worker.key" = "/run/secrets/worker.key";
    };
  };
}
