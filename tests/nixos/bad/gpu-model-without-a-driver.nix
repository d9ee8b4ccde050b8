# refused: no NVIDIA driver is configured: coder.
{
  imports = [ ../base.nix ];
  services.fettle.settings.gateway.models = [
    {
      name = "coder";
      path = "/var/lib/fettle/models/coder.gguf";
    }
  ];
}
