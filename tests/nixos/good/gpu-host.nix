# A host for models alone, which workers elsewhere ask; one of them fits no GPU here and runs on the CPU.
{ pkgs, ... }:
{
  services.fettle = {
    enable = true;
    dashboard.enable = false;
    worker.enable = false;
    inference.enable = true;
    engines.memoryMax = "400G";
    engines.extraPackages = [ pkgs.llama-cpp ];
    settings = {
      auth.worker_key_file = "worker.key";
      gateway = {
        listen = "10.9.0.2:8484";
        keys_file = "people.keys";
        models = [
          {
            name = "coder";
            path = "/var/lib/fettle/models/coder.gguf";
            recipes = [
              {
                engine = "llama-server";
                device = "cpu";
              }
            ];
          }
          {
            name = "claude";
            kind = "anthropic";
            model = "claude-sonnet-4-5";
            api_key_file = "anthropic.key";
          }
        ];
      };
    };
    secrets = {
      "anthropic.key" = "/run/secrets/anthropic.key";
      "people.keys" = "/run/secrets/people.keys";
      "worker.key" = "/run/secrets/worker.key";
    };
  };
}
