# refused: reach these models through a gateway alone: claude, here.
{
  imports = [ ../base.nix ];
  services.fettle.inference.enable = false;
  services.fettle.settings.gateway.models = [
    {
      name = "claude";
      kind = "anthropic";
    }
    {
      name = "here";
      path = "/var/lib/fettle/models/here.gguf";
    }
    {
      name = "coder";
      base_url = "http://127.0.0.1:8000/v1";
    }
  ];
}
