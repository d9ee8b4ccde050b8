# refused: services.fettle.settings.gateway.models.base_url holds a password
{
  imports = [ ../base.nix ];
  services.fettle.settings.gateway.models = [
    {
      name = "coder";
      base_url = "https://kim:hunter2@models.example.org/v1";
    }
  ];
}
